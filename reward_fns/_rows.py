"""What the adapters share: where a row keeps its answer, and what the model said."""

import os
from collections.abc import Mapping, Sequence
from reprlib import repr as shortened
from typing import TypedDict

from tpru_verl.grading import Grade, grade

# The first of these that a row has (and that is not None) is its ground truth.
ANSWERS = ("answer", "solution", "ground_truth", "label")
# Some frameworks hand over undecorated tokens; what ends a turn is no part of the answer.
_ENDS = (
    "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|end|>",
    "<|return|>", "</s>", "<eos>", "<end_of_turn>", "<turn|>", "<pad>", "<｜end▁of▁sentence｜>",  # noqa: RUF001
)  # fmt: skip


class Settings(TypedDict):
    """What of `Grade.score` a user chooses."""

    preset: str
    max_length: int | None
    ngram: int | None


def chosen(preset: str | None = None, max_length: int | None = None, ngram: int | None = None) -> Settings:
    """What is given, else TPRU_PRESET, TPRU_MAX_LENGTH, TPRU_NGRAM, else `tpru` without penalties."""
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


def grade_answer(response: object, answer: object, column: str, info: object = None) -> Grade:
    """Grades what a completion says; `info` (our `extra_info`) may hold its task and options.

    Raises ValueError, naming `column`, where the answer is missing or the completion is none.
    """
    if not isinstance(answer, str) or not answer.strip():
        found = shortened(answer)
        raise ValueError(f"{column}: found {found}, expected the right answer, such as 'C' or '4 2 3 1'")
    known = info if isinstance(info, Mapping) else {}
    task, options = known.get("task"), known.get("options")
    if isinstance(options, Mapping):
        options = {str(k): str(v) for k, v in options.items() if v is not None}
    else:
        options = None
    return grade(said(response), answer, task=str(task) if task else None, options=options or None)


def grade_row(response: object, row: Mapping[str, object], where: str = "row") -> Grade:
    """Grades a completion against the answer of its row, whatever that column is called."""
    column = next((name for name in ANSWERS if row.get(name) is not None), None)
    if column is None:
        columns = ", ".join(f"{name} (None)" if row[name] is None else name for name in row) or "no columns"
        raise ValueError(f"{where}: found {columns}, expected a right answer in {' or '.join(ANSWERS)}")
    info = row.get("extra_info") or row.get("info")
    info = {"options": row.get("options"), **(info if isinstance(info, Mapping) else {})}
    return grade_answer(response, row[column], f"{where}, {column}", info)


def grade_columns(completions: Sequence[object], columns: Mapping[str, object]) -> list[Grade]:
    """Grades a batch whose rows are given as columns; what is not a list is no column."""
    rows = {name: values for name, values in columns.items() if isinstance(values, list | tuple)}
    for name, values in rows.items():
        if name in ANSWERS and len(values) != len(completions):
            raise ValueError(f"{name}: found {len(values)} values, expected {len(completions)} (completions)")
    kept = {name: values for name, values in rows.items() if len(values) == len(completions)}
    return [
        grade_row(completion, {name: values[i] for name, values in kept.items()}, f"row {i} of the batch")
        for i, completion in enumerate(completions)
    ]


def said(completion: object) -> str:
    """The text of a completion: itself, or what the last message of the assistant says.

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
    """What follows the prompt in `query`, also where the prompt was cut, or its images became tokens."""
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
