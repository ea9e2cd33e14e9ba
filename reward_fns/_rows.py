"""Parts that the adapters share: where a row keeps its answer and options, and the text of a completion."""

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from reprlib import repr as shortened
from typing import TypedDict

from tpru_verl.grading import Grade, grade, read_answer
from tpru_verl.sample import IMAGE_TAG, parse_options

# The first of these that a row has (and that is not None) is its ground truth.
ANSWERS = ("answer", "solution", "ground_truth", "label")
# The first of these that a row has is its question, which lists the options.
_QUESTIONS = ("problem", "prompts", "prompt", "messages")
_PICTURE = re.compile(
    r"(?:<\|vision_start\|>)?(?:<\|image_pad\|>)+(?:<\|vision_end\|>)?"
)  # in a chat template
_USER = "<|im_start|>user"  # the last turn of a user begins here in a prompt that is text
# Some frameworks decode a response with its special tokens; those that end a turn are no part of it.
_ENDS = (
    "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|end|>",
    "<|return|>", "</s>", "<eos>", "<end_of_turn>", "<turn|>", "<pad>", "<｜end▁of▁sentence｜>",  # noqa: RUF001
)  # fmt: skip


class Settings(TypedDict):
    """The arguments of `Grade.score` that a user chooses."""

    preset: str
    max_length: int | None
    ngram: int | None


def chosen(preset: str | None = None, max_length: int | None = None, ngram: int | None = None) -> Settings:
    """The given values, else TPRU_PRESET, TPRU_MAX_LENGTH and TPRU_NGRAM, else `tpru` without penalties."""
    return Settings(
        preset=preset or os.environ.get("TPRU_PRESET") or "tpru",
        max_length=_number("TPRU_MAX_LENGTH") if max_length is None else max_length,
        ngram=_number("TPRU_NGRAM") if ngram is None else ngram,
    )


def _number(variable: str) -> int | None:
    text = os.environ.get(variable)
    if not text:
        return None
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{variable}: found {text!r}, expected a whole number")
    return int(text)


def has_opened_think(given: object = None, prompt: object = "") -> bool:
    """Whether the chat template has opened `<think>`, so that a response begins inside of the reasoning.

    The given value decides, else TPRU_OPENED_THINK (0 or 1), else whether `prompt`, the text with its chat
    template, ends with `<think>`. Raises ValueError for another value of the variable.
    """
    if given is not None:
        return bool(given)
    told = os.environ.get("TPRU_OPENED_THINK")
    if told in ("0", "1"):
        return told == "1"
    if told:
        raise ValueError(f"TPRU_OPENED_THINK: found {told!r}, expected 0 or 1")
    return isinstance(prompt, str) and prompt.rstrip().endswith("<think>")


def grade_answer(
    response: object,
    answer: object,
    column: str,
    info: object = None,
    *,
    question: object = None,
    opened: bool = False,
) -> Grade:
    """Grades a completion; `info` (our `extra_info`) may hold its task, options or problem, and row id.

    `question`: the problem or the prompt, text or messages, where it is known. `opened`: the chat template
    has opened `<think>`. Raises ValueError, naming row and column, where the right answer is missing or no
    response can match it, and where the completion is none.
    """
    known = info if isinstance(info, Mapping) else {}
    options, task = _options(known), str(known.get("task") or "") or None
    if options is None and (guessed := parse_options(_asked(question))):
        with suppress(ValueError):  # words of a prompt may look like options
            read_answer(answer, guessed, task)
            options = guessed
    try:
        read_answer(answer, options, task)
    except ValueError as error:
        row = known.get("row_id")
        raise ValueError(f"row {row}, {column}: {error}" if row else f"{column}: {error}") from None
    return grade(said(response), str(answer), task=task, options=options, opened_think=opened)


def _options(info: Mapping[str, object]) -> dict[str, str] | None:
    """Letter -> text: those that `info` names, else those that its problem lists."""
    given = info.get("options")
    named = given.items() if isinstance(given, Mapping) else ()
    options = {str(letter): str(text) for letter, text in named if text is not None}
    if len(options) < 2:
        options = parse_options(_asked(info.get("problem")))
    return options or None


