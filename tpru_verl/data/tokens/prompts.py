"""How many tokens a prompt has, with its images expanded and none of them decoded.

A prompt goes through qwen_vl_utils, which resizes each image to the data's bounds, and then through the
model's processor, which resizes once more to its own and writes one pad token for each visual token. Both
sizes follow from the image's header, by the two packages' own functions; the text is rendered by the
processor's own chat template and counted by its own tokenizer. A processor for which this does not hold is
refused: each counter first counts a sample prompt both ways.
"""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray
from PIL import Image

from tpru_verl import prompts
from tpru_verl.data.images import Encoded, read_header, scan
from tpru_verl.errors import line_of
from tpru_verl.sample import IMAGE_TAG, Task

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import ProcessorMixin

COLUMN, KEY_COLUMN = "prompt_tokens", "prompt_tokens_key"  # of a data file that carries its counts
FORMAT = 1  # part of every key: raise it when counts made before must not be used any more
PROCESSORS = ("Qwen2VLProcessor", "Qwen2_5_VLProcessor", "Qwen3VLProcessor")
IMAGE_PROCESSORS = ("Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast", "Qwen2VLImageProcessorPil")
KNOWN_PIECES = 65_536  # pieces of text whose number of tokens is kept: tens of MB at most

Size = tuple[int, int]  # width, height in pixels
Conversation = list[dict[str, object]]  # messages of role and content, the content cut into parts

_TAG = re.compile(r"(<image>|<video>|<audio>)")  # the tags that veRL cuts a prompt at
_PROBES = (1, 13, 28, 31, 64, 100, 333, 480, 640, 1000, 1080, 1920, 4000)  # sides, in pixels, for the key


class UnsupportedProcessorError(ValueError):
    """Counts of this processor can't be told from headers; only the whole processor knows them."""


class ImageProcessor(Protocol):
    """What is read of Qwen-VL's image processors."""

    @property
    def patch_size(self) -> int: ...
    @property
    def merge_size(self) -> int: ...


class Countable(Protocol):
    """A row to count; a `tpru_verl.sample.Sample` is one.

    `task` is the one that the row names or that `recognise_task` tells, as the prompt template gets it.
    """

    @property
    def problem(self) -> str: ...
    @property
    def task(self) -> Task | None: ...
    @property
    def images(self) -> Sequence[bytes]: ...


class _Processor(Protocol):
    image_processor: ImageProcessor
    tokenizer: object
    chat_template: object
    image_token: str

    def apply_chat_template(
        self,
        conversation: list[Conversation],
        *,
        add_generation_prompt: bool,
        tokenize: bool,
        **kwargs: object,
    ) -> list[str]: ...

    def __call__(self, **kwargs: object) -> Mapping[str, Sequence[Sequence[int]]]: ...


def image_size(data: Encoded) -> Size:
    """Width and height as stored; qwen_vl_utils does not apply EXIF orientation.

    A plain JPEG or PNG is told by its header alone. Of anything else Pillow is asked, and it has to decode
    what does not say that it is whole. Raises ValueError for what is no image.
    """
    plain = scan(data)
    return (plain.width, plain.height) if plain else _pillow_size(bytes(data))


def _pillow_size(data: bytes) -> Size:
    header = read_header(data)
    if header.format != "WEBP" or len(data) < 8 + int.from_bytes(data[4:8], "little"):
        try:
            with Image.open(io.BytesIO(data)) as image:
                image.load()
        except Exception as error:  # Pillow's decoders raise many kinds
            raise ValueError(
                f"found an image that can't be decoded ({line_of(error)}; {len(data)} bytes)"
            ) from error
    return header.width, header.height


def count_image_tokens(
    width: int,
    height: int,
    image_processor: ImageProcessor,
    *,
    pixel_bounds: Mapping[str, int],
    processor_kwargs: Mapping[str, object] | None = None,
) -> int:
    """Visual tokens of an image of `width` x `height` pixels, as stored.

    `pixel_bounds`: `min_pixels` and `max_pixels` of the message, as far as set; `processor_kwargs`: the same
    two, both or none, as veRL hands them to the processor (`data.mm_processor_kwargs`). Raises ValueError for
    sides beyond 1 : 200 and for an image that max_pixels makes vanish, as the two packages do.
    """
    from qwen_vl_utils import vision_process

    patch = int(image_processor.patch_size)
    rows, columns = vision_process.smart_resize(
        height,
        width,
        patch * vision_process.SPATIAL_MERGE_SIZE,
        min_pixels=pixel_bounds.get("min_pixels"),
        max_pixels=pixel_bounds.get("max_pixels"),
    )
    if min(rows, columns) <= 0:
        raise ValueError(f"found {width} x {height} pixels, expected sides that max_pixels leaves some of")
    return processor_tokens(columns, rows, image_processor, processor_kwargs)


