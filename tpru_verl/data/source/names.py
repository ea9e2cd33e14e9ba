"""Orders the frames of a folder by the numbers in their names, and refuses names whose order is ambiguous.

Names are compared number by number, from the left, like the hours, minutes and seconds of a time. All names
need the same text before a number. The text after the number that decides is free: `01-open`, `02-pour`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from itertools import groupby, pairwise
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

COMMON = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif")  # of pictures
# Files that systems leave behind; AppleDouble files (`._1.png`) and .DS_Store begin with a dot.
_SYSTEM_FILES = {
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "lost+found"),
    *("@eadir", "#recycle", "@recycle", "$recycle.bin", "system volume information"),
}
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*(?:e[+-]?\d{1,3}(?![^\W_]))?")
_SIGNS = "+-\N{MINUS SIGN}"
_UNITS = {
    **dict.fromkeys(("ns", "us", "µs", "μs", "ms", "k"), ""),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), "s"),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), "min"),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), "h"),
    **dict.fromkeys(("d", "day", "days"), "d"),
}
_UNIT = re.compile(rf" ?({'|'.join(sorted(_UNITS, key=len, reverse=True))})(?![^\W\d_])")
_JOINED_NUMBERS = re.compile(r"(?:[-:'\u2019_ ]\d+)*")
_FURTHER_NUMBERS = re.compile(r"(?:[-:'\u2019]\d+|[_ ]\d{3}(?!\d))*")  # of a time, or groups of thousands
_HEXADECIMAL = re.compile(r"[\da-f]+")
_CLOCK_OF_12_HOURS = re.compile(
    r"\d[\s_.-]?(?:[ap]\.?\s?m|[\u03c0\u03bc]\.?\s?\u03bc|[\u0635\u0645])(?![^\W\d_])"
    r"|(?<![^\W\d_])[ap]\.?\s?m\.?[\s_.-]?\d\d?[.:_-]\d\d"  # PM 12.59, but pm_1 is a counter
    r"|(?:[\u4e0a\u4e0b]\u5348|\u5348[\u524d\u5f8c\u540e]|\uc624[\uc804\ud6c4]"
    r"|\u51cc\u6668|\u6e05\u6668|\u65e9\u4e0a|\u4e2d\u5348|\u665a\u4e0a)[\s_.-]?\d"
)
# Names of months from January on, whole or as they are shortened, but for words that say something else: set.
_MONTHS = (
    r"jan(?:v(?:ier)?|uary|uari?|eiro)?|j\u00e4n(?:ner)?|enero|ene|gennaio|\u044f\u043d\u0432(?:\u0430\u0440[\u044c\u044f])?",
    r"feb(?:r|ruary|ruari?|rero|braio)?|f[\u00e9e]v(?:r(?:ier)?)?|fevereiro|\u0444\u0435\u0432(?:\u0440\u0430\u043b[\u044c\u044f])?",
    r"mar(?:ch|s|zo|\u00e7o)?|m\u00e4r(?:z)?|mrt|maart|mrz|\u043c\u0430\u0440(?:\u0442\u0430?)?",
    r"apr(?:il|ile)?|avr(?:il)?|abr(?:il)?|\u0430\u043f\u0440(?:\u0435\u043b[\u044c\u044f])?",
    r"ma[iyj]o?|mei|maio|maggio|mag|\u043c\u0430[\u0439\u044f]",
    r"jun(?:[ei]|io|ho)?|juin|giugno|giu|\u0438\u044e\u043d[\u044c\u044f]?",
    r"jul(?:[yi]|io|ho)?|juil(?:let)?|luglio|lug|\u0438\u044e\u043b[\u044c\u044f]?",
    r"aug(?:ust|usti|ustus)?|ao[\u00fbu]t|agosto|\u0430\u0432\u0433(?:\u0443\u0441\u0442\u0430?)?",
    r"sept?(?:embre|ember|tiembre|iembre)?|setembro|settembre|\u0441\u0435\u043d\u0442?(?:\u044f\u0431\u0440[\u044c\u044f])?",
    r"o[ck]t(?:obre|ober|ubre)?|outubro|ottobre|\u043e\u043a\u0442(?:\u044f\u0431\u0440[\u044c\u044f])?",
    r"nov(?:embre|ember|iembre|embro)?|\u043d\u043e\u044f(?:\u0431\u0440[\u044c\u044f])?",
    r"d[\u00e9e][cz](?:ember|embre|embro)?|dic(?:iembre|embre)?|desember|\u0434\u0435\u043a(?:\u0430\u0431\u0440[\u044c\u044f])?",
)
_MONTH = rf"(?:{'|'.join(_MONTHS)})(?![^\W\d_])"
_YEAR = r"(?:19|20)\d\d"
_DAY_OR_MONTH = rf"(\d\d?|{_MONTH})"
_OF = r"[-._\s/,]*(?:(?:de|of)[-._\s]+)?"
# Dates whose parts do not stand from the year to the day. Between a day and a year, any word is a month.
_DATES = (
    re.compile(rf"(?<!\d){_DAY_OR_MONTH}[-._\s/,]+{_DAY_OR_MONTH}[-._\s/,]+({_YEAR})(?!\d)"),
    re.compile(rf"(?<!\d)(0[1-9]|[12]\d|3[01])(0[1-9]|[12]\d|3[01])({_YEAR})(?!\d)"),
    re.compile(rf"(?<!\d)(\d\d?)(?:st|nd|rd|th|er)?{_OF}({_MONTH}|[^\W\d_]{{3,}}(?=\.?{_OF}{_YEAR}(?!\d)))"),
)
_LONG_YEAR = re.compile(rf"(?<!\d){_YEAR}(?:\d{{4}}|(?!\d))")
_SHORT_DATES = (
    re.compile(r"(?<!\d)(?<!\d[-._\st])(\d\d)(\d\d)(\d\d)(?!\d)"),
    *(
        re.compile(rf"(?<!\d)(?<!\d{s})(\d\d?){s}(\d\d?){s}(\d\d)(?!\d)")
        for s in (r"\.", "-", "_", r"\s", "/")
    ),
)
_DATE_FORM = "dates need the form 2024-01-31"
_CURE = "rename the files so that a number gives their order, such as 0001, or list them in a jsonl file"

_Key = tuple[Decimal | int, ...]


class _Name(NamedTuple):
    """A file's name, and the part of it that is not compared yet."""

    name: str
    rest: str


