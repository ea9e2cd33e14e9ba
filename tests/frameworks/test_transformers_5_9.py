"""transformers 5.9: our data set and agent loop, with veRL and vLLM of .venv."""

from pathlib import Path

import transformers
from support.prepared_prompts import images_reach_the_update


def test_images_reach_the_update(checkpoint: Path, tmp_path: Path) -> None:
    assert transformers.__version__.startswith("5.9.")
    images_reach_the_update(checkpoint, tmp_path)