def processor_tokens(
    width: int,
    height: int,
    image_processor: ImageProcessor,
    processor_kwargs: Mapping[str, object] | None = None,
) -> int:
    """Visual tokens of an image that reaches the processor with `width` x `height` pixels.

    Raises ValueError as its own resize does, UnsupportedProcessorError for bounds that it does not tell.
    """
    patch, merge = int(image_processor.patch_size), int(image_processor.merge_size)
    low, high = _processor_bounds(image_processor, processor_kwargs or {})
    resize = _own_resize(image_processor)
    rows, columns = resize(height, width, factor=patch * merge, min_pixels=low, max_pixels=high)
    return (rows // patch) * (columns // patch) // merge**2


def _own_resize(image_processor: ImageProcessor) -> Callable[..., Size]:
    """`smart_resize` of the module that the processor comes from: (height, width) to (height, width)."""
    return sys.modules[type(image_processor).__module__].smart_resize


def _processor_bounds(image_processor: ImageProcessor, told: Mapping[str, object]) -> tuple[int, int]:
    """The least and most pixels that the processor itself resizes to. Raises UnsupportedProcessorError."""
    if told:
        if set(told) != {"min_pixels", "max_pixels"} or None in told.values():
            found = ", ".join(sorted(map(str, told)))
            raise UnsupportedProcessorError(
                f"mm_processor_kwargs: found {found}, expected min_pixels, max_pixels"
            )
        return int(cast(int, told["min_pixels"])), int(cast(int, told["max_pixels"]))
    size = cast("Mapping[str, int | None]", getattr(image_processor, "size", {}))
    low, high = size.get("shortest_edge"), size.get("longest_edge")
    if not low or not high:
        raise UnsupportedProcessorError(f"size: found {size}, expected shortest_edge and longest_edge")
    return int(low), int(high)


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
        self._processor = cast(_Processor, processor)
        _refuse_unknown(self._processor)
        self._text = _TextCounter(self._processor)
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
            _template_source(self.template),
            [self._outcome(width, height) for width in _PROBES for height in _PROBES],
        )
        text = json.dumps(facts, sort_keys=True, default=str)
        return xxhash.xxh3_128_hexdigest(text.encode("utf-8", "surrogatepass"))

    def _outcome(self, width: int, height: int) -> int | str:
        try:
            return self.image_tokens(width, height)
        except ValueError:
            return "none"

    def count(self, rows: Iterable[Countable]) -> list[int]:
        """Tokens of each row's prompt. Raises ValueError for a row that has none; rows count from 0."""
        conversations: list[Conversation] = []
        sizes: list[list[Size]] = []
        for i, row in enumerate(rows):
            try:
                conversations.append(self.conversation(row.problem, row.task))
                sizes.append(_sizes(row.images))
            except ValueError as error:
                raise ValueError(f"row {i}: {error}") from error
        counts: list[int] = []
        for i, count in enumerate(self.tokens(conversations, sizes)):
            if isinstance(count, Exception):
                raise ValueError(f"row {i}: {line_of(count)}") from count
            counts.append(count)
        return counts

    def conversation(self, problem: str, task: Task | None) -> Conversation:
        """One message of the user: the rendered problem in parts, as veRL cuts it. Raises ValueError."""
        text = prompts.render(problem, task, self.template)
        parts: list[dict[str, object]] = []
        for part in filter(None, _TAG.split(text)):
            if part == IMAGE_TAG:
                parts.append({"type": "image", "image": "", **self.pixel_bounds})
            elif _TAG.fullmatch(part):
                raise ValueError(f"problem: found {part}, expected no tag but {IMAGE_TAG}")
            else:
                parts.append({"type": "text", "text": part})
        return [{"role": "user", "content": parts}]

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


def _refuse_unknown(processor: _Processor) -> None:
    """By name: a subclass may do what it likes. Raises UnsupportedProcessorError."""
    own = getattr(processor, "image_processor", None)
    for found, expected in ((processor, PROCESSORS), (own, IMAGE_PROCESSORS)):
        kind = type(found)
        if kind.__name__ not in expected or not kind.__module__.startswith("transformers.models."):
            raise UnsupportedProcessorError(
                f"processor: found {kind.__name__}, expected {', '.join(expected)}"
            )
    if not getattr(own, "do_resize", True):
        raise UnsupportedProcessorError("image_processor.do_resize: found False, expected True")
    if not hasattr(processor.tokenizer, "backend_tokenizer"):
        kind = type(processor.tokenizer)
        raise UnsupportedProcessorError(f"tokenizer: found {kind.__name__}, expected one of `tokenizers`")


