"""Patches for the files that a run of veRL 0.9.1 writes. docs/patches.md lists all patches."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tpru_verl.files import write_bytes
from tpru_verl.plugin.hooks import replace, require

if TYPE_CHECKING:
    from tensordict import TensorDict

# How many answers of a step are written to `trainer.rollout_data_dir`; of a validation, VALIDATION times as
# many to `trainer.validation_data_dir`. `tpru train` sets it. Without it veRL writes them all.
MOST_ANSWERS = "TPRU_MOST_ANSWERS"
VALIDATION = 4


def keep_metrics(tracking: ModuleType) -> None:
    """Stock veRL opens its file of metrics anew, so that a resumed run loses those of the steps before.

    The first step that is logged tells where the run goes on. Lines of earlier steps are kept, those of steps
    that are trained again are left out. A run that starts at the beginning starts its file anew.
    """
    require(tracking, "FileLogger", "orjson")

    class KeepingFileLogger(tracking.FileLogger):
        def __init__(self, project_name: str, experiment_name: str) -> None:
            self.project_name, self.experiment_name = project_name, experiment_name
            root = Path(os.getenv("VERL_FILE_LOGGER_ROOT", ".")).expanduser()
            default = root / project_name / f"{experiment_name}.jsonl"
            self.filepath = str(Path(os.getenv("VERL_FILE_LOGGER_PATH") or default).absolute())
            print(f"File of metrics: {self.filepath}")
            self.fp = None

        def log(self, data: Mapping[str, object], step: int) -> None:
            if self.fp is None:
                path = Path(self.filepath)
                # A validation before training bears the number of the step that was resumed.
                done = step if "training/global_step" not in data else step - 1
                write_bytes(path, _lines_until(path, done))
                self.fp = path.open("ab", buffering=0)
            super().log(data, step)

        def finish(self) -> None:
            if self.fp is not None:
                super().finish()

    replace(tracking, "FileLogger", KeepingFileLogger)


def _lines_until(path: Path, done: int) -> bytes:
    """The whole lines of steps up to `done`; none for a run that starts at the beginning."""
    if done <= 0 or not path.is_file():
        return b""
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            record = json.loads(line)
        except ValueError:  # cut off when the run was killed
            continue
        if line.endswith(b"\n") and isinstance(record, dict) and record.get("step", done + 1) <= done:
            kept.append(line)
    return b"".join(kept)


def sample_answers(trainer_base: ModuleType) -> None:
    """Stock veRL writes every answer of every step, decoded one by one, and none says which row it answers.

    With the variable MOST_ANSWERS, whole groups are drawn from each step before anything is decoded, and the
    same rows from each validation. Answers have the `task` of their row, and its `row_id`, or its place where
    it has no id.
    """
    trainer = trainer_base.PPOTrainer
    require(trainer, "fit", "_log_rollout_data", "_dump_generations")
    fit, log, dump = trainer.fit, trainer._log_rollout_data, trainer._dump_generations
    rows: dict[str, dict[str, object]] = {}
    training: set[str] = set()  # uids of rows that are not of a validation

    def fit_noting_rows(self: Any, agent_loop_manager: Any) -> None:
        generate = agent_loop_manager.generate_sequences

        def generate_sequences(prompts: TensorDict, *args: object, **kwargs: object) -> object:
            written = "validation_data_dir" if "validate" in prompts else "rollout_data_dir"
            if self.config.trainer.get(written):
                found = rows_of(prompts)
                rows.update(found)
                training.update(() if "validate" in prompts else found)
            return generate(prompts, *args, **kwargs)

        agent_loop_manager.generate_sequences = generate_sequences
        fit(self, agent_loop_manager)

    def _log_rollout_data(self: Any, batch: Any, timing_raw: dict, rollout_data_dir: str) -> None:
        chosen = whole_groups(batch.keys, most())
        keys, tags = [batch.keys[i] for i in chosen], [batch.tags[i] for i in chosen]
        log(self, type(batch)(keys, tags, batch.partition_id), timing_raw, rollout_data_dir)
        done = {_group(key) for key in batch.keys}  # those that were not drawn, too
        if self.config.trainer.v1.trainer_mode == "sync":
            done |= training  # and prompts that were thrown away: in turns, none outlives its step
        training.difference_update(done)
        for uid in done:
            rows.pop(uid, None)

    def _dump_generations(
        self: Any,
        inputs: list[str],
        outputs: list[str],
        gts: list[Any],
        scores: list[float],
        reward_extra_infos_dict: dict[str, list],
        dump_path: str,
    ) -> None:
        extra = dict(reward_extra_infos_dict)
        if uids := extra.get("uid"):
            for name in ("row_id", "task"):
                extra[name] = [rows.get(_group(uid), {}).get(name) for uid in uids]
            for uid in uids:
                rows.pop(_group(uid), None)
        chosen = list(range(len(inputs)))
        if dump_path == self.config.trainer.get("validation_data_dir"):
            names = [str(row) for row in extra.get("row_id") or []]
            named = [f"{name} {text}" for name, text in zip(names or [""] * len(inputs), inputs, strict=True)]
            limit = most()
            chosen = same_ones(named, None if limit is None else VALIDATION * limit)
        columns = [[column[i] for i in chosen] for column in (inputs, outputs, gts, scores)]
        extra = {
            name: [values[i] for i in chosen] for name, values in extra.items() if len(values) == len(inputs)
        }
        dump(self, *columns, extra, dump_path)

    trainer.fit = fit_noting_rows
    trainer._log_rollout_data = _log_rollout_data
    trainer._dump_generations = _dump_generations


def most() -> int | None:
    """The value of MOST_ANSWERS, None for all."""
    return int(found) if (found := os.environ.get(MOST_ANSWERS, "")).isdigit() else None


def whole_groups(keys: Sequence[str], most: int | None) -> list[int]:
    """Places of the answers of whole groups, `most` at most but for the first group. All for None.

    The uids of veRL's keys are drawn at random, so their order is a random one.
    """
    if most is None:
        return list(range(len(keys)))
    groups = groups_of(keys)
    chosen: list[int] = []
    for group in sorted(groups):
        if chosen and len(chosen) + len(groups[group]) > most:
            break
        chosen += groups[group]
    return sorted(chosen)


def same_ones(names: Sequence[str], most: int | None) -> list[int]:
    """Places of the `most` names with the smallest hashes: the same rows of each validation. All for None."""
    order = sorted(range(len(names)), key=lambda i: hashlib.sha256(names[i].encode()).digest())
    return sorted(order[:most])


def groups_of(keys: Sequence[str]) -> dict[str, list[int]]:
    """The places of each prompt's samples, by its uid."""
    found: dict[str, list[int]] = {}
    for place, key in enumerate(keys):
        found.setdefault(_group(key), []).append(place)
    return found


def _group(key: str) -> str:
    """veRL's key is the prompt's uid, the number of the sample, and that of its output."""
    return key.rsplit("_", 2)[0]


def rows_of(prompts: TensorDict) -> dict[str, dict[str, object]]:
    if "uid" not in prompts or "extra_info" not in prompts:
        return {}
    uids, infos = as_list(prompts["uid"]), as_list(prompts["extra_info"])
    return {
        str(uid): {"row_id": info.get("row_id") or info.get("place"), "task": info.get("task")}
        for uid, info in zip(uids, infos, strict=True)
        if info
    }


def as_list(column: Any) -> list[Any]:
    return column.tolist() if hasattr(column, "tolist") else list(column)
