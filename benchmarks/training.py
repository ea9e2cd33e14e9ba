"""veRL's main_ppo, as the benchmarks start it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from omegaconf import DictConfig

from tpru_verl import recipes
from tpru_verl.demo.processes import end_tree
from tpru_verl.launch import checks as launch

# A run that is only measured: no validation, no checkpoint.
MEASURED = (
    "trainer.val_before_train=false",
    "trainer.test_freq=-1",
    "trainer.save_freq=-1",
    "trainer.resume_mode=disable",
)


def composed(recipe: str, overrides: Sequence[str]) -> DictConfig:
    """The recipe with overrides as main_ppo takes them; those of Hydra itself are none of a recipe's."""
    return recipes.compose(recipe, [item for item in overrides if not item.startswith("hydra.")])


def command(recipe: str, overrides: Sequence[str], metrics: Path) -> tuple[list[str], dict[str, str]]:
    """The command that trains, and its whole environment. Raises what `recipes.compose` raises."""
    own = {**launch.environment(composed(recipe, overrides)), "VERL_FILE_LOGGER_PATH": str(metrics)}
    run = [sys.executable, "-m", "verl.trainer.main_ppo", "--config-name", recipe, *overrides]
    return run, {**os.environ, **own}


@contextmanager
def started(
    run: Sequence[str], environment: dict[str, str], log: IO[str] | None = None, folder: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """The command's process; when the block is left, nothing that it started is left, either."""
    errors = subprocess.STDOUT if log else None
    process = subprocess.Popen(
        run, env=environment, cwd=folder, stdout=log, stderr=errors, start_new_session=True
    )
    try:
        yield process
    finally:
        end_tree(process.pid)
