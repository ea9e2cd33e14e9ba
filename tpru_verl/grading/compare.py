"""Compare: which option, or which order, a short text names.

A text names an option by its letter, by its text or by both, and may add a remark that contradicts neither:
`C`, `(C) 4 2 3 1`, `the red cup`, `C is correct`, `C, not A`. A remark that denies the answer, offers
another one or gives the text of another option leaves no answer at all.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from tpru_verl.grading.normalise import plain, squash, undress
from tpru_verl.grading.orders import NUMBER_WORDS, order_of

__all__ = ["MAX_ANSWER", "announces", "choice_of", "named_order", "read"]

MAX_ANSWER = 256  # characters; a longer answer is an essay, not a choice

_NOUN = r"(?:answer|option|choice|letter|order|sequence|image|frame|picture|photo)s?"
_WHICH = r"(?:next|previous|missing|following|earlier|chronological|temporal)"
_BE = r"(?:is|are|was|(?:must|should|would)\s+be)"
# "answer" in German, French, Spanish, Portuguese, Italian and Russian
_FOREIGN = (
    r"(?:antwort|r[\u00e9e]ponse|respuesta|resposta|risposta"
    r"|[o\u043e]\u0442\u0432\u0435\u0442)"
)
_LEAD = re.compile(  # "So, the correct answer is", "I choose", "It is", "Option", "答案是", "选"
    r"(?:(?:"
    r"(?:so|therefore|thus|hence|finally|overall|consequently|in\s+conclusion|as\s+a\s+result)(?![a-z])"
    r"|(?:(?:the|my|our)\s+)?(?:(?:final|correct|right|best|most\s+likely|"
    + _WHICH
    + r")\s+)*(?:"
    + _NOUN
    + "|"
    + _WHICH
    + r"\s+step)(?![a-z])"
    r"(?:\s+(?:of|for)\s+(?:the\s+)?(?:images|frames|pictures|photos|steps)(?![a-z]))?(?:\s*"
    + _BE
    + r"(?![a-z]))?"
    r"|(?:i|we)(?:\s+(?:would|will)|'ll|'d)?\s+(?:choose|pick|select|say|think|believe|go\s+(?:with|for))(?![a-z])"
    r"(?:\s+(?:that\s+)?it(?:\s+is|'s)(?![a-z]))?"
    r"|(?:it|this|that)(?:\s+" + _BE + r"|'s)(?![a-z])"
    r"|∴|[【\[](?:最终|正[确確])?答案[】\]]|因此|所以|综上(?:所述)?|我|[应應]该?|故|正[确確]|最终|最佳|的|答案|[选選][项項]|[选選]择|[选選]|顺序|[为為]|是|答(?=[:\s])"
    r"|答え|正解|は|정답|답|은|는"
    r"|(?:(?:die|la|le|el|a|o)\s+)?(?:(?:richtige|bonne|correcte?a?|correta|corretta)\s+)?"
    + _FOREIGN
    + r"(?![^\W\d_])(?:\s+correcta?e?(?![^\W\d_]))?"
    r"(?:\s+(?:ist|est|es|é|è)(?![^\W\d_]))?(?:\s+(?:la|le|el|die)(?=\s))?"
    r")[\s,:=]*)+",
    re.IGNORECASE,
)
_CONFIRMED = re.compile(
    r"(?:\s*(?:です|だ|입니다|이다|[选選]?[项項]))+$|\s+is\s+(?:(?:the|my)\s+answer|(?:the\s+)?(?:final|correct|right|best)(?:\s+"
    + _NOUN
    + r")?)$",
    re.IGNORECASE,
)
_ANNOUNCEMENT = re.compile(
    r"answer|option|choice|choose|pick|select|go\s+(?:with|for)|"
    + _WHICH
    + r"|答|正解|[选選]|답|"
    + _FOREIGN,
    re.IGNORECASE,
)

# A character of a word. Chinese and Japanese have no space between a word and a letter.
_INNER = r"[^\W\u3040-\u30ff\u3400-\u9fff]"
_ENDS = rf"(?!['\u2019]?{_INNER})"
_LETTER = re.compile(r"[(\[{\u3010\u3014\u300c]?\s?([A-Za-z])" + _ENDS)
_LABEL = re.compile(r"\s?[)\]}\u3011\u3015\u300d.:\u3002\u3001]+")  # "C. text": the text is the option's
_REMARK = re.compile(  # "C, text", a line below, "C - text", "C because", "C is correct", "C and not A"
    r"\s?[,;!]|\s*\n|\s+(?=[-\u2013\u2014(\[])|\s+(?=(?:is|was|seems|(?:must|should|would)\s+be|(?:and|but)\s+not|not"
    r"|because|since|as|rather\s+than|instead\s+of)\b)|\s*(?=是?(?:正确|对)|而?不是)",
    re.IGNORECASE,
)
_LETTER_AFTER = re.compile(r"[(\[\u3010\u3014]\s?([A-Za-z])\s?[)\]\u3011\u3015]$")  # "the red cup (C)"

_BESIDE = re.compile(  # "C the red cup", "C = the red cup", "the red cup: C"
    r"([A-Za-z])[\s=]+(\S.*)|(.*\S)\s?[,:]\s?([A-Za-z])", re.DOTALL
)

_LONE_LETTER = re.compile(rf"(?<!{_INNER})(?<!{_INNER}['\u2019])([A-Za-z]){_ENDS}")
# No options: "a pot", "A pot" where a sentence begins, "I see". An option does something: "A is", "I fits".
_ARTICLE = re.compile(
    r"\ba(?=\s+[a-z]{2})|\bI(?=\s+[a-z]+(?<!s)\b)|(?:^|(?<=[.!?]\s))A(?=\s+(?!(?:and|or|as|if|too|also|then|but"
    r"|not|nor|instead|again|maybe|perhaps|first|next|later|earlier|after|before|in|on|at|to|for|by|would|can"
    r"|could|may|might|must|should|will|does)\b)[a-z]+(?<!s)\b)"
)
_LABEL_GROUP = re.compile(r"\b(?:[A-H]{2,}|[A-H]\d+)\b")  # "BCDE", "B1"

_EXCLUDED = re.compile(  # "and not B", "(not A or D)", "rather than B"
    r"(?:(?:\b(?:and|but)\s+)?\b(?:not|rather\s+than|instead\s+of)\s+|而?不是\s*)(?:(?:option|image|the)\s+)*"
    r"\(?(?-i:[A-Z])\)?(?![\w'])(?:\s*(?:,|/|\b(?:or|nor|and)\b|或|和)\s*(?:option\s+)?\(?(?-i:[A-Z])\)?(?![\w']))*",
    re.IGNORECASE,
)
_AFFIRMED = re.compile(  # "is correct", "is the right answer", "正确"
    r"(?:(?:it|this|that|which)\s+)?(?:(?:" + _BE + r"|seems|seems\s+to\s+be)\s+)?"
    r"(?:(?:the|my|clearly|definitely|most\s+likely)\s+)*"
    r"(?:(?:final|correct|right|best|true)(?:\s+"
    + _NOUN
    + r"|\s+one)?|(?:(?<=the\s)|(?<=my\s))"
    + _NOUN
    + r")"
    r"(?=\s*(?:$|[,.;:!()-]|because\b|since\b|as\b))|是?(?:正确|对)的?(?:答案|选项)?",
    re.IGNORECASE,
)
# Of the letter, not of what its picture shows: "is the worst choice", "too late", not "the least full glass".
_VERDICT = (
    r"(?:(?:the\s+)?(?:worst|least\s+(?:likely|plausible))(?:\s+(?:answer|choice|option|one))?|(?:comes?\s+)?too\s+"
    r"(?:early|late)|discard(?:\s+(?:it|this))?)(?=\s*(?:$|[,.;:!]))|(?:the\s+)?opposite\s+of\s+(?:the\s+answer|what)"
)
_DENIED = re.compile(  # at the start of a remark, or of the answer itself
    r"(?:(?:is|are|was|has|it|this|that|which|but|definitely|certainly|clearly|probably|surely|actually|i|am|be"
    r"|must|should|would|could|can|does|do)\s+)*(?:not|never|no(?=\s*$|\s*[,.;:!])|none(?=\s+of\s+th(?:em|ese|ose))|neither|nor"
    r"|cannot|wrong|incorrect|false|isn['\u2019]t|can['\u2019]t|doesn['\u2019]t|wasn['\u2019]t|won['\u2019]t"
    r"|unlikely|except|"
    + _VERDICT
    + r"|(?:been\s+)?(?:ruled\s+out|excluded|eliminated|rejected|discarded|impossible))(?![\w'])"
    r"|.*(?:\b(?:(?:is|it's|that's|was|be)\s+(?:\w+\s+)?(?:wrong|incorrect|false)"
    r"|not\s+(?:\w+\s+)?(?:right|correct|answer|option|choice|one|it))\b|不对|不是|不正确|错)",
    re.IGNORECASE | re.DOTALL,
)
_UNSURE = re.compile(  # a denial or an alternative, anywhere in a remark
    r"\b(?:no|not|none|never|neither|nor|cannot|wrong|incorrect|false|unlikely|except"
    r"|or|either|another|others?|both|any|all)\b|n['\u2019]t\b|[/|不错非没或]",
    re.IGNORECASE,
)
_SECOND = re.compile(  # a second answer beside the first one
    r"\W*(?:or|either|both)\b"
    r"|.*(?:\d\W*(?:\bor\b|[/|]|或)\W*\d|\b(?:all\s+of\b"
    r"|(?:another|the\s+other|first|second|third|fourth|fifth|last)\s+(?:one|option|choice|answer)\b"
    r"|(?:option|choice|answer)\s+(?:\d|(?:" + "|".join(NUMBER_WORDS) + r"|first|second|third|last)\b)))",
    re.IGNORECASE | re.DOTALL,
)
_REASON = re.compile(r"(?:because|since|as|due\s+to|因为)(?![a-z])", re.IGNORECASE)

_NO_OPTION = re.compile(
    r"(?:it\s+is\s+)?none(?:\s+of\s+(?:the|these|them|those)(?:\s+\w+){0,4})?|以上都不[对是]|都不[对是]|以上皆非",
    re.IGNORECASE,
)
_WORD = re.compile(rf"[\u3040-\u30ff\u3400-\u9fff]|{_INNER}+")
_NAMED_IMAGE = re.compile(r"\b(?:image|frame|picture|photo|step)s?\s+\d+\b", re.IGNORECASE)
_COMMON = frozenset(  # words that do not tell one text from another
    re.findall(
        r"\w+",
        "a an the of to in on at is are was be and as by for from with into it its he his she her they their "
        "this that then there image picture frame option",
    )
)


class Reading(NamedTuple):
    """What a short text says, whatever the options: each reading that is possible."""

    text: str  # without decoration
    exact: str = ""  # `text` as it is compared with the text of an option
    keys: frozenset[str] = frozenset()  # all that may be compared with the text of an option
    letter: str | None = None
    labels: bool = False  # "C. text", whose text has to be the option's; not "C, remark"
    rest: str = ""  # the text or the remark beside the letter
    order: tuple[str, ...] | None = None


@lru_cache(maxsize=4096)  # a group of responses says few different things, and the options stay the same
def read(text: str) -> Reading:
    """Every reading of a text; an empty one where it is longer than MAX_ANSWER."""
    if len(text) > MAX_ANSWER:
        return Reading("")
    text = undress(plain(text))
    lead = _LEAD.match(text)
    bare = text[lead.end() if lead else 0 :]
    bare = undress(_CONFIRMED.sub("", bare)) if lead or " is " in text or not text.isascii() else text
    order = order_of(bare)
    exact = "" if "<image>" in text else squash(text)  # `<image>` names no option
    keys = frozenset() if "<image>" in text else _keys(exact, text, bare, order)
    return Reading(text, exact, keys, *_letter_and_rest(bare), order)


def announces(text: str) -> bool:
    """Whether a text begins with words that announce an answer: "So, the answer is", "I choose"."""
    lead = _LEAD.match(undress(plain(text)))
    return lead is not None and _ANNOUNCEMENT.search(lead[0]) is not None


def _keys(exact: str, text: str, bare: str, order: tuple[str, ...] | None) -> frozenset[str]:
    """What a text is compared by."""
    keys = {exact, " ".join(order or ())}
    if bare != text and (len(bare) > 1 or not bare.isalpha()):  # "Option C" is a letter, not the text "C"
        keys.add(squash(bare))
    if _NO_OPTION.fullmatch(bare) or (bare != text and _NO_OPTION.fullmatch(text)):
        keys.add("none of the options")
    return frozenset(keys - {""})


def _letter_and_rest(bare: str) -> tuple[str | None, bool, str]:
    """The letter that begins or ends a text, whether it labels the rest, and the rest."""
    if match := _LETTER.match(bare):
        letter, tail = match[1].upper(), bare[match.end() :]
        if not tail.strip():
            return letter, False, ""
        for pattern, labels in ((_LABEL, True), (_REMARK, False)):
            if mark := pattern.match(tail):
                return letter, labels, tail[mark.end() :].strip()
    elif match := _LETTER_AFTER.search(bare):
        return match[1].upper(), True, bare[: match.start()].strip()
    return None, False, ""


def named_order(text: str, labels: Sequence[str]) -> str | None:
    """The order that a text gives; None for other labels, or more or fewer of them."""
    order = read(text).order
    return " ".join(order) if order and sorted(order) == sorted(labels) else None


class _Options(NamedTuple):
    """The options of a row, by their letters."""

    read: dict[str, Reading]
    keys: frozenset[str]  # those of all options
    words: dict[str, frozenset[str]]
    others: dict[str, frozenset[str]]  # words of the other options that are not in this one


@lru_cache(maxsize=1024)
def _read_options(known: tuple[tuple[str, str], ...]) -> _Options:
    readings = {name: read(text) for name, text in known}
    words = {name: _words(text) for name, text in known}
    others = {
        name: frozenset().union(*(words[other] for other in words if other != name)) - words[name]
        for name in words
    }
    return _Options(readings, frozenset().union(*(one.keys for one in readings.values())), words, others)


@lru_cache(maxsize=4096)
def choice_of(text: str, known: tuple[tuple[str, str], ...]) -> str | None:
    """The one option letter that a text names, or None; without options, any letter will do."""
    reading, options = read(text), _read_options(known)
    if known and len(reading.text) == 1 and reading.text.upper() in options.read:
        return reading.text.upper()
    if not reading.keys.isdisjoint(options.keys):
        named = [name for name, one in options.read.items() if reading.exact and reading.exact == one.exact]
        named = named or [name for name, one in options.read.items() if reading.keys & one.keys]
        if len(named) == 1:
            return named[0]
    if known and (beside := _BESIDE.fullmatch(reading.text)):
        own = options.read.get((beside[1] or beside[4]).upper(), Reading("")).exact
        if own and squash(beside[2] or beside[3]) == own:
            return (beside[1] or beside[4]).upper()
    letter = reading.letter
    if letter is None or (known and letter not in options.read):
        return None
    return letter if not reading.rest or _stands(reading, letter, options) else None


def _stands(reading: Reading, letter: str, options: _Options) -> bool:
    """Whether what stands beside an option's letter is its text, or a remark that takes nothing back."""
    said, own = read(reading.rest), options.read.get(letter, Reading(""))
    if not said.keys.isdisjoint(own.keys):
        return True
    if not said.keys.isdisjoint(options.keys):
        return False
    rest = reading.rest
    if excluded := [match[0] for match in _EXCLUDED.finditer(rest)]:
        rest = _EXCLUDED.sub(" ", rest)
    if any(letter in _LONE_LETTER.findall(text) for text in excluded):
        return False
    rest = undress(rest).lstrip("-\u2013\u2014 ")
    affirmed = _AFFIRMED.match(rest)
    rest = undress(rest[affirmed.end() :]) if affirmed else rest
    if not rest:
        return bool(excluded or affirmed)
    if _names_another(rest, letter, options) or _SECOND.match(rest):
        return False
    if own.text and "<image>" not in own.text:
        return not _DENIED.match(rest) and _fits(
            rest, letter, options, labels=reading.labels and not affirmed
        )
    return not _DENIED.match(rest) and not (options.read and _numbers(rest))


