"""How many tokens a prompt has, with its images expanded and none of them decoded.

A prompt goes through qwen_vl_utils, which resizes each image to the data's bounds, and then through the
model's processor, which resizes once more to its own and writes one pad token for each visual token. Both
sizes follow from the image's header, by the two packages' own functions; the text is rendered by the
processor's own chat template and counted by its own tokenizer. A processor for which this does not hold is
refused: each counter first counts a sample prompt both ways.
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

COLUMN, KEY_COLUMN = "prompt_tokens", "prompt_tokens_key"  # of a data file that carries its counts
FORMAT = 1  # part of every key: raise it when counts made before must not be used any more


_TAG = re.compile(r"(<image>|<video>|<audio>)")  # the tags that veRL cuts a prompt at
_PROBES = (1, 13, 28, 31, 64, 100, 333, 480, 640, 1000, 1080, 1920, 4000)  # sides, in pixels, for the key


class Countable(Protocol):
    """A row to count; a `tpru_verl.sample.Sample` is one.

    `task` is the one that the row names or that `recognise_task` tells, as the prompt template gets it.
    """

    @property
    def problem(self) -> str: ...
    @property
    def task(self) -> Task | None: ...
    @property
    def images(self) -> Sequence[Encoded]: ...


def image_size(data: Encoded) -> Size:
    """Width and height as stored; qwen_vl_utils does not apply EXIF orientation.

    Told by the header alone, where the image says that it is whole. Raises ValueError for what is no image.
    """
    header = read_header(data)
    if not header.whole and (problem := decoding_problem(bytes(data))):
        raise ValueError(problem)
    return header.width, header.height


class PromptCounter:
    """Counts the tokens of prompts for one processor, prompt template and pair of pixel bounds.

    `template`: name or path, as `tpru_verl.prompts.render` takes it; `pixel_bounds`: `min_pixels` and
    `max_pixels` of an image, as far as the data set them; `processor_kwargs`: `data.mm_processor_kwargs`;
    `chat_kwargs`: what goes to the chat template, `tools` among it. Raises UnsupportedProcessorError.
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
        """Fingerprint of all that a row's count depends on but the row: equal keys, equal counts.

        Tokenizer, chat template and prompt template go in as they are; sizes and bounds as what becomes of
        images of many sizes, so that it also changes with the packages' arithmetic.
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
        """Tokens that the model's tokenizer reads as more than text: no row may hold one."""
        return reserved_tokens(self._processor.tokenizer)

    def count(self, rows: Iterable[Countable]) -> list[int]:
        """Tokens of each row's prompt.

        Raises ValueError for a row that has none, with its place; rows without one count from 0.
        """
        rows, counts = list(rows), list[int]()
        for i, (row, count) in enumerate(zip(rows, self.counts(rows), strict=True)):
            if isinstance(count, Exception):
                raise ValueError(f"{getattr(row, 'place', f'row {i}')}: {line_of(count)}") from count
            counts.append(count)
        return counts

    def counts(self, rows: Sequence[Countable]) -> list[int | Exception]:
        """Tokens of each row's prompt, or why it has none."""
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

        Their texts are in parts, as veRL cuts them. Raises ValueError.
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
        """Tokens of each conversation, or what it raises; `sizes` are those of its images, in order."""
        texts = self._render(conversations)
        return [self._count(text, images) for text, images in zip(texts, sizes, strict=True)]

    def _count(self, text: str | Exception, images: Sequence[Size]) -> int | Exception:
        if isinstance(text, Exception):
            return text
        try:
            pads = text.count(self._processor.image_token)
            if pads != len(images):  # the row writes the token itself, or its template shows no image
                raise ValueError(f"images: found {len(images)}, expected {pads}, one for each pad token")
            return self._text.tokens(text) + sum(self.image_tokens(*size) - 1 for size in images)
        except Exception as error:
            return error

    def _render(self, conversations: Sequence[Conversation]) -> list[str | Exception]:
        try:
            return [*self._chats(list(conversations))] if conversations else []
        except Exception:  # one of them: which one?
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
        """Count a sample prompt with the whole processor, too. Raises UnsupportedProcessorError."""
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
        """Tokens by qwen_vl_utils and the whole processor."""
        import torch
        from qwen_vl_utils import fetch_image

        patch = self._processor.image_processor.patch_size
        elements = [{"image": image, **self.pixel_bounds} for image in images]
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # OpenMP's would not survive the forks that may follow
        try:
            resized = [
                fetch_image(cast("dict[str, str | Image.Image]", element), image_patch_size=patch)
                for element in elements
            ]
            text = self._chats([conversation])
            return len(self._processor(text=text, images=resized, **self.processor_kwargs)["input_ids"][0])
        finally:
            torch.set_num_threads(threads)


def template_source(template: str) -> str:
    own = template in prompts.TEMPLATES
    path = Path(prompts.__file__).with_name(f"{template}.jinja") if own else Path(template).expanduser()
    return path.read_text(encoding="utf-8")


def _sizes(images: Sequence[Encoded]) -> list[Size]:
    sizes: list[Size] = []
    for i, data in enumerate(images):
        try:
            sizes.append(image_size(data))
        except ValueError as error:
            raise ValueError(f"images[{i}]: {error}") from error
    return sizes


def stored_counts(table: pa.Table, key: str) -> tuple[NDArray[np.int64], int]:
    """The table's own counts, (rows,), with -1 where it has none for `key`; and how many have another key."""
    none = np.full(len(table), -1, np.int64)
    if not {COLUMN, KEY_COLUMN} <= set(table.column_names):
        return none, 0
    counts, keys = table[COLUMN], table[KEY_COLUMN].to_pylist()
    holds = np.array([found == key for found in keys], bool)
    others = len(keys) - int(holds.sum()) - keys.count(None)
    if not holds.any():
        return none, others
    return np.where(holds, counts.cast(pa.int64()).fill_null(-1).to_numpy(), none), others


class Asked(NamedTuple):
    """What of a row decides the length of its prompt."""

    problem: str
    task: Task | None
    images: Sequence[Encoded]
    messages: Sequence[Mapping[str, str]] | None = None  # of a row with a prompt of its own
    place: str = ""  # file and row, for messages

    @classmethod
    def of(cls, row: Row) -> Asked:
        return cls(str(row.problem), row.task, row.views, row.messages, row.place)


def easyr1_size(width: int, height: int, min_pixels: int | None, max_pixels: int | None) -> Size:
    """Pixels of an image after `verl.utils.dataset.process_image` (0.3.2 and head): area first, sides rounded
    down, so that the bounds are met but for rounding. Raises ValueError where a side vanishes."""
    for bound, beyond in ((max_pixels, 1), (min_pixels, -1)):
        if bound is not None and (width * height - bound) * beyond > 0:
            factor = math.sqrt(bound / (width * height))
            width, height = int(width * factor), int(height * factor)
            if not width or not height:
                raise ValueError(
                    f"found {width} x {height} pixels, expected sides that max_pixels leaves some of"
                )
    return width, height


class EasyR1Counter(PromptCounter):
    """As `PromptCounter`, with EasyR1's resize and without the task, which never reaches its template."""

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
