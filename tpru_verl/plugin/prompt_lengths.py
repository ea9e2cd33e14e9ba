"""Leaves out prompts that are longer than `data.max_prompt_length`, counted with their images expanded."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import datasets
import pyarrow as pa
import torch
from transformers import ProcessorMixin
from verl.utils.tokenizer import build_multimodal_processor_inputs

from tpru_verl.data.checks import LISTED
from tpru_verl.data.source.rows import BATCH_ROWS, Row, records_of
from tpru_verl.data.tokens.processors import Conversation, Size, UnsupportedProcessorError
from tpru_verl.data.tokens.prompts import COLUMN, KEY_COLUMN, PromptCounter, stored_counts
from tpru_verl.terminal import line_of

if TYPE_CHECKING:
    from tpru_verl.plugin.dataset import TPRUDataset

logger = logging.getLogger(__name__)

ROW = "_tpru_row"  # position in the files as they came, kept through every selection


def without_long_prompts(
    data: TPRUDataset, frame: datasets.Dataset, sizes: Sequence[Sequence[Size]]
) -> datasets.Dataset:
    """Leaves out prompts over `max_prompt_length` tokens, images expanded, as veRL does.

    `sizes`: width and height of each row's images, by their headers. Other than veRL's, a row that raises is
    a broken row (veRL drops it as if it were too long), what is left out is counted and listed, and images
    are not decoded: see `tpru_verl.data.tokens.prompts`.
    """
    if not data.filter_overlong_prompts:
        return frame
    lengths, errors = _prompt_lengths(data, frame, sizes)
    frame = data.drop(frame, {i: error for i, error in enumerate(errors) if error})
    lengths = [n for n, error in zip(lengths, errors, strict=True) if not error]
    fits = [i for i, n in enumerate(lengths) if n <= data.max_prompt_length]
    if not fits:
        raise ValueError(
            f"data.max_prompt_length={data.max_prompt_length}: found {min(lengths)} to {max(lengths)} "
            f"tokens in all {len(lengths)} rows, none fits; raise it or lower data.max_pixels"
        )
    if len(fits) < len(lengths):
        long = sorted(set(range(len(lengths))) - set(fits))
        rows = frame[ROW]
        logger.warning(
            "%d of %d rows are longer than data.max_prompt_length=%d tokens and left out: %s%s",
            len(long),
            len(lengths),
            data.max_prompt_length,
            ", ".join(f"{data.place(rows[i])} ({lengths[i]})" for i in long[:LISTED]),
            ", ..." if len(long) > LISTED else "",
        )
    return frame.select(fits)


def rows_of_frame(data: TPRUDataset, frame: datasets.Dataset) -> Iterator[Row]:
    """The frame's rows, BATCH_ROWS in memory at a time; bytes of images in the frame are not copied."""
    yield from (data.row_of(record) for batch in _records(frame, data.image_key) for record in batch)


def _records(frame: datasets.Dataset, images: str = "") -> Iterator[list[dict[str, object]]]:
    """Rows as dictionaries, up to BATCH_ROWS at once; `images` is the column of encoded images, if any."""
    if "Json(" in repr(frame.features):  # `datasets` keeps a column of several types as JSON, and decodes it
        yield from ([record] for record in cast("Iterator[dict[str, object]]", frame))
        return
    for table in cast("Iterator[pa.Table]", frame.with_format("arrow").iter(BATCH_ROWS)):
        yield records_of(table, images) if images else table.to_pylist()


def _prompt_lengths(
    data: TPRUDataset, frame: datasets.Dataset, sizes: Sequence[Sequence[Size]]
) -> tuple[list[int], list[str]]:
    """Tokens of each row's prompt, and what it raises ("" for nothing)."""
    try:
        counter = PromptCounter(
            cast(ProcessorMixin, data.processor),
            data.prompt_template,
            data.pixel_bounds,
            processor_kwargs=data.mm_processor_kwargs,
            chat_kwargs=_chat_kwargs(data),
        )
    except UnsupportedProcessorError as error:
        logger.warning("prompts are counted by the whole processor, some 30 rows a second: %s", error)
        return _measured(data, frame)
    lengths = _stored_lengths(data, frame, counter)
    errors = [""] * len(frame)
    todo = [i for i, length in enumerate(lengths) if length < 0]
    rest = frame if len(todo) == len(frame) else frame.select(todo)
    doubts = []
    for i, count in zip(todo, _counted(data, rest, [sizes[i] for i in todo], counter), strict=True):
        if isinstance(count, int):
            lengths[i] = count
            continue
        found = _measure(data, frame[i], forked=False)  # the whole processor has the last word
        lengths[i], errors[i] = cast(int, found["tokens"]), cast(str, found["error"])
        if not found["error"]:
            doubts.append(line_of(count))
    if doubts:
        logger.warning(
            "%d of %d prompts had to be counted by the whole processor, some 30 rows a second: %s",
            len(doubts),
            len(frame),
            doubts[0],
        )
    return lengths, errors