def _names_another(rest: str, letter: str, options: _Options) -> bool:
    """Whether a remark holds the letter of another option, or several letters as one word."""
    rest = _ARTICLE.sub(" ", rest)
    others = {name.upper() for name in _LONE_LETTER.findall(rest)} - {letter}
    return bool(others & options.read.keys() if options.read else others) or bool(_LABEL_GROUP.search(rest))


def _numbers(rest: str) -> bool:
    """Whether a remark to an option without a text is a number or an order, rather than words."""
    words = _NAMED_IMAGE.sub(" ", rest).casefold().split()
    return order_of(rest) is not None or any(NUMBER_WORDS.get(word, word).isdigit() for word in words)


def _fits(rest: str, letter: str, options: _Options, *, labels: bool) -> bool:
    """Whether a remark to an option whose text is known holds words of that text, and of no other one's.

    Where the letter labels the remark (`C. ...`), it has to hold one of the text's words, or be a reason.
    """
    own, said = options.words[letter], _words(rest)
    if said & options.others[letter] or _UNSURE.search(rest):
        return False
    is_order = options.read[letter].order is not None
    numbers = {word for word in (said if is_order else _words(_NAMED_IMAGE.sub(" ", rest))) if word.isdigit()}
    if numbers and (is_order or numbers - own):
        return False
    return not labels or bool(said & own) or _REASON.match(rest) is not None


@lru_cache(maxsize=1024)
def _words(text: str) -> frozenset[str]:
    """The words that tell one text from another; each Chinese or Japanese character is one."""
    found = _WORD.findall(plain(text).casefold())
    return frozenset(NUMBER_WORDS.get(word) or word for word in found) - _COMMON
