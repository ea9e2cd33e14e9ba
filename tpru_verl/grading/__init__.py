"""Grades one response against one answer.  Standard library only, linear time, raises on no response.

What counts is the answer that ends the response, in `<answer>...</answer>` after the reasoning.  The
reading is tolerant of how an answer is written and strict about what it says: two different answers, one
outside of the options, or a tag nested or left open, are none.  The ground truth is read by the same rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tpru_verl.grading.orders import order_credit
from tpru_verl.grading.penalties import on_grid, penalty
from tpru_verl.grading.published import published_reward
from tpru_verl.grading.reading import answers_of, arranged, choice_of, counts_up, format_of, read

PRESETS = ("tpru", "tpru_partial", "paper")


@dataclass(frozen=True)
class Grade:
    """What one response earned: every number lies in [0, 1].

    `parsed` is the answer as read ("C", "4 2 3 1"), None when there is none; `partial` is the share of
    pairs in the right order (`order_credit`, "kendall") where the answer is an order, or the letter of
    an option that is one, and the accuracy elsewhere.
    """

    accuracy: float
    format: float
    partial: float
    parsed: str | None
    _graded: tuple[str, str] = field(default=("", ""), repr=False, compare=False)  # response, answer

    @property
    def published(self) -> float:
        """What the published reward function gives the same response; worked out when asked for."""
        return published_reward(*self._graded)

    def score(
        self,
        preset: str = "tpru",
        *,
        max_length: int | None = None,
        ngram: int | None = None,
        length: int | None = None,
    ) -> float:
        """The reward, less `penalty` where `max_length` or `ngram` is given: in [-1, 1].

        Raises ValueError for an unknown preset, or a penalty's number that makes no sense.

        `tpru` is 7/8 accuracy + 1/8 format: a perfect response earns exactly 1, a right answer in the
        wrong form more than a wrong one in the right form, and every value is a small dyadic fraction,
        so that sums and means of ties are exact in float32 and bfloat16.

        `tpru_partial` has `partial` in place of accuracy and is rounded to the nearest 1/64, because the
        sixths of four images are not dyadic: ties stay exact, a perfect response earns exactly 1, and
        the rounding keeps the order of any two orders of up to 11 images. Of up to 4 images, the best
        wrong order in the right form (55/64) still earns less than a right one in the wrong form
        (56/64); of 5 and more it earns more.

        `paper` is `published`. It is not dyadic: equal scores of a group need not have advantage 0.
        """
        if preset == "tpru":
            earned = 0.875 * self.accuracy + 0.125 * self.format
        elif preset == "tpru_partial":
            earned = on_grid(0.875 * self.partial + 0.125 * self.format)
        elif preset == "paper":
            earned = self.published
        else:
            raise ValueError(f"preset: found {preset!r}, expected one of {', '.join(PRESETS)}")
        if max_length is None and ngram is None:
            return earned
        return earned - penalty(self._graded[0], max_length=max_length, length=length, ngram=ngram)


def grade(
    response: str, answer: str, *, task: str | None = None, options: Mapping[str, str] | None = None
) -> Grade:
    """Grades `response` against `answer`, an option letter or an order of numbers or letters.

    `options` (letter -> text) tell a text that merely holds a letter from a second answer, and let the
    text of one option stand for its letter. `task` is one of `Task`'s values; only in reordering, or
    where it is not given, are several letters (`CABD`) an order.
    """
    known = tuple(options.items()) if options else ()
    expected, labels = choice_of(answer, known), None
    if expected is None and task in (None, "temporal_reordering") and (labels := read(answer).order):
        expected = " ".join(labels)
    said = {arranged(t, labels) if labels else choice_of(t, known) for t in answers_of(response)}
    parsed = said.pop() if len(said) == 1 else None
    accuracy = partial = float(parsed is not None and parsed == expected)
    if parsed is not None and expected is not None and parsed != expected:
        if labels:
            partial = order_credit(parsed.split(), labels)
        elif options:
            partial = _option_credit(options[parsed], options[expected])
    return Grade(accuracy, format_of(response), partial, parsed, (response, answer))


def _option_credit(chosen: str, right: str) -> float:
    """Partial credit where the options are orders; 0 between an order and "None of the choices"."""
    predicted, truth = read(chosen).order, read(right).order
    if not predicted or not truth or not counts_up(truth):
        return 0.0
    return order_credit(predicted, truth)
