"""What goes wrong in runs, as rules over the steps so far, in words, each with what to try.

`alarms(history)` looks at a whole run; after each step of a run that is going on it may be called again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median

from tpru_verl.runs.logs import RARE_PHASES, History, Step, clipped

SILENT_STEPS = 5  # without any reward
WINDOW = 5  # steps that a mean is taken over, so that one batch of few prompts raises no alarm
MOST_WITHOUT_VARIANCE = 0.8  # of groups
FORMAT_FALL = 0.1  # from the best mean of WINDOW steps
ONE_ANSWER = 0.8  # of the answers are the same, though less than ONE_RIGHT_ANSWER of the right ones are
ONE_RIGHT_ANSWER = 0.6
MOST_CLIPPED = 0.2  # of responses
LEAST_ENTROPY = 0.1  # of that of the first WINDOW steps
EXPLOSION = 10  # times the median of the steps before
FLOORS = {"KL loss": 1.0, "policy KL": 0.1, "gradient norm": 0.0}  # below them many times little is little
LEAST_BEFORE = 10  # steps that a median needs
MOST_BEFORE = 100  # steps before that a median is taken over
LEAST_AGREEMENT = 0.95  # correlation of the probabilities of rollout engine and trainer
GROWING_STEPS = 20
LEAST_GROWTH = 0.5  # GB over GROWING_STEPS
SLOW = 2  # times the median of the steps before
LEAST_BEFORE_SLOW = 5

Found = Iterator[tuple[int, str]]  # step and what was seen there


@dataclass(frozen=True)
class Alarm:
    """A rule that held. `step`: where it did first; `last`: where it did last; `steps`: at how many.

    `text` says what was seen at `last`, `advice` what to try.
    """

    name: str
    step: int
    last: int
    steps: int
    text: str
    advice: str


@dataclass(frozen=True)
class _Rule:
    look: Callable[[History], Found]
    advice: str


def alarms(history: History) -> list[Alarm]:
    """The alarms of the steps so far, in the order of NAMES; none for what a run does not record."""
    found: list[Alarm] = []
    for name, rule in _RULES.items():
        if held := list(rule.look(history)):
            last, text = held[-1]
            found.append(Alarm(name, held[0][0], last, len(held), text, rule.advice))
    return found


def _no_reward(history: History) -> Found:
    for steps in _windows([step for step in history.trained if _best(step) is not None], SILENT_STEPS):
        if all(_best(step) == 0 for step in steps):
            yield steps[-1].number, f"no response of {SILENT_STEPS} steps earned any reward"


def _best(step: Step) -> float | None:
    """The highest reward of a step, at least 0; None where none is recorded."""
    found = step.get("highest reward")
    found = step.get("reward") if found is None else found
    return None if found is None or math.isnan(found) else max(found, 0.0)


def _without_variance(history: History) -> Found:
    for number, share in _means(history, _silent_share):
        if share > MOST_WITHOUT_VARIANCE:
            yield (
                number,
                (
                    f"{_percent(share)} of the groups of {WINDOW} steps had equal rewards throughout, "
                    "so that they taught nothing"
                ),
            )


def _silent_share(step: Step) -> float | None:
    if (share := step.get("groups without variance")) is not None:
        return share
    low, high = step.get("lowest reward"), step.get("highest reward")
    return 1.0 if low is not None and low == high else None


def _format_falls(history: History) -> Found:
    best = 0.0
    for number, mean in _means(history, lambda step: step.get("format rate")):
        if mean < best - FORMAT_FALL:
            yield number, f"{_percent(mean)} of the responses are well-formed, {_percent(best)} were at best"
        best = max(best, mean)


def _one_letter(history: History) -> Found:
    right = dict(_means(history, lambda step: step.get("commonest right answer")))
    for number, share in _means(history, lambda step: step.get("commonest answer")):
        if share > ONE_ANSWER and right.get(number, 0.0) < ONE_RIGHT_ANSWER:
            yield (
                number,
                (
                    f"{_percent(share)} of the answers are the same one, which "
                    f"{_percent(right.get(number, 0.0))} of the rows have at most"
                ),
            )


def _at_limit(history: History) -> Found:
    for number, share in _means(history, lambda step: clipped(step, history.response_limit)):
        if share > MOST_CLIPPED:
            limit = history.response_limit
            yield number, f"{_percent(share)} of the responses end at {limit} tokens, the limit"


def _entropy_collapses(history: History) -> Found:
    means = list(_means(history, lambda step: step.get("entropy")))
    for number, mean in means[WINDOW:]:
        if mean < LEAST_ENTROPY * means[0][1]:
            yield number, f"the entropy fell from {means[0][1]:.3g} to {mean:.3g}"


def _explodes(*names: str) -> Callable[[History], Found]:
    def look(history: History) -> Found:
        for name in names:
            before: list[float] = []
            for step in history.trained:
                value = step.get(name)
                if value is None:
                    continue
                if math.isnan(value):
                    yield step.number, f"{name}: found no number (NaN)"
                    continue
                usual = median(map(abs, before[-MOST_BEFORE:])) if len(before) >= LEAST_BEFORE else math.inf
                if abs(value) > max(EXPLOSION * usual, FLOORS[name]):
                    yield step.number, f"{name} {value:.3g}, {usual:.3g} is usual"
                before.append(value)

    return look


def _disagrees(history: History) -> Found:
    for step in history.trained:
        value = step.get("agreement")
        if value is not None and not value >= LEAST_AGREEMENT:  # NaN, too: no correlation at all
            seen = "no number (NaN)" if math.isnan(value) else f"{value:.3f}"
            yield (
                step.number,
                (
                    f"probabilities of rollout and trainer correlate at {seen}, expected {LEAST_AGREEMENT} "
                    "or more"
                ),
            )


def _memory_grows(history: History) -> Found:
    known = [(step, value) for step in history.trained if (value := step.get("host memory")) is not None]
    for window in _windows(known, GROWING_STEPS):
        values = [value for _, value in window]
        growth = values[-1] - values[0]
        rises = all(after > before for before, after in pairwise(values))
        if rises and growth >= LEAST_GROWTH:
            yield (
                window[-1][0].number,
                (
                    f"host memory grew at each of {GROWING_STEPS} steps, in all by {growth:.1f} GB to "
                    f"{values[-1]:.1f} GB"
                ),
            )


def _slow(history: History) -> Found:
    before: list[float] = []
    for step in history.trained:
        seconds = step.usual_seconds
        if seconds is None:
            continue
        if len(before) >= LEAST_BEFORE_SLOW and seconds > SLOW * (usual := median(before[-MOST_BEFORE:])):
            phases = {name: time for name, time in step.phases.items() if name not in RARE_PHASES}
            longest = max(phases, key=lambda name: phases[name], default="")
            most = f", {phases[longest]:.1f} s of it {longest}" if longest else ""
            yield step.number, f"step {step.number} took {seconds:.1f} s{most}; {usual:.1f} s is usual"
        before.append(seconds)


def _means(history: History, value: Callable[[Step], float | None]) -> Iterator[tuple[int, float]]:
    """Means over WINDOW steps that have the value, with the last one's number."""
    known = [(step.number, v) for step in history.trained if (v := value(step)) is not None and v == v]
    for window in _windows(known, WINDOW):
        yield window[-1][0], fmean(v for _, v in window)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _windows(items: Sequence, length: int) -> Iterator[Sequence]:
    for end in range(length, len(items) + 1):
        yield items[end - length : end]