class _Number(NamedTuple):
    """The next number of a name: what stands before it, its parts (`1.25` has two), and what follows."""

    text: str
    parts: tuple[str, ...]
    exponent: str  # "" where there is none
    comma: bool
    tail: str

    @property
    def decimal(self) -> Decimal:
        exponent = f"e{self.exponent}" if self.exponent else ""
        return Decimal(".".join(self.parts[:2]) + exponent)

    @property
    def unit(self) -> str:
        found = _UNIT.match(self.tail)
        return (_UNITS[found[1]] or found[1]) if found else ""


def is_system_file(name: str) -> bool:
    """Whether a file or folder is hidden or was left behind by a system, so that no source reads it."""
    return name.startswith(".") or name.casefold() in _SYSTEM_FILES


def in_order(names: Sequence[str]) -> list[str]:
    """File names in the order that their numbers give: t0.5s before t1s, 2 before 10, -1 before 0.

    Raises ValueError, in one line, where the names give no order or more than one.
    """
    # macOS writes a letter and its accent as two characters.
    group = [_Name(name, normalize("NFC", Path(name).stem.casefold())) for name in sorted(names)]
    if len(group) > 1:
        _refuse_dates(group)
    return [name.name for name in _ordered(group, start=True)]


def _ordered(group: list[_Name], *, start: bool = False) -> list[_Name]:
    """`group` is alike up to the rests, which begin with the names themselves at the `start`."""
    if len(group) <= 1:
        return group
    numbers = [_next_number(name.rest) for name in group]
    found = [number for number in numbers if number is not None]
    if not found:
        return _by_letters(group)
    if len(found) < len(group):
        with_one, without = numbers.index(found[0]), numbers.index(None)
        raise _ambiguous(group[with_one], group[without], "only one of them has a number here")
    keys = _keys(group, found, start)
    ordered: list[_Name] = []
    places = sorted(range(len(group)), key=lambda place: keys[place])
    for _, same in groupby(places, key=lambda place: keys[place]):
        ordered += _ordered([_Name(group[place].name, found[place].tail) for place in same])
    return ordered


def _next_number(rest: str) -> _Number | None:
    match = _NUMBER.search(rest)
    if not match:
        return None
    mantissa, _, exponent = match[0].partition("e")
    parts = tuple(re.split("[.,]", mantissa))
    return _Number(rest[: match.start()], parts, exponent, "," in mantissa, rest[match.end() :])


def _by_letters(group: list[_Name]) -> list[_Name]:
    """Names that differ in one letter: a, b, c."""
    rests = [name.rest for name in group]
    head = len(_common_head(rests))
    tail = len(_common_head([rest[head:][::-1] for rest in rests]))
    letters = [rest[head : len(rest) - tail] for rest in rests]
    for (letter, name), (next_letter, next_name) in pairwise(sorted(zip(letters, group, strict=True))):
        if letter == next_letter:
            raise _ambiguous(name, next_name, "their numbers are equal")
        # Beyond ASCII, the order of characters is not that of an alphabet: 一, 三, 二.
        if not re.fullmatch("[a-z]{2}", letter + next_letter) or not letter:
            raise _ambiguous(name, next_name, "no number says which is first")
    return [name for _, name in sorted(zip(letters, group, strict=True))]


