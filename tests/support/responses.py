"""Outputs of a model, and what each earns with preset `tpru` where B is right."""

from typing import Any

RIGHT, WRONG = "<think>x</think><answer>B</answer>", "<think>x</think><answer>A</answer>"
LOOSE = "The answer: <answer>B</answer>"  # right, in the wrong form
NONSENSE = "I see a dog."
SCORES = {RIGHT: 1.0, WRONG: 0.125, LOOSE: 0.875, NONSENSE: 0.0}


def talk(text: str) -> list[dict[str, Any]]:
    """A conversation in which the assistant says `text`."""
    return [{"role": "assistant", "content": text}]