_RULES = {
    "no-reward": _Rule(
        _no_reward,
        "Read some responses (`tpru report`). Does the model answer in the form that the prompt asks for? "
        "Does its tokenizer know the words of the rows (`tpru doctor --recipe`)? tpru_tiny_cpu is for the "
        "demo's rows alone. An untrained model needs a warm start first.",
    ),
    "no-variance": _Rule(
        _without_variance,
        "The rows are too easy or too hard for the model. Leave such groups out (+tpru=dapo), raise "
        "rollout.n, take other rows, or pay for partial credit (reward_kwargs.preset=tpru_partial).",
    ),
    "format-falls": _Rule(
        _format_falls,
        "Read the worst responses. Lower the learning rate, keep the KL loss (actor.use_kl_loss=true), or "
        "pay more for the form. Responses that end at the limit are not well-formed either.",
    ),
    "one-answer": _Rule(
        _one_letter,
        "The model guesses. Check that it sees the images (agreement, docs/patches.md), that right answers "
        "are spread over the letters (`tpru data stats`), and lower the learning rate.",
    ),
    "length-limit": _Rule(
        _at_limit,
        "Raise data.max_response_length, or make long responses cost something (reward_kwargs.max_length).",
    ),
    "entropy-collapse": _Rule(
        _entropy_collapses,
        "Raise actor.clip_ratio_high (+tpru=dapo), lower the learning rate, or add actor.entropy_coeff.",
    ),
    "kl-explodes": _Rule(
        _explodes("KL loss", "policy KL"),
        "Lower the learning rate, raise actor.kl_loss_coef, and go on from a checkpoint before this step.",
    ),
    "gradient-explodes": _Rule(
        _explodes("gradient norm"),
        "Lower the learning rate or actor.grad_clip, and go on from a checkpoint before this step.",
    ),
    "disagreement": _Rule(
        _disagrees,
        "The rollout engine sees other pictures or weights than the trainer, so that the run learns noise. "
        "Set rollout.load_format=auto, and see docs/patches.md.",
    ),
    "memory-grows": _Rule(
        _memory_grows,
        "The run will be killed when the memory is full. Save often (trainer.save_freq) and go on from a "
        "checkpoint; lower data.dataloader_num_workers.",
    ),
    "slow-step": _Rule(
        _slow,
        "Does something else use the machine? See the longest phase: generation waits for the longest "
        "response, a reward that asks a server waits for the server.",
    ),
}
NAMES = tuple(_RULES)  # the values of `--stop-on`