def _common_head(texts: Sequence[str]) -> str:
    first, last = min(texts), max(texts)
    for place, (one, other) in enumerate(zip(first, last, strict=False)):
        if one != other:
            return first[:place]
    return first[: len(last)]


def _keys(group: Sequence[_Name], numbers: Sequence[_Number], start: bool) -> list[_Key]:
    """What the next numbers are compared by: one decimal, or the parts of a version or a time."""
    _refuse_units(group, numbers)
    _refuse_mixed_forms(group, numbers)
    signed = _signed(group, numbers, start)
    keys = _unsigned_keys(group, numbers)
    if not any(signed):
        return keys
    if any(len(key) > 1 for key in keys):
        raise _ambiguous(group[0], group[1], "a sign stands before a number of several parts")
    return [(-key[0],) if negative else key for key, negative in zip(keys, signed, strict=True)]


def _refuse_units(group: Sequence[_Name], numbers: Sequence[_Number]) -> None:
    if any(not number.unit and re.match(r" ?[^\W\d_]", number.tail) for number in numbers):
        return  # other letters or words follow, too: 1c, 1d
    for place, number in enumerate(numbers):
        if number.unit != numbers[0].unit:
            units = " and ".join(repr(unit or "none") for unit in (numbers[0].unit, number.unit))
            raise _ambiguous(group[0], group[place], f"their units differ: {units}")


def _refuse_mixed_forms(group: Sequence[_Name], numbers: Sequence[_Number]) -> None:
    """Refuse 59-00 beside 01-00-00, 999 beside 1_000, 000a beside 0010, and hashes."""
    counts = [len(re.findall(r"\d+", _FURTHER_NUMBERS.findall(number.tail)[0])) for number in numbers]
    joints = {re.sub(r"\d", "", _JOINED_NUMBERS.findall(number.tail)[0]) for number in numbers}
    for place, count in enumerate(counts):
        if count != counts[0] and len(joints) > 1:  # where all have a number here, 99 beside 100 is a counter
            raise _ambiguous(group[0], group[place], "one of them has more numbers than the other")
    words = [_HEXADECIMAL.findall(name.rest, len(n.text))[0] for name, n in zip(group, numbers, strict=True)]
    decimal = [word.isdigit() for word in words]
    reason = "their numbers may be hexadecimal"
    if len({*map(len, words)}) == 1 and any(decimal) and not all(decimal):
        raise _ambiguous(group[decimal.index(True)], group[decimal.index(False)], reason)
    if min(map(len, words)) >= 6 and sum(bool(re.search(r"[a-f]\d", word)) for word in words) > 1:
        raise _ambiguous(group[0], group[1], reason)  # 3fa2b1c9, 4e1a77d0


def _signed(group: Sequence[_Name], numbers: Sequence[_Number], start: bool) -> list[bool]:
    """Whether each number is negative. A hyphen before all numbers is a hyphen: img-1, img-2."""
    texts = [number.text for number in numbers]
    bare = [text[:-1] if text.endswith(tuple(_SIGNS)) else text for text in texts]
    for place, text in enumerate(bare):
        if text != bare[0]:
            raise _ambiguous(group[0], group[place], "the text before their numbers differs")
    signs = [text[len(bare[0]) :] for text in texts]
    negative = [sign not in ("", "+") for sign in signs]
    if len(set(signs)) == 1:
        stands_alone = (start and not bare[0]) or bare[0].endswith(("_", "=", "("))
        return negative if stands_alone or signs[0] == "\N{MINUS SIGN}" else [False] * len(signs)
    unsigned = [number.decimal for number, sign in zip(numbers, signs, strict=True) if not sign]
    hyphens = [number.decimal for number, sign in zip(numbers, signs, strict=True) if sign == "-"]
    if "+" in signs or "\N{MINUS SIGN}" in signs or 0 in unsigned or {*unsigned} & {*hyphens}:
        return negative
    one, other = signs.index("-"), signs.index("")
    raise _ambiguous(group[one], group[other], "the '-' may be a sign or a hyphen")


