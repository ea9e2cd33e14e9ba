"""A run before its start: a recipe composed for the installed trainer, and the command that starts it."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tpru_verl import recipes, trainers
from tpru_verl.launch import checks as launch
from tpru_verl.launch import easyr1, fitting, folder, needs, overlays
from tpru_verl.launch.resume import check_resume
from tpru_verl.launch.settings import Settings
from tpru_verl.recipes.overlays import key_of, taken
from tpru_verl.redaction import SHORTEST, is_secret_setting, keys_of_settings, looks_secret, redact_settings

if TYPE_CHECKING:
    from omegaconf import DictConfig

MOST_ANSWERS = 64  # of a step, that are kept; of a validation four times as many (`plugin.records`)


@dataclass(frozen=True)
class Plan:
    """`environment`: the variables that the command needs beside those that are there.

    `doubts`: settings that are hardly meant, each as a line.
    """

    trainer: trainers.Trainer
    settings: Settings
    command: list[str]
    environment: Mapping[str, str]
    doubts: Sequence[str] = ()

    def __str__(self) -> str:
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*variables, shlex.join(self.shown(self.command))])

    @property
    def secrets(self) -> list[str]:
        """Keys that the settings hold and a log should not: typed, or taken from the environment."""
        return [*keys_of_settings(self.settings.config, urls=SHORTEST)]

    def shown(self, words: Iterable[str]) -> list[str]:
        """Words of the command, or overrides, with `***` for each key."""
        return redact_settings(words, self.settings.config)

    def check(self) -> None:
        """Look at GPU, packages, CPUs, prompts and all that `check_data` looks at, before anything starts.

        Raises RuntimeError for what is missing here, ValueError as `fitting.check` does, and as `check_data`.
        """
        launch.gpu_is_there(self.settings)
        needs.check(self.settings)
        self.check_data()
        fitting.check(self.settings)  # last, because it takes seconds; the doctor counts all rows itself

    def check_data(self) -> None:
        """Look at model, data, each row, disk, Ray and old checkpoints.

        Raises as `checks.check`, `checks.usable_rows` and `resume.check_resume` do.
        """
        look = launch.check if self.trainer.name == trainers.VERL else launch.check_easyr1
        look(self.settings.config)
        rows = launch.usable_rows(self.settings)
        launch.enough_rows(self.settings, rows)
        check_resume(self.settings, rows=rows)


def compose(recipe: str, overrides: Sequence[str] = (), run_folder: Path | None = None) -> Plan:
    """The run of `RECIPE OVERRIDES`, which writes into `run_folder`; without one, where the trainer does.

    Raises:
        FileNotFoundError: an adapter that is none.
        ValueError: an unknown recipe, overlay or key, one of the other trainer, a value that it refuses, an
            address of a storage (`checks.on_a_disk`), and settings that do not go together
            (`launch.overlays`).
        RuntimeError: no trainer, both, a veRL that is too old, or EasyR1 beside a package that breaks it.
    """
    trainer = trainers.find()
    if reasons := trainers.unfit(trainer):
        raise RuntimeError("\n".join(reasons))
    if run_folder:
        overrides = [*_placed(trainer.name, run_folder), *overrides]
    if trainer.name == trainers.EASYR1:
        arguments = recipes.easyr1_arguments(recipe, overrides)
        settings = Settings(trainer.name, easyr1.compose(arguments))
        launch.on_a_disk(settings)
        return Plan(trainer, settings, [sys.executable, "-m", trainer.module, *arguments], {})
    from omegaconf import OmegaConf

    overrides = [recipes.quoted(item) for item in overrides]
    chosen = taken(overrides)
    if chosen and "trainer.experiment_name" not in map(key_of, overrides):
        # An overlay gives its own name, and so one folder of checkpoints to all recipes. `trainer={...}` of
        # the user comes after this one.
        overrides.insert(0, f"trainer.experiment_name={'_'.join([recipe, *chosen])}")
    # Those of Hydra itself, such as hydra.run.dir, are none of a recipe's.
    config = recipes.compose(recipe, [item for item in overrides if not key_of(item).startswith("hydra.")])
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    loggers = plain["trainer"].get("logger") or []
    if run_folder and "file" not in loggers:  # the run's line and its report read that file
        again = "" if "logger" in plain["trainer"] else "++"  # `~trainer.logger` took the key out
        loggers = [*([loggers] if isinstance(loggers, str) else loggers), "file"]
        plain["trainer"]["logger"] = loggers
        overrides.append(f"{again}trainer.logger=[{','.join(loggers)}]")
    settings = Settings(trainer.name, {str(key): value for key, value in plain.items()})
    launch.on_a_disk(settings)
    overlays.check(settings.config)
    overlays.check_size(settings, chosen)
    environment = launch.environment(config)
    if run_folder:
        most = os.environ.get("TPRU_MOST_ANSWERS", MOST_ANSWERS)
        environment |= {
            "VERL_FILE_LOGGER_PATH": str(run_folder / folder.METRICS),
            "TPRU_MOST_ANSWERS": str(most),
        }
    doubts = [*recipes.doubtful_keys(recipe, overrides), *overlays.doubts(settings, chosen)]
    if needs.joins_a_cluster(plain):
        stop = {"TPRU_STOP_FILE": str(run_folder / folder.STOP)} if run_folder else {}
        read, kept = _read_here(config)
        skipped = os.environ.get("TPRU_SKIP_PATCHES")
        plugin = {"TPRU_SKIP_PATCHES": skipped} if skipped else {}
        overrides += [*read, *_for_workers({**plugin, **environment, **stop})]
        doubts += [
            f"{key} is read on the cluster: its nodes need the variable, set before Ray starts there"
            for key in kept
        ]
    command = [sys.executable, "-m", trainer.module, "--config-name", recipe, *overrides]
    return Plan(trainer, settings, command, environment, doubts)


def _read_here(config: DictConfig) -> tuple[list[str], list[str]]:
    """Overrides with the values of settings that read `${oc.env:NAME}`; and the settings that stay.

    Those are keys: the run's folder keeps the command, and Ray's records the configuration.
    """
    from omegaconf import OmegaConf

    overrides, kept = [], []
    for path, text in _leaves(OmegaConf.to_container(config, resolve=False)):
        if "${oc.env:" not in text:
            continue
        value = OmegaConf.select(config, path)
        secret = looks_secret(str(value)) or any(is_secret_setting(part) for part in path.split("."))
        if isinstance(value, str) and not secret:
            overrides.append(f"++{path}={recipes.in_quotes(value)}")
        elif value is not None:  # of `${oc.env:NAME,null}`
            kept.append(f"{path}={text}")
    return overrides, kept


def _leaves(node: object, path: str = "") -> Iterator[tuple[str, str]]:
    """Path and text of each setting; a list is one."""
    if isinstance(node, dict):
        for name, inner in node.items():
            yield from _leaves(inner, f"{path}.{name}" if path else str(name))
    else:
        yield path, str(node)


def _for_workers(environment: Mapping[str, str]) -> list[str]:
    """Overrides that hand variables to the run's processes on a cluster, which inherit those of its nodes."""
    key = "ray_kwargs.ray_init.runtime_env.env_vars"
    return [f"++{key}.{name}={recipes.in_quotes(value)}" for name, value in environment.items()]


def _placed(trainer: str, run_folder: Path) -> list[str]:
    """Overrides by which the trainer writes into a run's folder; those of the user come after them."""
    if trainer == trainers.EASYR1:
        return [f"trainer.save_checkpoint_path={run_folder / folder.CHECKPOINTS}"]
    places = {
        "trainer.default_local_dir": folder.CHECKPOINTS,
        "trainer.rollout_data_dir": folder.ROLLOUTS,
        "trainer.validation_data_dir": folder.VALIDATION,
        "hydra.run.dir": folder.HYDRA,
    }
    # Hydra's own copy of the settings would hold typed keys; `recipe.yaml` is there.
    return [*(f"{key}={run_folder / name}" for key, name in places.items()), "hydra.output_subdir=null"]
