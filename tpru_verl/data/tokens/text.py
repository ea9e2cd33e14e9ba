"""Counts the tokens of rendered text, piece by piece, and keeps the counts of pieces met before."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, cast

from tpru_verl.data.tokens.processors import Processor, UnsupportedProcessorError
from tpru_verl.models import FAMILIES

if TYPE_CHECKING:
    from tokenizers import Tokenizer

KNOWN_PIECES = 65_536  # pieces of text whose number of tokens is kept: tens of MB at most

# Pre-tokenizers of the families and of the demo's tiny model. None of their matches continues from a line
# feed to a letter or from a letter to a space, and none looks back. A match that ends in a letter, or in a
# line feed after a non-space, does not depend on the text behind it. So text keeps its tokens when cut there.
DEMO_WORDS = r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+"
WORD_PATTERNS = tuple(dict.fromkeys((*(family.words for family in FAMILIES.values()), DEMO_WORDS)))

_LINE_END = re.compile(r"\n(?<=\S\n)(?=[A-Za-z])")
_WORD_END = re.compile(r" (?<=[A-Za-z] )(?=[A-Za-z])")


class TextCounter:
    """Counts the tokens of rendered text. It tokenizes a line or word once.

    Raises UnsupportedProcessorError for a tokenizer in which the image token is not one token.
    """

    def __init__(self, processor: Processor) -> None:
        self._tokenizer = processor.tokenizer
        self._backend = cast("Tokenizer", getattr(processor.tokenizer, "backend_tokenizer"))  # noqa: B009
        self._pad = processor.image_token
        # A call of transformers leaves its own settings of both behind, and sets them anew each time.
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
        """The length of `tokenizer(text).input_ids`."""
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
    """Whether text cut at image tokens, ends of lines and ends of words keeps its tokens."""
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
    return any(_pre_tokenizes_by(backend, pattern) for pattern in WORD_PATTERNS)


def _overlap(content: str, pad: str) -> bool:
    """Whether the two strings can share characters in a text."""
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
