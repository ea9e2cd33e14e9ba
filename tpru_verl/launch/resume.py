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
from tpru_verl.checkpoints import ADAPTED, STEP, Checkpoint, is_whole, steps_of
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
        ValueError: it is of other data or another model, or cannot be loaded with these settings.
    """
    step, given = last_step(settings), _given(settings)
    if step is None:
        return
    ends = _ends(settings, rows)
    place = "load_checkpoint" if given else "checkpoints"
    fix = f"give another {settings.key(place)}, or start anew with {_anew(settings)}"
    found = f"{settings.said(place)}: found a checkpoint of step {step}, which would be resumed"
    if reached := [name for name, end in ends.items() if step >= end]:
        raise NothingLeftError(
            f"{found} with nothing left to train: the run ends at step {min(ends.values())}; "
            f"{fix}, or train longer with {' and '.join(map(settings.key, reached))}"
        )
    if wrong := _misfit(settings, Checkpoint(step, _folder(settings, step) / "actor")):
        raise ValueError(f"{found}, {wrong}; {fix}")
    before = {} if given else noted(Path(settings.text("checkpoints")))  # one that is named is meant
    if "model" in before:  # of a note that kept it as it was typed
        before = {**before, "model": _found_anywhere(str(before["model"]))}
    for name, value in _described(settings).items():
        if name in before and before[name] != value:
            key = settings.key(name)
            raise ValueError(f"{found}, of a run with {key}={before[name]}, expected {key}={value}; {fix}")


def _misfit(settings: Settings, checkpoint: Checkpoint) -> str:
    """Why the trainer could not load a checkpoint, after minutes; "" where it could."""
    ranks, world = checkpoint.ranks, settings.world
    if not ranks:
        return ""
    if ranks != world:
        gpus = f"{settings.said('nodes')} {settings.said('gpus')}"
        return (
            f"in shards of {ranks} GPUs, expected {world} ({gpus}): a run goes on with as many as it saved on"
        )
    if settings.trainer != trainers.VERL:
        return ""  # EasyR1 notes nothing of adapters
    rank = settings.integer("lora_rank")
    try:
        found = json.loads((checkpoint.actor / ADAPTED).read_text(encoding="utf-8"))["r"]
    except FileNotFoundError:
        found = rank if settings.integer("nodes") > 1 else 0  # it is on the node of the first rank
    except (OSError, ValueError, KeyError, TypeError):
        return f"with an unreadable {ADAPTED}"
    if found == rank:
        return ""
    adapters = f"adapters of rank {found}" if found else "no adapters"
    return f"with {adapters}, expected {settings.said('lora_rank')}"


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
    """The step of the checkpoint that the trainer would resume, None where it starts anew."""
    given = _given(settings)
    if given is not None:
        number = given.name.removeprefix(STEP)
        return int(number) if number.isdecimal() else None
    return saved_step(settings) if _resumes_itself(settings) else None


def resumed(settings: Settings) -> str | None:
    """A sentence on the checkpoint that the trainer resumes, None where it starts anew."""
    step = last_step(settings)
    return None if step is None else f"resuming after step {step} ({_folder(settings, step)})"


def _folder(settings: Settings, step: int) -> Path:
    """Of the checkpoint that the trainer resumes, which is that of `step`."""
    return _given(settings) or Path(settings.text("checkpoints")) / f"{STEP}{step}"


def saved_step(settings: Settings) -> int | None:
    """The step of the run's own last checkpoint, None where there is none."""
    folder = Path(settings.text("checkpoints"))
    verl = settings.trainer == trainers.VERL
    tracker = folder / (TRACKER if verl else "checkpoint_tracker.json")
    try:
        text = tracker.read_text(encoding="utf-8")
        step = int(text if verl else json.loads(text)["last_global_step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return step if (folder / f"{STEP}{step}").is_dir() else None


def has_saved(settings: Settings, since: float) -> bool:
    """Whether the run has saved a checkpoint, which it can go on from, after the time `since`."""
    if settings.trainer == trainers.VERL:
        saved = [path / "data.pt" for path in _whole(settings).values()]
    else:
        step = saved_step(settings)
        saved = [] if step is None else [Path(settings.text("checkpoints")) / f"{STEP}{step}"]
    return any(path.stat().st_mtime >= since for path in saved)


def _whole(settings: Settings) -> dict[int, Path]:
    """veRL's whole checkpoints in the run's folder, by step."""
    found, all_ranks = steps_of(Path(settings.text("checkpoints"))), settings.integer("nodes") <= 1
    return {step: path for step, path in found.items() if is_whole(path, all_ranks=all_ranks)}


def _given(settings: Settings) -> Path | None:
    """The folder of the checkpoint that the run is told to begin with."""
    path = settings.text("load_checkpoint")
    if not path or (settings.trainer == trainers.VERL and settings.text("resume") != "resume_path"):
        return None
    return Path(path)


def _resumes_itself(settings: Settings) -> bool:
    """Whether the trainer looks for a checkpoint in the run's folder."""
    if settings.trainer == trainers.VERL:
        return settings.text("resume") == "auto"
    return bool(settings["resume"]) and not settings["load_checkpoint"]


def mend_tracker(settings: Settings) -> str | None:
    """Let veRL resume the newest whole checkpoint where its tracker names none, and say so in one sentence.

    A run that is killed while it saves may leave such a tracker: veRL removes the checkpoint before, and then
    writes the new one's step. On several nodes only the tracker's folder is looked for.
    """
    if settings.trainer != trainers.VERL or not _resumes_itself(settings):
        return None
    folder = Path(settings.text("checkpoints"))
    whole = [*_whole(settings)]
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
    return min(_ends(settings, rows).values(), default=0)


def _ends(settings: Settings, rows: int | None) -> dict[str, int]:
    """The steps at which the run ends, by our name of the setting that says so.

    veRL ends at the first of them. EasyR1 counts no epochs where it is told the steps.
    """
    batch, most, usable = settings.integer("batch"), settings.integer("most_rows"), rows or 0
    usable = min(usable, most) if most > 0 else usable
    ends = {"total_steps": settings.integer("total_steps")}
    if settings.trainer == trainers.VERL or not ends["total_steps"]:
        ends["epochs"] = usable // batch * settings.integer("epochs") if batch else 0
    return {name: end for name, end in ends.items() if end}
