"""Normalise: one form of each character, and an answer without the decoration around it.

Every function takes linear time. Nothing here decides which option a text names (`compare` does).
"""

from __future__ import annotations

import re
import unicodedata

__all__ = ["plain", "squash", "undress"]

_MAX_LAYERS = 8  # brackets and Markdown around an answer

# Characters without a width: soft hyphen, zero-width spaces and joiners, direction marks, byte-order mark.
_INVISIBLE = dict.fromkeys(
    [0xAD, 0x61C, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x206A)]
)
_INVISIBLE |= dict.fromkeys([0xFE0E, 0xFE0F, 0xFEFF])

# Capitals of Cyrillic and Greek that look like a Latin one.
_LOOKALIKES = str.maketrans(
    "\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0425"
    "\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7",
    "ABEKMHOPCTXABEZHIKMNOPTYX",
)

_EMPHASIS = re.compile(r"</?(?:b|i|u|em|strong|code|mark|p|span)>|<br ?/?>", re.IGNORECASE)
_NUMBERED_IMAGE = re.compile(r"<(image|frame|img|picture)[ _]?(\d{1,3})>", re.IGNORECASE)

_DECORATION = str.maketrans("", "", '*_`$"\u201c\u201d')
_FENCE = re.compile(r"\s*```\w*\s*\n")
_BULLET = re.compile(r"[-\u2022#>]+\s+")
_EDGES = "'\u2018\u2019.,;:!|\u3002\u3001"  # punctuation before and after an answer that says nothing
_LAYERS = (
    *((f"\\{name}{{", "}") for name in ("boxed", "fbox", "text", "mathrm", "textbf", "mathbf")),
    *(("\\(", "\\)"), ("\\[", "\\]"), ("(", ")"), ("[", "]"), ("{", "}")),
    *(
        ("\u3010", "\u3011"),
        ("\u3014", "\u3015"),
        ("\u300c", "\u300d"),
        ("\u300e", "\u300f"),
        ("\u3008", "\u3009"),
        ("\u300a", "\u300b"),
    ),
)
_CLOSING = tuple(closing[-1] for _, closing in _LAYERS)


def plain(text: str) -> str:
    """`text` with one form of each character (NFKC), without invisible characters and HTML emphasis.

    Capitals that look like a Latin letter become that letter; `<image 4>` becomes `image 4`.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text.translate(_INVISIBLE)).translate(_LOOKALIKES)
    if "<" in text:
        text = _NUMBERED_IMAGE.sub(r" \1 \2 ", _EMPHASIS.sub("", text))
    return text


def undress(text: str) -> str:
    """`text` without Markdown, quotes, `\\boxed{}`, punctuation and brackets around the whole of it."""
    if "```" in text and (fence := _FENCE.match(text)):
        text = text[fence.end() :]
    text = text.translate(_DECORATION).strip()
    if bullet := _BULLET.match(text):
        text = text[bullet.end() :]
    for _ in range(_MAX_LAYERS):
        text = text.strip().strip(_EDGES).strip()
        if not text.endswith(_CLOSING):
            break
        for opening, closing in _LAYERS:
            inner = text[len(opening) : -len(closing)]
            if text.startswith(opening) and text.endswith(closing) and _encloses(inner, opening[-1], closing):
                text = inner
                break
        else:
            break
    return text


def _encloses(inner: str, opening: str, closing: str) -> bool:
    """Whether brackets around `inner` belong together: those around `A) (C` do not."""
    return opening in inner.partition(closing)[0] or closing not in inner


def squash(text: str) -> str:
    """`text` as it is compared: without case, white space and punctuation at its end."""
    return "".join(text.casefold().split()).rstrip(".,;!\u3002")
