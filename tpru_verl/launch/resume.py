"""Whether a run would resume from a checkpoint of an earlier run in its folder, and to what end.

veRL and EasyR1 do so by default. A second start of the same command then trains nothing and replaces the
first one's metrics; with other data it goes on from a model that was trained on something else.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from tpru_verl import trainers
from tpru_verl.checkpoints import STEP, is_whole, steps_of
from tpru_verl.files import write_json, write_text
from tpru_verl.launch import checks
from tpru_verl.launch.settings import Settings

logger = logging.getLogger("tpru_verl")

TRACKER = "latest_checkpointed_iteration.txt"  # veRL's: the step of the checkpoint that it resumes
NOTE = "tpru_run.json"  # beside the checkpoints: what a run of `tpru train` was started with


class NothingLeftError(ValueError):
    """A checkpoint would be resumed that has no step left to train."""


def check_resume(settings: Settings, *, rows: int | None) -> None:
    """`rows`: usable rows of the training data, None where they are not known.

    Raises:
        NothingLeftError: a checkpoint would be resumed that has no step left to train.
        ValueError: it is of other data or another model.
    """
    step, folder = last_step(settings), Path(settings.text("checkpoints"))
    if step is None:
        return
    steps = total_steps(settings, rows)
    fix = f"give another {settings.key('checkpoints')}, or start anew with {_anew(settings)}"
    found = f"{settings.said('checkpoints')}: found a checkpoint of step {step}, which would be resumed"
    if steps and step >= steps:
        raise NothingLeftError(
            f"{found} with nothing left to train: the run ends at step {steps}; "
            f"{fix}, or train longer with {settings.key('total_steps')}"
        )
    before = noted(folder)
    if "model" in before:  # of a note that kept it as it was typed
        before = {**before, "model": _found_anywhere(str(before["model"]))}
    for name, value in _described(settings).items():
        if name in before and before[name] != value:
            key = settings.key(name)
            raise ValueError(f"{found}, of a run with {key}={before[name]}, expected {key}={value}; {fix}")


def warn_of_resume(recipe: Mapping) -> None:
    """Log what `mend_tracker` and `check_resume` say of veRL's own command, which may resume on purpose."""
    settings = Settings(trainers.VERL, recipe)
    if mended := mend_tracker(settings):
        logger.warning("%s", mended)
    try:
        check_resume(settings, rows=checks.row_count(settings))
    except ValueError as error:
        logger.warning("%s", error)


def last_step(settings: Settings) -> int | None:
    """The step of the checkpoint that the trainer would resume by itself, None where it starts anew."""
    folder = Path(settings.text("checkpoints"))
    if settings.trainer == trainers.VERL:
        if settings.text("resume") != "auto":
            return None
        tracker, name = folder / TRACKER, ""
    else:
        if not settings["resume"] or settings["load_checkpoint"]:
            return None
        tracker, name = folder / "checkpoint_tracker.json", "last_global_step"
    try:
        text = tracker.read_text(encoding="utf-8")
        step = int(json.loads(text)[name] if name else text)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return step if (folder / f"{STEP}{step}").is_dir() else None


def mend_tracker(settings: Settings) -> str | None:
    """Let veRL resume the newest whole checkpoint where its tracker names none, and say so in one sentence.

    A run that is killed while it saves may leave such a tracker: veRL removes the checkpoint before, and then
    writes the new one's step. On several nodes only the tracker's folder is looked for.
    """
    if settings.trainer != trainers.VERL or settings.text("resume") != "auto":
        return None
    folder = Path(settings.text("checkpoints"))
    found = steps_of(folder)
    whole = [step for step, path in found.items() if is_whole(path, all_ranks=settings.integer("nodes") <= 1)]
    try:
        named = (folder / TRACKER).read_text(encoding="utf-8").strip()
    except OSError:
        named = ""
    if not whole or (named.isdigit() and int(named) in whole):
        return None
    write_text(folder / TRACKER, str(whole[-1]))
    before = f"named step {named}, which is no whole checkpoint" if named else "named no step"
    return f"{folder / TRACKER} {before}; it names step {whole[-1]} now, the newest whole one"


def note_run(settings: Settings, run: Path) -> None:
    """Write beside the checkpoints what the run in the folder `run` is started with.

    A later `check_resume` reads it, and `tpru export`, for which the checkpoints may lie elsewhere.
    """
    if not settings["checkpoints"]:
        return
    folder = Path(settings.text("checkpoints"))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / NOTE, {**_described(settings), "run": str(run)})


def _anew(settings: Settings) -> str:
    value = "disable" if settings.trainer == trainers.VERL else "false"
    return f"{settings.key('resume')}={value}"


def _described(settings: Settings) -> dict[str, object]:
    return {
        "model": _found_anywhere(settings.text("model")),
        "train_files": settings.files("train_files"),
    }


def _found_anywhere(model: str) -> str:
    """A local model by its whole path: a relative one reads as a Hub id in another working directory."""
    path = Path(model).expanduser()
    return str(path.absolute()) if model and path.is_dir() else model


def noted(folder: Path) -> Mapping[str, object]:
    """What `note_run` wrote in this folder; nothing where it did not."""
    try:
        found = json.loads((folder / NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def total_steps(settings: Settings, rows: int | None) -> int:
    """Steps of the whole run, 0 where they are not known."""
    if given := settings.integer("total_steps"):
        return given
    batch = settings.integer("batch")
    return (rows or 0) // batch * settings.integer("epochs") if batch else 0
