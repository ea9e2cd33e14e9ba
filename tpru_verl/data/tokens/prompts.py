"""Counts the tokens of prompts with their images, and decodes no image.

In training a prompt goes through qwen_vl_utils, which resizes each image to the bounds of the data. The
processor of the model then resizes it to its own bounds and writes one pad token for each visual token. Both
sizes follow from the header of the image; the functions of the two packages compute them here as well. The
processor's chat template renders the text, and its tokenizer counts it. Each counter first counts a sample
prompt in both ways, and refuses a processor for which they differ.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray
from PIL import Image

from tpru_verl import prompts
from tpru_verl.data.checks import reserved_tokens
from tpru_verl.data.images import Encoded, decoding_problem, read_header
from tpru_verl.data.source.rows import Row
from tpru_verl.data.tokens.processors import (
    Conversation,
    Processor,
    Size,
    UnsupportedProcessorError,
    count_image_tokens,
    processor_tokens,
    refuse_unknown,
)
from tpru_verl.data.tokens.text import KNOWN_PIECES, TextCounter
from tpru_verl.sample import IMAGE_TAG, Task
from tpru_verl.terminal import line_of

if TYPE_CHECKING:
    from transformers import ProcessorMixin

# Columns of a data file that holds the counts of its rows, and the fingerprint that they are for.
COLUMN, KEY_COLUMN = "prompt_tokens", "prompt_tokens_key"
FORMAT = 1  # part of every fingerprint; a higher number makes all counts of before invalid

_TAG = re.compile(r"(<image>|<video>|<audio>)")  # veRL cuts a prompt at these tags
_PROBES = (
    1,
    13,
    28,
    31,
    64,
    100,
    333,
    480,
    640,
    1000,
    1080,
    1920,
    4000,
)  # sides of images in pixels, for the fingerprint


class Countable(Protocol):
    """A row to count, such as a `tpru_verl.sample.Sample`.

    `task` goes to the prompt template: the row names it, or `recognise_task` finds it in the text.
    """

    @property
    def problem(self) -> str: ...
    @property
    def task(self) -> Task | None: ...
    @property
    def images(self) -> Sequence[Encoded]: ...


class Asked(NamedTuple):
    """The parts of a row that decide the length of its prompt."""

    problem: str
    task: Task | None
    images: Sequence[Encoded]
    messages: Sequence[Mapping[str, str]] | None = None  # of a row that has its own prompt
    place: str = ""  # file and row, for errors

    @classmethod
    def of(cls, row: Row) -> Asked:
        return cls(str(row.problem), row.task, row.views, row.messages, row.place)


def image_size(data: Encoded) -> Size:
    """Width and height as stored, because qwen_vl_utils does not apply EXIF orientation.

    Only the header is read, unless it does not say whether the file is complete. Raises ValueError for data
    that are no image.
    """
    header = read_header(data)
    if not header.whole and (problem := decoding_problem(bytes(data))):
        raise ValueError(problem)
    return header.width, header.height


def _sizes(images: Sequence[Encoded]) -> list[Size]:
    sizes: list[Size] = []
    for i, data in enumerate(images):
        try:
            sizes.append(image_size(data))
        except ValueError as error:
            raise ValueError(f"images[{i}]: {error}") from error
    return sizes


def easyr1_size(width: int, height: int, min_pixels: int | None, max_pixels: int | None) -> Size:
    """Width and height of an image after `process_image` of EasyR1 (0.3.2 and head, `verl/utils/dataset.py`).

    EasyR1 scales the area to the bound and rounds the sides down. Raises ValueError where a side vanishes.
    """
    for bound, beyond in ((max_pixels, 1), (min_pixels, -1)):
        if bound is not None and (width * height - bound) * beyond > 0:
            factor = math.sqrt(bound / (width * height))
            width, height = int(width * factor), int(height * factor)
            if not width or not height:
                raise ValueError(
                    f"found {width} x {height} pixels, expected sides that max_pixels leaves some of"
                )
    return width, height


class PromptCounter:
    """Counts the tokens of prompts for one processor, prompt template and pair of pixel bounds.

    `template` is a name or a path, as `tpru_verl.prompts.render` takes it. `pixel_bounds` holds the
    `min_pixels` and `max_pixels` of an image that are set. `processor_kwargs` are those of
    `data.mm_processor_kwargs`. `chat_kwargs`, for example `tools`, go to the chat template. Raises
    UnsupportedProcessorError.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        template: str = "tpru",
        pixel_bounds: Mapping[str, int] | None = None,
        *,
        processor_kwargs: Mapping[str, object] | None = None,
        chat_kwargs: Mapping[str, object] | None = None,
    ) -> None:
        self.template = template
        self.pixel_bounds = dict(pixel_bounds or {})
        self.processor_kwargs = dict(processor_kwargs or {})
        self.chat_kwargs = dict(chat_kwargs or {})
        self._processor = cast(Processor, processor)
        refuse_unknown(self._processor)
        self._text = TextCounter(self._processor)
        self.image_tokens: Callable[[int, int], int] = lru_cache(maxsize=KNOWN_PIECES)(self._image_tokens)
        self._prove()

    def _image_tokens(self, width: int, height: int) -> int:
        return count_image_tokens(
            width,
            height,
            self._processor.image_processor,
            pixel_bounds=self.pixel_bounds,
            processor_kwargs=self.processor_kwargs,
        )

    @cached_property
    def key(self) -> str:
        """A fingerprint of everything but the row that a count depends on: equal keys mean equal counts.

        It covers the tokenizer, the chat template, the prompt template, and the tokens of images of many
        sizes, so it also changes with the arithmetic of the two packages.
        """
        facts = (
            FORMAT,
            type(self._processor).__name__,
            self._text.description(),
            self._processor.chat_template,
            self.chat_kwargs,
            template_source(self.template),
            [self._outcome(width, height) for width in _PROBES for height in _PROBES],
        )
        text = json.dumps(facts, sort_keys=True, default=str)
        return xxhash.xxh3_128_hexdigest(text.encode("utf-8", "surrogatepass"))

    def _outcome(self, width: int, height: int) -> int | str:
        try:
            return self.image_tokens(width, height)
        except ValueError:
            return "none"

    @property
    def reserved(self) -> frozenset[str]:
        """Tokens that the tokenizer does not read as text. No row may hold one."""
        return reserved_tokens(self._processor.tokenizer)

    def count(self, rows: Iterable[Countable]) -> list[int]:
        """Tokens of each row's prompt.

        Raises ValueError for a row that cannot be counted. It names the place of the row, or its number from
        0 where it has none.
        """
        rows, counts = list(rows), list[int]()
        for i, (row, count) in enumerate(zip(rows, self.counts(rows), strict=True)):
            if isinstance(count, Exception):
                raise ValueError(f"{getattr(row, 'place', f'row {i}')}: {line_of(count)}") from count
            counts.append(count)
        return counts

    def counts(self, rows: Sequence[Countable]) -> list[int | Exception]:
        """Tokens of each row's prompt, or the error of a row that cannot be counted."""
        asked: list[tuple[Conversation, list[Size]] | ValueError] = []
        for row in rows:
            try:
                messages = getattr(row, "messages", None)
                asked.append((self.conversation(row.problem, row.task, messages), _sizes(row.images)))
            except ValueError as error:
                asked.append(error)
        sound = [pair for pair in asked if not isinstance(pair, ValueError)]
        counts = iter(self.tokens([chat for chat, _ in sound], [sizes for _, sizes in sound]))
        return [pair if isinstance(pair, ValueError) else next(counts) for pair in asked]

    def conversation(
        self, problem: str, task: Task | None, messages: Sequence[Mapping[str, str]] | None = None
    ) -> Conversation:
        """One message of the user with the rendered problem, or the row's own `messages`.

        Their texts are cut into parts, as veRL cuts them. Raises ValueError for a tag that is no image, and
        the errors of `tpru_verl.prompts.render`.
        """
        if messages is None:
            messages = [{"role": "user", "content": prompts.render(problem, task, self.template)}]
        return [{"role": m["role"], "content": self._parts(m["content"])} for m in messages]

    def _parts(self, text: str) -> list[dict[str, object]]:
        parts: list[dict[str, object]] = []
        for part in filter(None, _TAG.split(text)):
            if part == IMAGE_TAG:
                parts.append({"type": "image", "image": "", **self.pixel_bounds})
            elif _TAG.fullmatch(part):
                raise ValueError(f"problem: found {part}, expected no tag but {IMAGE_TAG}")
            else:
                parts.append({"type": "text", "text": part})
        return parts

    def tokens(
        self, conversations: Sequence[Conversation], sizes: Sequence[Sequence[Size]]
    ) -> list[int | Exception]:
        """Tokens of each conversation, or its error. `sizes` are the sizes of its images, in order."""
        texts = self._render(conversations)
        return [self._count(text, images) for text, images in zip(texts, sizes, strict=True)]

    def _count(self, text: str | Exception, images: Sequence[Size]) -> int | Exception:
        if isinstance(text, Exception):
            return text
        try:
            pads = text.count(self._processor.image_token)
            if pads != len(images):  # the row holds the token, or the template shows no image
                raise ValueError(f"images: found {len(images)}, expected {pads}, one for each pad token")
            return self._text.tokens(text) + sum(self.image_tokens(*size) - 1 for size in images)
        except Exception as error:
            return error

    def _render(self, conversations: Sequence[Conversation]) -> list[str | Exception]:
        try:
            return [*self._chats(list(conversations))] if conversations else []
        except Exception:  # one conversation raised it; the others still count
            return [self._chat(conversation) for conversation in conversations]

    def _chats(self, conversations: list[Conversation]) -> list[str]:
        return self._processor.apply_chat_template(
            conversations, add_generation_prompt=True, tokenize=False, **self.chat_kwargs
        )

    def _chat(self, conversation: Conversation) -> str | Exception:
        try:
            return self._chats([conversation])[0]
        except Exception as error:
            return error

    def _prove(self) -> None:
        """Count a sample prompt with the whole processor as well. Raises UnsupportedProcessorError."""
        sizes: list[Size] = [(90, 70), (160, 210)]
        parts: list[dict[str, object]] = [{"type": "text", "text": "Which comes\nfirst? "}]
        parts += [{"type": "image", "image": "", **self.pixel_bounds} for _ in sizes]
        conversation: Conversation = [{"role": "user", "content": parts}]
        (count,) = self.tokens([conversation], [sizes])
        if isinstance(count, UnsupportedProcessorError):
            raise count
        try:
            real = self._whole(conversation, [Image.new("RGB", size) for size in sizes])
        except Exception as error:
            raise UnsupportedProcessorError(f"processor: a sample prompt raises {line_of(error)}") from error
        if count != real:
            raise UnsupportedProcessorError(f"processor: found {real} tokens of a sample, expected {count}")

    def _whole(self, conversation: Conversation, images: Sequence[Image.Image]) -> int:
        """Tokens of a conversation as training makes them: qwen_vl_utils, then the whole processor."""
        import torch
        from qwen_vl_utils import fetch_image

        patch = self._processor.image_processor.patch_size
        elements = [{"image": image, **self.pixel_bounds} for image in images]
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # OpenMP's threads do not survive a fork, and forks may follow
        try:
            resized = [
                fetch_image(cast("dict[str, str | Image.Image]", element), image_patch_size=patch)
                for element in elements
            ]
            text = self._chats([conversation])
            return len(self._processor(text=text, images=resized, **self.processor_kwargs)["input_ids"][0])
        finally:
            torch.set_num_threads(threads)


