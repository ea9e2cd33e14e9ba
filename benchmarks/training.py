"""Runs of veRL's trainer for the benchmarks, composed and started as `tpru train` does.

All benchmarks take their device here: `device_option` asks for it, and `planned` does without flash-attn
where it is not installed. `tpru_verl.demo.run.moved_to` has what the tiny recipe needs on another device.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import TypeVar

import psutil

from tpru_verl.demo.run import DEVICES, device_here
from tpru_verl.launch import needs
from tpru_verl.launch.first_error import first_error
from tpru_verl.launch.plan import Plan, compose
from tpru_verl.launch.watch import watch

Found = TypeVar("Found")

# A run that is only measured: no validation, no checkpoint.
MEASURED = (
    "trainer.val_before_train=false",
    "trainer.test_freq=-1",
    "trainer.save_freq=-1",
    "trainer.resume_mode=disable",
)


def measured(folder: Path, steps: int, rows: Path | None = None) -> list[str]:
    """Overrides of a run that is only measured, in `folder`; `rows` has train.parquet and test.parquet."""
    rows = rows or folder
    return [
        f"data.train_files={rows}/train.parquet",
        f"data.val_files={rows}/test.parquet",
        f"trainer.total_training_steps={steps}",
        *MEASURED,
        f"trainer.default_local_dir={folder}/checkpoints",
        f"hydra.run.dir={folder}/hydra",
    ]


# What the overlay `sdpa` sets; as overrides, since a command may name another overlay.
WITHOUT_FLASH_ATTN = (
    "actor_rollout_ref.model.use_remove_padding=false",
    "++actor_rollout_ref.model.override_config.attn_implementation=sdpa",
)


def device_option(parser: argparse.ArgumentParser) -> None:
    """Add `--device`."""
    parser.add_argument("--device", choices=DEVICES, default=device_here(), help="default: %(default)s")


def planned(recipe: str, overrides: Sequence[str], metrics: Path) -> Plan:
    """The run of a recipe that writes its metrics to a file; without flash-attn where it is not installed.

    Raises as `launch.plan.compose`.
    """
    plan = compose(recipe, overrides)
    try:
        needs.flash_attn(plan.settings)
    except RuntimeError:
        print("flash-attn is not installed: PyTorch's attention, sequences padded", file=sys.stderr)
        plan = compose(recipe, [*overrides, *WITHOUT_FLASH_ATTN])
    return replace(plan, environment={**plan.environment, "VERL_FILE_LOGGER_PATH": str(metrics)})


def train(plan: Plan, log: Path, *, echo: bool = False) -> None:
    """Train to the end. A run that fails ends the benchmark with its first error; a signal ends it, too."""
    end = watch(plan.command, plan.environment, log, echo=echo)
    if end.asked:
        sys.exit(128 + end.asked)
    if end.code:
        sys.exit(f"the trainer ended with exit code {end.code}: {first_error(log)}")


def train_watched(plan: Plan, log: Path, look: Callable[[], Found]) -> list[tuple[int, Found]]:
    """Train to the end as `train` does; what `look` finds after each step, with the number of steps.

    Steps that end within a tenth of a second are looked at once.
    """
    metrics, ended = Path(plan.environment["VERL_FILE_LOGGER_PATH"]), Event()

    def looks() -> list[tuple[int, Found]]:
        found: list[tuple[int, Found]] = []
        while not ended.wait(0.1):
            steps = metrics.read_text().count('"timing_s/step"') if metrics.exists() else 0
            if steps > (found[-1][0] if found else 0):
                with suppress(psutil.NoSuchProcess):  # one has just ended: once more
                    found.append((steps, look()))
        return found

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(looks)
        try:
            train(plan, log)
        finally:
            ended.set()
    return looking.result()
