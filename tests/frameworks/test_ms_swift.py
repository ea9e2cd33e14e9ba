"""ms-swift's own plugin loader and scoring, with our reward."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from support.responses import RIGHT, WRONG, talk
from support.rows import write_prepared_row

from tpru_verl.reward_fns import ms_swift


def test_plugin_reward_and_trl() -> None:
    """The loader of `--external_plugins`, then the function that the trainer scores with."""
    import torch
    from swift.arguments import BaseArguments  # pyright: ignore[reportMissingImports]
    from swift.rewards import orms  # pyright: ignore[reportMissingImports]
    from swift.rl_core.data import GRPOSample  # pyright: ignore[reportMissingImports]
    from swift.rl_core.grpo_algorithm import score_completions  # pyright: ignore[reportMissingImports]
    from swift.rlhf_trainers.utils import resolve_reward_funcs  # pyright: ignore[reportMissingImports]

    arguments = SimpleNamespace(external_plugins=[ms_swift.__file__], custom_register_path=[])
    BaseArguments._import_external_plugins(arguments)
    assert str(Path(ms_swift.__file__).parent) not in sys.path
    functions, names = resolve_reward_funcs(["tpru"])
    assert names == ["TPRU"]
    assert isinstance(functions[0], orms["tpru"])
    samples = [GRPOSample.from_row({"messages": talk(text), "solution": "B"}) for text in (RIGHT, WRONG)]
    scores = score_completions(samples, functions, [None], False, torch.device("cpu"))
    assert scores.tolist() == [[1.0], [0.125]]


def test_prepared_rows_are_read_by_its_own_preprocessor(tmp_path: Path) -> None:
    """Of rows for veRL, swift drops every one."""
    from datasets import load_dataset
    from swift.dataset.preprocessor import AutoPreprocessor  # pyright: ignore[reportMissingImports]

    def read(framework: str) -> Any:
        shard = write_prepared_row(tmp_path / framework, framework)
        raw = load_dataset("parquet", data_files=str(shard), split="train")
        return AutoPreprocessor(columns={})(raw, load_from_cache_file=False)

    assert len(read("verl")) == 0
    (row,) = read("ms-swift")
    (message,) = row["messages"]
    assert message["role"] == "user"
    assert message["content"].startswith("Reorder. Frame 1:<image> Frame 2:<image> Frame 3:<image> A. 1 2 3")
    assert len(row["images"]) == 3
    assert row["solution"] == "B"
    assert ms_swift.TPRU()([RIGHT], **{name: [value] for name, value in row.items()}) == [1.0]
