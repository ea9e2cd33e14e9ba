"""Whether a model's tokenizer knows the words of rows, or only spells them out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tpru_verl.sample import IMAGE_TAG

MOST_SPELLED = 0.2  # share of the words; the tokenizers of Qwen and Gemma spell none of common English words
_WORD = re.compile(r"[^\W\d_]{3,}")
_SHOWN = 5


def spelled_words(model: str, texts: Iterable[str]) -> str:
    """What is wrong where the tokenizer of a model's folder spells many words letter by letter; "" elsewhere.

    A tokenizer of few words, as that of the demo's model, falls back to single bytes, which its model never
    learned to read. A word counts as spelled where it takes three tokens or more for four bytes. Hub ids are
    not looked at.
    """
    file = Path(model).expanduser() / "tokenizer.json"
    if not model or not file.is_file():
        return ""
    from tokenizers import Tokenizer  # of every environment with transformers; loads no torch

    words = Counter(word for text in texts for word in _WORD.findall(text.replace(IMAGE_TAG, " ")))
    tokenizer = Tokenizer.from_file(str(file))
    # Within a text, a word begins with its space.
    codes = tokenizer.encode_batch([f" {word}" for word in words], add_special_tokens=False)
    spelled = {
        word: count
        for (word, count), code in zip(words.items(), codes, strict=True)
        if 4 * len(code.ids) >= 3 * len(word.encode())
    }
    share = sum(spelled.values()) / max(1, sum(words.values()))
    if share <= MOST_SPELLED:
        return ""
    examples = ", ".join(sorted(spelled, key=lambda word: (-spelled[word], word))[:_SHOWN])
    return (
        f"its tokenizer does not know {share:.0%} of the words of the rows and spells them out ({examples})"
    )
