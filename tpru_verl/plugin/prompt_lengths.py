"""Leaves out prompts that are longer than `data.max_prompt_length`, counted with their images expanded."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import datasets
import numpy as np
import pyarrow as pa
import torch
from transformers import ProcessorMixin
from verl.utils.tokenizer import build_multimodal_processor_inputs

from tpru_verl.data.source.cells import image_bytes, image_cells
from tpru_verl.data.tokens.processors import Conversation, Size, UnsupportedProcessorError
from tpru_verl.data.tokens.prompts import COLUMN, KEY_COLUMN, PromptCounter, image_size, stored_counts
from tpru_verl.terminal import line_of

if TYPE_CHECKING:
    from tpru_verl.plugin.dataset import TPRUDataset

logger = logging.getLogger(__name__)

LISTED = 10  # long rows named in a message; the others are counted
BATCH_ROWS = 64  # counted at a time; of images that lie on disk only headers come into memory
_ROW = "_tpru_row"  # position in the files as they came, kept through every selection

Row = dict[str, object]


def without_long_prompts(data: TPRUDataset, dataframe: datasets.Dataset) -> datasets.Dataset:
    """Leaves out prompts over `max_prompt_length` tokens, images expanded, as veRL does.

    Other than veRL's, a row that raises is a broken row (veRL drops it as if it were too long), what is
    left out is counted and listed, and images are not decoded: see `tpru_verl.data.tokens.prompts`.
    """
    if not data.filter_overlong_prompts:
        return dataframe
    lengths, errors = _prompt_lengths(data, dataframe)
    dataframe = data._drop(dataframe, {i: error for i, error in enumerate(errors) if error})
    lengths = [n for n, error in zip(lengths, errors, strict=True) if not error]
    fits = [i for i, n in enumerate(lengths) if n <= data.max_prompt_length]
    if not fits:
        raise ValueError(
            f"data.max_prompt_length={data.max_prompt_length}: found {min(lengths)} to {max(lengths)} "
            f"tokens in all {len(lengths)} rows, none fits; raise it or lower data.max_pixels"
        )
    if len(fits) < len(lengths):
        long = sorted(set(range(len(lengths))) - set(fits))
        rows = dataframe[_ROW]
        named = [data._place({_ROW: rows[i]}) for i in long[:LISTED]]
        logger.warning(
            "%d of %d rows are longer than data.max_prompt_length=%d tokens and left out: %s%s",
            len(long),
            len(lengths),
            data.max_prompt_length,
            ", ".join(
                f"{name} row {number} ({lengths[i]})"
                for i, (name, _, number) in zip(long, named, strict=False)
            ),
            ", ..." if len(long) > LISTED else "",
        )
    return dataframe.select(fits)


def _prompt_lengths(data: TPRUDataset, frame: datasets.Dataset) -> tuple[list[int], list[str]]:
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
    for i, count in zip(todo, _counted(data, rest, counter), strict=True):
        if isinstance(count, int):
            lengths[i] = count
            continue
        found = _measure(data, cast(Row, frame[i]), forked=False)  # the whole processor has the last word
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
    columns = [COLUMN, KEY_COLUMN, data.problem_key]  # a prompt in veRL's form was not counted
    if not set(columns) <= set(frame.column_names):
        return [-1] * len(frame)
    table = frame.select_columns(columns).with_format("arrow")[:]
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
    return np.where(table[data.problem_key].is_valid().to_numpy(), lengths, -1).tolist()


def _counted(data: TPRUDataset, frame: datasets.Dataset, counter: PromptCounter) -> Iterator[int | Exception]:
    """Tokens of each row's prompt, or a reason why headers do not tell."""
    for table in cast("Iterator[pa.Table]", frame.with_format("arrow").iter(BATCH_ROWS)):
        cells = [cell for chunk in table[data.image_key].chunks for cell in image_cells(chunk)]
        rows = table.drop_columns([data.image_key]).to_pylist()
        asked = [
            _asked(data, row, cast("Sequence[object]", cell)) for row, cell in zip(rows, cells, strict=True)
        ]
        sound = [found for found in asked if not isinstance(found, Exception)]
        counts = iter(counter.tokens([chat for chat, _ in sound], [sizes for _, sizes in sound]))
        yield from (found if isinstance(found, Exception) else next(counts) for found in asked)


def _asked(
    data: TPRUDataset, row: Row, cells: Sequence[object]
) -> tuple[Conversation, list[Size]] | Exception:
    try:
        folder = data._place(row)[1]
        sizes = [
            image_size(cell if isinstance(cell, memoryview) else image_bytes(cell, folder)) for cell in cells
        ]
        prompt = data._prompt(row)
        if not all(isinstance(message["content"], str) for message in prompt):
            raise ValueError(f"{data.prompt_key}: found parts, expected text")  # videos may be among them
        images = [{"image": "", **data.pixel_bounds} for _ in sizes]
        return data._build_messages({"prompt": prompt, data.image_key: images}, key="prompt"), sizes
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


def _measure(data: TPRUDataset, row: Row, forked: bool) -> dict[str, object]:
    if forked:  # OpenMP's threads do not survive a fork: a parallel region would wait for them for ever
        torch.set_num_threads(1)
    processor = cast(ProcessorMixin, data.processor)
    chat = cast("dict[str, Any]", _chat_kwargs(data))
    try:
        messages = data._messages(row)
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
