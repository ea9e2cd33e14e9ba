"""Grades one response against one answer.  Standard library only, linear time, raises on no response.

A response gives its answer in `<answer>...</answer>`, after the reasoning. The reading is tolerant of how an
answer is written and strict about what it says; the right answer of a row is read by the same rules.
`docs/rewards.md` states them. The sections:

- `normalise`: one form of each character, without decoration.
- `compare`: the option or the order that a short text names.
- `response`: where a response gives its answer, and its form.
- `orders`, `penalties`, `published`: partial credit, penalties, the reward of the published code.
- `grader`: all of these in one grade.
"""

from tpru_verl.grading.grader import PRESETS, Grade, grade, read_answer
from tpru_verl.grading.orders import MEASURES, order_credit
from tpru_verl.grading.penalties import penalty
from tpru_verl.grading.published import published_reward

__all__ = [
    "MEASURES",
    "PRESETS",
    "Grade",
    "grade",
    "order_credit",
    "penalty",
    "published_reward",
    "read_answer",
]