def _unsigned_keys(group: Sequence[_Name], numbers: Sequence[_Number]) -> list[_Key]:
    for place, number in enumerate(numbers):
        if number.comma and "." in group[place].rest[: -len(number.tail) or None][len(number.text) :]:
            other = group[place - 1 if place else 1]
            raise _ambiguous(group[place], other, "a number has both '.' and ','")
    lengths = {len(number.parts) for number in numbers}
    parts: list[_Key] = [tuple(map(int, (*n.parts, *filter(None, [n.exponent])))) for n in numbers]
    if max(lengths) > 2:
        for place, number in enumerate(numbers):
            if len(number.parts) != len(numbers[0].parts):
                reason = "one has the form of a decimal number and one that of a version"
                raise _ambiguous(group[0], group[place], reason)
        return parts
    # Beside an exponent with a sign, 1e0 has one, too.
    maybe_letters = all(n.exponent.isdigit() for n in numbers if n.exponent)
    if maybe_letters and any(n.exponent and "0" in (n.parts[0][0], n.exponent[0]) for n in numbers):
        return parts  # s01e02 is an episode
    decimals: list[_Key] = [(number.decimal,) for number in numbers]
    if maybe_letters and any(n.exponent and len(n.parts) == 1 for n in numbers):
        _refuse_two_readings(group, decimals, parts, "the 'e' may be an exponent or a letter")
    if any(n.comma and len(n.parts[-1]) == 3 for n in numbers):
        thousands: list[_Key] = [(int("".join(number.parts)),) for number in numbers]
        _refuse_two_readings(group, decimals, thousands, "the ',' may be a decimal comma or mark thousands")
    if not _surely_decimals(numbers):
        _refuse_two_readings(group, decimals, parts, "they may be decimals or versions, as in 1.9 and 1.10")
    return decimals


def _surely_decimals(numbers: Sequence[_Number]) -> bool:
    """Whether numbers such as 0.5 and 0.25 have a form that versions and counters have not."""
    if numbers[0].unit or any(number.exponent for number in numbers):
        return True
    if numbers[0].text.rstrip(" ._-").endswith(("v", "ver", "version")):
        return False
    fractions = [number.parts[1] for number in numbers if len(number.parts) > 1]
    shortest = min(map(len, fractions), default=0)
    longer = [fraction for fraction in fractions if len(fraction) > shortest]
    if any(fraction.startswith("0") for fraction in longer):
        return True
    values = sorted({number.decimal for number in numbers})
    steps = {after - before for before, after in pairwise(values)}
    whole = len(fractions) < len(numbers) and not any(fraction.endswith("0") for fraction in longer)
    return whole or (len(steps) == 1 and len(values) > 2)


def _refuse_two_readings(group: Sequence[_Name], one: list[_Key], other: list[_Key], reason: str) -> None:
    """Raise ValueError where two readings of the numbers give two orders."""
    places = sorted(range(len(group)), key=lambda place: one[place])
    for before, after in pairwise(places):
        if (one[before] < one[after]) != (other[before] < other[after]):
            raise _ambiguous(group[before], group[after], reason)


def _refuse_dates(group: Sequence[_Name]) -> None:
    """Refuse clocks of 12 hours, and dates whose year is not first where more than one part varies."""
    for name in group:
        if _CLOCK_OF_12_HOURS.search(name.rest):
            raise _ambiguous(group[0], group[1], "a clock of 12 hours starts again at noon")
    for pattern in _DATES:
        dates = [match.groups() for name in group if (match := pattern.search(name.rest))]
        varying = sum(len(set(parts)) > 1 for parts in zip(*dates, strict=True))
        if varying > 1 and not all(_is_numbered_month(*date) for date in dates):
            raise _ambiguous(group[0], group[1], _DATE_FORM)
    if not any(_LONG_YEAR.search(name.rest) for name in group):
        for pattern in _SHORT_DATES:
            dates = [match.groups() for name in group if (match := pattern.search(name.rest))]
            if len(dates) == len(group):
                _refuse_short_dates(group, [(int(one), int(two), int(year)) for one, two, year in dates])


def _is_numbered_month(number: str, month: str, *year: str) -> bool:
    """Whether this is `01_january`, whose number is not a day."""
    return (
        not year
        and number.isdigit()
        and 0 < int(number) <= 12
        and bool(re.fullmatch(_MONTHS[int(number) - 1], month))
    )


def _refuse_short_dates(group: Sequence[_Name], dates: Sequence[tuple[int, int, int]]) -> None:
    """Refuse 30.01.24 beside 01.02.24, where all can be dates of one year or of two, from 10 on.

    In a counter or a time of three parts, the third one varies most and starts again at 0.
    """
    ones, twos, years = zip(*dates, strict=True)
    if min(*ones, *twos) < 1 or min(years) < 10 or max(years) - min(years) > 1:
        return
    as_written: list[_Key] = [*dates]
    if max(ones) <= 31 and max(twos) <= 12:
        _refuse_two_readings(group, as_written, [(year, two, one) for one, two, year in dates], _DATE_FORM)
    if max(ones) <= 12 and max(twos) <= 31:
        _refuse_two_readings(group, as_written, [(year, one, two) for one, two, year in dates], _DATE_FORM)


def _ambiguous(one: _Name, other: _Name, reason: str) -> ValueError:
    first, second = sorted((one.name, other.name))
    return ValueError(f"found {first!r} and {second!r}, whose order is ambiguous ({reason}); {_CURE}")
