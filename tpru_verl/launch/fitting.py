"""How many prompts fit into `max_prompt_length`, counted before a run that leaves out the others."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

from tpru_verl import hub, trainers
from tpru_verl.data.source.parts import is_local
from tpru_verl.launch.apart import ask
from tpru_verl.launch.settings import Settings

if TYPE_CHECKING:
    from tpru_verl.data.tokens.prompts import Asked, PromptCounter

BATCH = 64  # rows that are counted at once
SECONDS = 600


def check(settings: Settings) -> None:
    """Raise ValueError, in one line, where too few prompts fit: the trainer would end once the data are up.

    Counted until there are enough, which is soon for sound data. What cannot be counted is the trainer's to
    judge.
    """
    if not settings["filter"] or hub.missing(settings.text("model")):
        return
    try:
        found = ask(fitting_rows, request_of(settings), seconds=SECONDS)
    except (RuntimeError, ValueError):  # of models and data, of which the trainer says more
        return
    if said := too_few(settings, found):
        raise ValueError(f"{settings.said('prompt_length')}: {said}; {way_out(settings)}")


def too_few(settings: Settings, fitting: Mapping[str, int]) -> str:
    """Which data have too few rows left without the long prompts; "" for none.

    `fitting`: rows that fit, by `train_files` and `val_files`, without what is on the Hub.
    """
    for name, need in _needed(settings).items():
        if (rows := fitting.get(name, need)) < need:
            batch = ", one batch" if name == "train_files" else ""
            return f"found {rows} rows of {settings.key(name)} that fit, expected {need} or more{batch}"
    return ""


def way_out(settings: Settings) -> str:
    """What to do where prompts are too long."""
    return f"raise {settings.key('prompt_length')} or lower {settings.key('max_pixels')}"


def _needed(settings: Settings) -> dict[str, int]:
    return {"train_files": max(1, settings.integer("batch")), "val_files": 1}


def request_of(settings: Settings) -> dict[str, object]:
    """All that the length of the prompts depends on, as JSON: for functions in a process of their own."""
    return {
        "offline": bool(hub.offline()),
        "trainer": settings.trainer,
        "model": settings.text("model"),
        "trust": settings["trust_remote_code"],
        "files": {key: settings.files(key) for key in ("train_files", "val_files")},
        "needed": _needed(settings),
        "keys": asdict(settings.row_keys),
        "template": settings.template,
        "bounds": {k: settings[k] for k in ("min_pixels", "max_pixels") if settings[k] is not None},
        "processor_kwargs": settings.mm_processor_kwargs,
        "chat_kwargs": settings.chat_template_kwargs,
        "most": settings.integer("prompt_length"),
    }


def processor_of(request: Mapping[str, object]) -> Any:
    """The processor of the run's model; imports transformers. Raises whatever that raises."""
    if request.get("offline"):
        os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(str(request["model"]), trust_remote_code=bool(request["trust"]))


def counter_of(request: Mapping[str, object], processor: object) -> PromptCounter:
    """Counts prompts as the run's trainer does. Raises UnsupportedProcessorError."""
    from tpru_verl.data.tokens.prompts import EasyR1Counter, PromptCounter

    kind = PromptCounter if request["trainer"] == trainers.VERL else EasyR1Counter
    return kind(
        processor,  # type: ignore[arg-type]
        str(request["template"]),
        cast("dict[str, int]", request["bounds"]),
        processor_kwargs=cast("dict[str, object]", request["processor_kwargs"]),
        chat_kwargs=cast("dict[str, object]", request["chat_kwargs"]),
    )


def local_files(request: Mapping[str, object]) -> dict[str, list[str]]:
    """Files and folders by `train_files` and `val_files`; of what is on the Hub nothing is read."""
    files = cast("dict[str, list[str]]", request["files"])
    return {key: [name for name in names if is_local(name)] for key, names in files.items()}


def all_local(request: Mapping[str, object], key: str) -> bool:
    """Whether nothing of `train_files` or `val_files` is on the Hub, so that a count is of all rows."""
    return len(local_files(request)[key]) == len(cast("dict[str, list[str]]", request["files"])[key])


def usable_rows(
    request: Mapping[str, object], key: str, reserved: Collection[str], broken: list[tuple[str, str]]
) -> Iterator[tuple[str, Asked]]:
    """Place of each usable local row, and what of it is counted; adds the others to `broken`, and why."""
    from tpru_verl.data.checks import judged_rows
    from tpru_verl.data.source.forms import Source, TrainerKeys
    from tpru_verl.data.tokens.prompts import Asked

    keys = TrainerKeys(**cast("dict[str, Any]", request["keys"]))
    for name in local_files(request)[key]:
        for row, problems in judged_rows(Source.open(name, keys=keys), reserved=reserved):
            if problems:
                broken.append((row.place, "; ".join(problems)))
            else:
                yield row.place, Asked.of(row)


def fitting_rows(request: Mapping[str, object]) -> dict[str, int]:
    """Rows that fit, up to as many as are needed, for the request of `request_of`; imports transformers."""
    counter = counter_of(request, processor_of(request))
    needed, most = cast("dict[str, int]", request["needed"]), cast(int, request["most"])
    found: dict[str, int] = {}
    for key in filter(lambda key: all_local(request, key), needed):
        rows, fits = usable_rows(request, key, counter.reserved, []), 0
        while fits < needed[key] and (batch := list(islice(rows, BATCH))):
            counts = counter.counts([asked for _, asked in batch])
            # What headers do not tell, the whole processor counts in the trainer: here it fits.
            fits += sum(not isinstance(count, int) or count <= most for count in counts)
        found[key] = fits
    return found