def _asked(question: object) -> str:
    """The text of a problem or a prompt, of messages the user's last one, with `<image>` for each picture."""
    if isinstance(question, Sequence) and not isinstance(question, str):
        turns = [turn for turn in question if isinstance(turn, Mapping) and turn.get("role") == "user"]
        question = turns[-1].get("content") if turns else ""
    if isinstance(question, Sequence) and not isinstance(question, str):  # a message in parts
        parts = [part for part in question if isinstance(part, Mapping)]
        texts = (IMAGE_TAG if "image" in str(part.get("type")) else part.get("text") or "" for part in parts)
        question = "".join(map(str, texts))
    text = _PICTURE.sub(IMAGE_TAG, question.rpartition(_USER)[2]) if isinstance(question, str) else ""
    for token in _ENDS:  # of a turn, in a prompt that is text
        text = text.replace(token, "\n")
    return text


def grade_row(
    response: object, row: Mapping[str, object], where: str = "row", *, opened: bool = False
) -> Grade:
    """Grades a completion against the answer of its row, whatever that column is called.

    The options are those of `extra_info`, `info` or `options`, else those that the row's question lists.
    """
    column = next((name for name in ANSWERS if row.get(name) is not None), None)
    if column is None:
        columns = ", ".join(f"{name} (None)" if row[name] is None else name for name in row) or "no columns"
        raise ValueError(f"{where}: found {columns}, expected a right answer in {' or '.join(ANSWERS)}")
    info = row.get("extra_info") or row.get("info")
    info = {"options": row.get("options"), **(info if isinstance(info, Mapping) else {})}
    question = next((row[name] for name in _QUESTIONS if row.get(name)), None)
    return grade_answer(response, row[column], f"{where}, {column}", info, question=question, opened=opened)


def grade_columns(
    completions: Sequence[object], columns: Mapping[str, object], *, opened: bool | None = None
) -> list[Grade]:
    """Grades a batch whose rows are given as columns; a value that is no list is no column."""
    rows = {name: values for name, values in columns.items() if isinstance(values, list | tuple)}
    for name, values in rows.items():
        if name in ANSWERS and len(values) != len(completions):
            raise ValueError(f"{name}: found {len(values)} values, expected {len(completions)} (completions)")
    kept = {name: values for name, values in rows.items() if len(values) == len(completions)}
    grades = []
    for i, completion in enumerate(completions):
        row = {name: values[i] for name, values in kept.items()}
        begun = has_opened_think(opened, row.get("prompts"))
        grades.append(grade_row(completion, row, f"row {i} of the batch", opened=begun))
    return grades


def said(completion: object) -> str:
    """The text of a completion: itself, or the content of the last message of the assistant.

    Reasoning that a server has put into a field of its own comes back as `<think>...</think>`.
    """
    if isinstance(completion, str):
        return completion
    if not isinstance(completion, Sequence):
        raise ValueError(f"completion: found {shortened(completion)}, expected text or a list of messages")
    messages = [m for m in completion if isinstance(m, Mapping) and m.get("role") == "assistant"]
    message = messages[-1] if messages else {}
    content, reasoning = message.get("content") or "", message.get("reasoning_content")
    if not isinstance(content, str):
        content = "".join(str(part.get("text") or "") for part in content if isinstance(part, Mapping))
    return f"<think>{reasoning}</think>{content}" if reasoning else content


def without_end(text: str) -> str:
    """`text` without the tokens that end a turn, where it was decoded with its special tokens."""
    kept, end = len(text), len(text)
    while True:
        while end and text[end - 1].isspace():
            end -= 1
        token = next((token for token in _ENDS if text.endswith(token, 0, end)), None)
        if token is None:
            return text[:kept]
        kept = end = end - len(token)


def after_prompt(query: str, prompt: str) -> str:
    """The text after the prompt in `query`, also where the prompt was cut, or its images became tokens."""
    if query.startswith(prompt):
        return query[len(prompt) :]
    shortest, longest = 0, len(prompt)  # of the prompt's ends, the longest that occurs in the query
    while shortest < longest:
        middle = (shortest + longest + 1) // 2
        shortest, longest = (middle, longest) if prompt[-middle:] in query else (shortest, middle - 1)
    tail = prompt[len(prompt) - shortest :]
    if len(tail) < min(8, len(prompt)):
        found, expected = shortened(query), shortened(prompt)
        raise ValueError(f"queries: found {found}, expected the prompt ({expected}) and what follows it")
    return query.split(tail, prompt.count(tail))[-1]
