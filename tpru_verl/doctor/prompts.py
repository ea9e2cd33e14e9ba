"""The model's processor and chat template, and the longest prompt of the data, from a process of its own.

Nothing is decoded and the model's weights are not read; transformers, which this needs, imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

from tpru_verl import hub, trainers
from tpru_verl.data.tokens.pictures import blindness, pixel_bounds
from tpru_verl.launch import fitting
from tpru_verl.launch.apart import ask
from tpru_verl.models import model_refusal, verl_refusal
from tpru_verl.terminal import line_of

if TYPE_CHECKING:
    from tpru_verl.launch.settings import Settings


@dataclass
class Prompts:
    """`error` where the processor cannot be had; `lengths_error` where prompts cannot be counted."""

    processor: str = ""
    error: str = ""
    rows: int = 0
    longest: int = 0
    longest_row: str = ""
    images: int = 0  # the most that a row has
    too_long: int = 0
    # Usable rows that fit, by `train_files` and `val_files`, without what is on the Hub.
    fitting: dict[str, int] = field(default_factory=dict)
    lengths_error: str = ""
    unusable: str = ""  # which rows cannot be trained on, and why
    bounds_error: str = ""  # of `data.min_pixels` and `data.max_pixels`, against the processor's own
    bounds_warning: str = ""


def look(settings: Settings) -> Prompts:
    """Load the processor of the run's model and measure the prompts of its local data. Raises nothing."""
    if why := hub.missing(settings.text("model")):
        return Prompts(error=why)
    try:
        return Prompts(**ask(measured, fitting.request_of(settings), seconds=1800))
    except RuntimeError as error:
        return Prompts(error=str(error))


def measured(request: Mapping[str, object]) -> dict[str, Any]:
    """The fields of `Prompts` for the request of `look`; imports transformers."""
    return asdict(_look(request))


def _look(request: Mapping[str, object]) -> Prompts:
    verl, model = request["trainer"] == trainers.VERL, str(request["model"])
    if verl and (refusal := model_refusal(model)):
        return Prompts(error=refusal)  # before it is loaded, which may need packages or code of others
    try:
        processor = fitting.processor_of(request)
    except Exception as error:  # of the Hub, of files, of versions
        return Prompts(error=f"{type(error).__name__}: {_line(error)}")
    found = Prompts(processor=type(processor).__name__)
    if verl and (refusal := verl_refusal(type(processor).__name__)):
        return Prompts(error=refusal)
    if getattr(processor, "image_processor", None) is None:
        return Prompts(
            error=f"found {type(processor).__name__} without an image processor: no model for images"
        )
    if not getattr(processor, "chat_template", None):
        return Prompts(error=f"found {type(processor).__name__} without a chat template")
    told = cast("dict[str, object]", request["processor_kwargs"])
    if verl and (lost := blindness(processor, processor_kwargs=told)):
        return Prompts(error=f"{lost}; no image would reach the model")
    if verl:
        try:
            _, found.bounds_warning = pixel_bounds(
                cast("dict[str, object]", request["bounds"]), processor, told
            )
        except ValueError as error:
            found.bounds_error = str(error)
    try:
        _measure(request, processor, found)
    except Exception as error:  # of data, of processors that headers do not tell
        found.lengths_error = _line(error)
    return found


def _measure(request: Mapping[str, object], processor: object, found: Prompts) -> None:
    from tpru_verl.data.checks import unusable_rows

    counter = fitting.counter_of(request, processor)
    most = cast(int, request["most"])
    broken: list[tuple[str, str]] = []
    for key in fitting.local_files(request):
        rows, fits = fitting.usable_rows(request, key, counter.reserved, broken), 0
        while batch := list(islice(rows, fitting.BATCH)):
            counts = counter.count(asked for _, asked in batch)
            for (place, asked), count in zip(batch, counts, strict=True):
                found.rows += 1
                fits += count <= most
                found.too_long += count > most
                found.images = max(found.images, len(asked.images))
                if count > found.longest:
                    found.longest, found.longest_row = count, place
        if fitting.all_local(request, key):
            found.fitting[key] = fits
    if broken:
        found.unusable = unusable_rows(broken, found.rows + len(broken))


def _line(error: BaseException) -> str:
    """Without the paragraphs that transformers adds."""
    return line_of(error)[:300]
