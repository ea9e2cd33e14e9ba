"""Runs of veRL's trainer for the benchmarks, composed and started as `tpru train` does."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tpru_verl.launch.first_error import first_error
from tpru_verl.launch.plan import Plan, compose
from tpru_verl.launch.watch import watch

# A run that is only measured: no validation, no checkpoint.
MEASURED = (
    "trainer.val_before_train=false",
    "trainer.test_freq=-1",
    "trainer.save_freq=-1",
    "trainer.resume_mode=disable",
)


def planned(recipe: str, overrides: Sequence[str], metrics: Path) -> Plan:
    """The run of a recipe that writes its metrics to a file. Raises as `launch.plan.compose`."""
    plan = compose(recipe, overrides)
    return replace(plan, environment={**plan.environment, "VERL_FILE_LOGGER_PATH": str(metrics)})


def train(plan: Plan, log: Path, *, echo: bool = False) -> None:
    """Train to the end. A run that fails ends the benchmark with its first error."""
    end = watch(plan.command, plan.environment, log, echo=echo)
    if end.code:
        sys.exit(f"the trainer ended with exit code {end.code}: {first_error(log)}")
