"""transformers 5.24: our data set, agent loop and vision towers, with veRL and vLLM of .venv."""

from pathlib import Path

import transformers
from plugin.test_vision import (  # noqa: F401  # its patches replace functions of transformers
    restored,
    test_attention_in_few_calls_is_the_stock_towers,
    test_attention_of_another_kind_stays_the_stock_towers,
)
from support.prepared_prompts import images_reach_the_update


def test_images_reach_the_update(checkpoint: Path, tmp_path: Path) -> None:
    assert transformers.__version__.startswith("5.24.")
    images_reach_the_update(checkpoint, tmp_path)
