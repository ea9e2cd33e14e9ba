"""What goes wrong in runs, as rules over the steps so far, in words, each with what to try.

`alarms(history)` looks at a whole run. `Watch` is told one step after the other. It keeps of the steps before
what the rules need, so that its time a step does not grow with the run.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
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
FLOORS = {"KL loss": 1.0, "policy KL": 0.1, "gradient norm": 0.1}  # below them many times little is little
LEAST_BEFORE = 10  # steps that a median needs
MOST_BEFORE = 100  # steps before that a median is taken over
LEAST_AGREEMENT = 0.95  # correlation of the probabilities of rollout engine and trainer
GROWING_STEPS = 20
LEAST_GROWTH = 0.5  # GB over GROWING_STEPS
SLOW = 2  # times the median of the steps before
LEAST_BEFORE_SLOW = 5

Look = Callable[[Step], "str | None"]  # what was seen there, of a rule that holds


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
    start: Callable[[int | None], Look]  # takes the tokens of the longest response that the recipe allows
    advice: str


class Watch:
    """The alarms of a run that goes on. `response_limit` as in `History`."""

    def __init__(self, response_limit: int | None = None) -> None:
        self._looks = {name: rule.start(response_limit) for name, rule in _RULES.items()}
        self._found: dict[str, Alarm] = {}

    def add(self, step: Step) -> None:
        """The next training step."""
        for name, look in self._looks.items():
            if text := look(step):
                before = self._found.get(name)
                first, steps = (before.step, before.steps) if before else (step.number, 0)
                self._found[name] = Alarm(name, first, step.number, steps + 1, text, _RULES[name].advice)

    @property
    def alarms(self) -> list[Alarm]:
        """Those of the steps so far, in the order of NAMES; none for what a run does not record."""
        return [self._found[name] for name in NAMES if name in self._found]


def alarms(history: History) -> list[Alarm]:
    """Those of a whole run."""
    watch = Watch(history.response_limit)
    for step in history.trained:
        watch.add(step)
    return watch.alarms


def _no_reward(_: int | None) -> Look:
    recent: deque[float] = deque(maxlen=SILENT_STEPS)

    def look(step: Step) -> str | None:
        if math.isnan(step.get("reward") or 0.0):
            return "the reward is no number, or too large for one"
        if (best := _best(step)) is None:
            return None
        recent.append(best)
        if len(recent) < SILENT_STEPS or any(recent):
            return None
        return f"no response of {SILENT_STEPS} steps earned any reward"

    return look


def _best(step: Step) -> float | None:
    """The highest reward of a step, at least 0; None where none is recorded."""
    found = step.get("highest reward")
    found = step.get("reward") if found is None else found
    return None if found is None or math.isnan(found) else max(found, 0.0)


def _without_variance(_: int | None) -> Look:
    mean_of = _means(_silent_share)

    def look(step: Step) -> str | None:
        if (share := mean_of(step)) is None or share <= MOST_WITHOUT_VARIANCE:
            return None
        return (
            f"{_percent(share)} of the groups of {WINDOW} steps had equal rewards throughout, so that they "
            "taught nothing"
        )

    return look


def _silent_share(step: Step) -> float | None:
    if (share := step.get("groups without variance")) is not None:
        return share
    low, high = step.get("lowest reward"), step.get("highest reward")
    return 1.0 if low is not None and low == high else None


def _format_falls(_: int | None) -> Look:
    best, mean_of = 0.0, _means(lambda step: step.get("format rate"))

    def look(step: Step) -> str | None:
        nonlocal best
        if (mean := mean_of(step)) is None:
            return None
        best = max(best, mean)
        if mean >= best - FORMAT_FALL:
            return None
        return f"{_percent(mean)} of the responses are well-formed, {_percent(best)} were at best"

    return look


def _one_letter(_: int | None) -> Look:
    mean_of = _means(lambda step: step.get("commonest answer"))
    right_of = _means(lambda step: step.get("commonest right answer"))

    def look(step: Step) -> str | None:
        share, right = mean_of(step), right_of(step) or 0.0
        if share is None or share <= ONE_ANSWER or right >= ONE_RIGHT_ANSWER:
            return None
        same = f"{_percent(share)} of the answers are the same one"
        return f"{same}, which {_percent(right)} of the rows have at most"

    return look


def _at_limit(limit: int | None) -> Look:
    mean_of = _means(lambda step: clipped(step, limit))

    def look(step: Step) -> str | None:
        if (share := mean_of(step)) is None or share <= MOST_CLIPPED:
            return None
        return f"{_percent(share)} of the responses end at {limit} tokens, the limit"

    return look


def _entropy_collapses(_: int | None) -> Look:
    first: list[float] = []  # the means of the first WINDOW windows; the run begins with the first one
    mean_of = _means(lambda step: step.get("entropy"))

    def look(step: Step) -> str | None:
        if (mean := mean_of(step)) is None:
            return None
        if len(first) < WINDOW:
            first.append(mean)
        elif mean < LEAST_ENTROPY * first[0]:
            return f"the entropy fell from {first[0]:.3g} to {mean:.3g}"
        return None

    return look


def _explodes(*names: str) -> Callable[[int | None], Look]:
    def start(_: int | None) -> Look:
        before: dict[str, deque[float]] = {name: deque(maxlen=MOST_BEFORE) for name in names}
        return lambda step: next(filter(None, [_exploded(step, name, before[name]) for name in names]), None)

    return start


def _exploded(step: Step, name: str, before: deque[float]) -> str | None:
    value = step.get(name)
    if value is None:
        return None
    if math.isnan(value):
        return f"{name}: found no number (NaN)"
    usual = median(before) if len(before) >= LEAST_BEFORE else math.inf
    if value:  # a step without gradient, or without divergence, says nothing of the usual one
        before.append(abs(value))
    if abs(value) <= max(EXPLOSION * usual, FLOORS[name]):
        return None
    return f"{name} {value:.3g}, {usual:.3g} is usual"


def _disagrees(_: int | None) -> Look:
    def look(step: Step) -> str | None:
        value = step.get("agreement")
        if value is None or value >= LEAST_AGREEMENT:  # NaN is not: no correlation at all
            return None
        seen = "no number (NaN)" if math.isnan(value) else f"{value:.3f}"
        return f"probabilities of rollout and trainer correlate at {seen}, expected {LEAST_AGREEMENT} or more"

    return look


def _memory_grows(_: int | None) -> Look:
    values: deque[float] = deque(maxlen=GROWING_STEPS)

    def look(step: Step) -> str | None:
        if (value := step.get("host memory")) is None:
            return None
        values.append(value)
        rises = all(after > before for before, after in pairwise(values))
        growth = values[-1] - values[0]
        if len(values) < GROWING_STEPS or not rises or growth < LEAST_GROWTH:
            return None
        return (
            f"host memory grew at each of {GROWING_STEPS} steps, in all by {growth:.1f} GB to {value:.1f} GB"
        )

    return look


def _slow(_: int | None) -> Look:
    before: deque[float] = deque(maxlen=MOST_BEFORE)

    def look(step: Step) -> str | None:
        if (seconds := step.usual_seconds) is None:
            return None
        usual = median(before) if len(before) >= LEAST_BEFORE_SLOW else math.inf
        before.append(seconds)
        if seconds <= SLOW * usual:
            return None
        phases = {name: time for name, time in step.phases.items() if name not in RARE_PHASES}
        longest = max(phases, key=lambda name: phases[name], default="")
        most = f", {phases[longest]:.1f} s of it {longest}" if longest else ""
        return f"step {step.number} took {seconds:.1f} s{most}; {usual:.1f} s is usual"

    return look


def _means(value_of: Callable[[Step], float | None]) -> Callable[[Step], float | None]:
    """The mean over the last WINDOW steps that have the value; None at a step without it, and before."""
    recent: deque[float] = deque(maxlen=WINDOW)

    def mean_of(step: Step) -> float | None:
        if (value := value_of(step)) is None or math.isnan(value):
            return None
        recent.append(value)
        return fmean(recent) if len(recent) == WINDOW else None

    return mean_of


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


_RULES = {
    "no-reward": _Rule(
        _no_reward,
        "Read some responses (`tpru report`). Does the model answer in the form that the prompt asks for? "
        "Does its tokenizer know the words of the rows (`tpru doctor --recipe`)? tpru_tiny_cpu is for the "
        "demo's rows alone. An untrained model needs a warm start first. A reward of your own must return "
        "numbers.",
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