def _template_source(template: str) -> str:
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


# Pre-tokenizers of Qwen2 to Qwen3-VL, of Qwen3.5 and of the demo's tiny model. No match of theirs goes from a
# line feed on to a letter or from a letter on to a space, none looks back, and none that ends in a letter, or
# in a line feed after a non-space, depends on what follows. So text may be cut there and keeps its tokens.
_WORDS_APART = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+",
)
_LINE_END = re.compile(r"\n(?<=\S\n)(?=[A-Za-z])")
_WORD_END = re.compile(r" (?<=[A-Za-z] )(?=[A-Za-z])")


class _TextCounter:
    """Tokens of rendered text; a line or word met before is not tokenized again."""

    def __init__(self, processor: _Processor) -> None:
        self._tokenizer = processor.tokenizer
        self._backend = cast("Tokenizer", getattr(processor.tokenizer, "backend_tokenizer"))  # noqa: B009
        self._pad = processor.image_token
        # transformers sets both anew at each call; a call of ours must not find what it left.
        self._backend.no_truncation()
        self._backend.no_padding()
        if len(self._backend.encode(self._pad * 3, add_special_tokens=False)) != 3:
            raise UnsupportedProcessorError(f"tokenizer: found no token of its own for {self._pad}")
        self._frame = self._backend.num_special_tokens_to_add(is_pair=False)
        self._cuts = _may_be_cut(self._backend, self._pad)
        self._known: dict[str, int] = {}

    def description(self) -> list[str]:
        """The tokenizer in full, as text."""
        special = getattr(self._tokenizer, "special_tokens_map", {})
        return [self._backend.to_str(), json.dumps(special, sort_keys=True, default=str)]

    def tokens(self, text: str) -> int:
        """As `len(tokenizer(text).input_ids)`."""
        if not self._cuts:
            return self._frame + self._piece(text)
        parts = text.split(self._pad)
        total = self._frame + len(parts) - 1
        for part in parts:
            *lines, last = _LINE_END.split(part)
            total += sum(self._line(line + "\n") for line in lines) + self._line(last)
        return total

    def _line(self, line: str) -> int:
        count = self._known.get(line)
        if count is None:
            first, *words = _WORD_END.split(line)
            count = self._word(first) + sum(self._word(" " + word) for word in words)
            self._remember(line, count)
        return count

    def _word(self, word: str) -> int:
        count = self._known.get(word)
        if count is None:
            count = self._piece(word)
            self._remember(word, count)
        return count

    def _remember(self, piece: str, count: int) -> None:
        if len(self._known) >= KNOWN_PIECES:
            self._known.clear()
        self._known[piece] = count

    def _piece(self, piece: str) -> int:
        # One by one: a batch would start threads, which do not survive the forks of a data loader.
        return len(self._backend.encode(piece, add_special_tokens=False))


def _may_be_cut(backend: Tokenizer, pad: str) -> bool:
    """Whether pads and ends of lines and words part text into pieces that are tokenized apart."""
    added = list(backend.get_added_tokens_decoder().values())
    if any(token.lstrip or token.rstrip or token.single_word or " " in token.content for token in added):
        return False
    contents = {token.content for token in added if not (token.content == pad and token.normalized)}
    if pad not in contents or any("\n" in c or _overlap(c, pad) for c in contents - {pad}):
        return False
    if type(backend.normalizer).__name__ not in ("NoneType", "NFC"):
        return False
    if type(backend.model).__name__ != "BPE" or getattr(backend.model, "dropout", None):
        return False
    return any(_pre_tokenizes_by(backend, pattern) for pattern in _WORDS_APART)


def _overlap(content: str, pad: str) -> bool:
    """Whether a match of one of the two could take a part of the other's."""
    ends = range(1, len(pad) + 1)
    return pad in content or any(content.endswith(pad[:n]) or content.startswith(pad[-n:]) for n in ends)


def _pre_tokenizes_by(backend: Tokenizer, pattern: str) -> bool:
    state = json.loads(backend.pre_tokenizer.__getstate__()) if backend.pre_tokenizer else {}
    steps = state.get("pretokenizers", [])
    if [step["type"] for step in steps] != ["Split", "ByteLevel"]:
        return False
    split, byte_level = steps
    return (
        (split["pattern"], split["behavior"], split["invert"]) == ({"Regex": pattern}, "Isolated", False)
        and not byte_level["add_prefix_space"]
        and not byte_level["use_regex"]
    )


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
