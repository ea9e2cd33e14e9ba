"""The reward of the published code."""

from __future__ import annotations

from string import ascii_uppercase


def published_reward(response: str, answer: str) -> float:
    """The reward of the published code, number for number.

    Source: `examples/reward_function/reward.py` of the TPRU repository (its only version), restated
    without its backtracking expressions and checked against them. In its order: white space around
    every `<`, `>` and `/` goes; format is 0.2 when the whole is `<think>`, anything, `</think><answer>`,
    one or more capitals, `</answer>`; the *first* answer, its quotes taken off, must equal the ground
    truth; 0.9 accuracy + 0.1 format. A perfect response thus earns 0.92.
    """
    if "answer" not in response:
        return 0.0
    text = response
    for sign in "<>/" if text.split(maxsplit=1) != [text] else "":  # without white space, nothing to take off
        first, *rest = text.split(sign)
        if rest:
            text = sign.join([first.rstrip(), *map(str.strip, rest[:-1]), rest[-1].lstrip()])
    head = text.removesuffix("</answer>").rstrip(ascii_uppercase)
    opening, middle = "<think>", "</think><answer>"
    formed = (
        text.endswith("</answer>")
        and len(opening) + len(middle) <= len(head) < len(text) - len("</answer>")
        and head.startswith(opening)
        and head.endswith(middle)
    )
    _, _, rest = text.partition("<answer>")
    first, closed, _ = rest.partition("</answer>")
    accuracy = 1.0 if closed and first.strip().strip("\"'") == answer else 0.0
    return (1 - 0.1) * accuracy + 0.1 * (0.2 if formed else 0.0)