def _stored_lengths(data: TPRUDataset, frame: datasets.Dataset, counter: PromptCounter) -> list[int]:
    """What `tpru data prepare` counted, -1 where it did not, or not for this model and these settings."""
    if not {COLUMN, KEY_COLUMN} <= set(frame.column_names):
        return [-1] * len(frame)
    table = frame.select_columns([COLUMN, KEY_COLUMN]).with_format("arrow")[:]
    lengths, others = stored_counts(table, counter.key)
    if others:
        logger.warning(
            "%s of %d of %d rows was counted for another model or other settings (%s is not %s): counting"
            " anew",
            COLUMN,
            others,
            len(frame),
            KEY_COLUMN,
            counter.key,
        )
    return lengths.tolist()


def _counted(
    data: TPRUDataset, frame: datasets.Dataset, sizes: Sequence[Sequence[Size]], counter: PromptCounter
) -> Iterator[int | Exception]:
    """Tokens of each row's prompt, or a reason why headers do not tell."""
    at = 0
    for records in _records(frame.remove_columns(data.image_key)):
        asked = [_asked(data, record, len(sizes[at + i])) for i, record in enumerate(records)]
        sound = [(chat, sizes[at + i]) for i, chat in enumerate(asked) if not isinstance(chat, Exception)]
        counts = iter(counter.tokens([chat for chat, _ in sound], [images for _, images in sound]))
        yield from (chat if isinstance(chat, Exception) else next(counts) for chat in asked)
        at += len(asked)


def _asked(data: TPRUDataset, record: Mapping[str, object], images: int) -> Conversation | Exception:
    try:
        return data.chat_of(data.row_of(record), [""] * images)
    except Exception as error:
        return error


def _measured(data: TPRUDataset, frame: datasets.Dataset) -> tuple[list[int], list[str]]:
    """As `_prompt_lengths`, by the whole processor, in `filter_overlong_prompts_workers` processes."""
    several = data.num_workers and data.num_workers > 1 and len(frame) > 256
    measured = frame.map(
        partial(_measure, data),
        fn_kwargs={"forked": bool(several)},
        num_proc=data.num_workers if several else None,
        remove_columns=frame.column_names,
        load_from_cache_file=False,  # the measure depends on the processor, which no fingerprint covers
        keep_in_memory=True,
        new_fingerprint="tpru-token-counts",
        desc="Counting the tokens of prompts",
    )
    return list(measured["tokens"]), list(measured["error"])


def _chat_kwargs(data: TPRUDataset) -> dict[str, object]:
    chat = dict(data.apply_chat_template_kwargs)
    return chat if data.tool_schemas is None else {**chat, "tools": data.tool_schemas}


def _measure(data: TPRUDataset, record: Mapping[str, object], forked: bool) -> dict[str, object]:
    if forked:  # OpenMP's threads do not survive a fork: a parallel region would wait for them for ever
        torch.set_num_threads(1)
    processor = cast(ProcessorMixin, data.processor)
    chat = cast("dict[str, Any]", _chat_kwargs(data))
    try:
        messages = data.chat(data.row_of(record))
        text = processor.apply_chat_template(
            cast("list[dict[str, str]]", messages), add_generation_prompt=True, tokenize=False, **chat
        )
        images, videos, audios = data._process_multi_modal_info(messages, data.patch_size, data.config)
        inputs = build_multimodal_processor_inputs(
            processor,
            text=[text],
            images=images,
            videos=videos,
            audio=audios,
            mm_processor_kwargs=data.mm_processor_kwargs,
        )
    except Exception as error:
        return {"tokens": 0, "error": f"{type(error).__name__}: {line_of(error)}"}
    return {"tokens": len(inputs["input_ids"][0]), "error": ""}