class EasyR1Counter(PromptCounter):
    """A `PromptCounter` for EasyR1, which resizes otherwise and does not give the task to the template."""

    def conversation(
        self, problem: str, task: Task | None, messages: Sequence[Mapping[str, str]] | None = None
    ) -> Conversation:
        return super().conversation(problem, None)

    def _image_tokens(self, width: int, height: int) -> int:
        return processor_tokens(*self._size(width, height), self._processor.image_processor)

    def _size(self, width: int, height: int) -> Size:
        return easyr1_size(
            width, height, self.pixel_bounds.get("min_pixels"), self.pixel_bounds.get("max_pixels")
        )

    def _whole(self, conversation: Conversation, images: Sequence[Image.Image]) -> int:
        resized = [image.resize(self._size(*image.size)) for image in images]
        text = self._chats([conversation])
        return len(self._processor(text=text, images=resized)["input_ids"][0])


def stored_counts(table: pa.Table, key: str) -> tuple[NDArray[np.int64], int]:
    """The counts that the table holds for `key`, [rows], with -1 for a row that has none.

    The second value is the number of rows that were counted for another key.
    """
    none = np.full(len(table), -1, np.int64)
    if not {COLUMN, KEY_COLUMN} <= set(table.column_names):
        return none, 0
    counts, keys = table[COLUMN], table[KEY_COLUMN].to_pylist()
    holds = np.array([found == key for found in keys], bool)
    others = len(keys) - int(holds.sum()) - keys.count(None)
    if not holds.any():
        return none, others
    return np.where(holds, counts.cast(pa.int64()).fill_null(-1).to_numpy(), none), others


def template_source(template: str) -> str:
    """The text of a prompt template, by its name or path. Raises OSError."""
    own = template in prompts.TEMPLATES
    path = Path(prompts.__file__).with_name(f"{template}.jinja") if own else Path(template).expanduser()
    return path.read_text(encoding="utf-8")
