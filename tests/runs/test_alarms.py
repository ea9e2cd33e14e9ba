"""Each alarm on a run that has its fault, and none on a run that has not."""

import math
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from support.runs import HEALTHY

from tpru_verl.runs.alarms import NAMES, alarms
from tpru_verl.runs.logs import History, Step

STEPS = 40
MEMORY, SECONDS = "actor/perf/cpu_memory_used_gb", "timing_s/step"
AGREEMENT = "training/rollout_actor_probs_pearson_corr"


def run(changed: Mapping[int, Mapping[str, float]] | None = None, *, limit: int | None = 300) -> History:
    """A healthy run of STEPS steps, which vary a little, with the changes of single steps."""
    varied = {key for key in HEALTHY if key.startswith(("actor/", "timing_s/"))}
    steps = [
        Step(n, {key: value * (1 + 0.05 * (-1) ** n * (key in varied)) for key, value in HEALTHY.items()})
        for n in range(1, STEPS + 1)
    ]
    for number, data in (changed or {}).items():
        steps[number - 1].data.update(data)
    return History(steps, limit)


def from_step(first: int, **data: float) -> dict[int, dict[str, float]]:
    return {
        n: {key.replace("__", "/"): value for key, value in data.items()} for n in range(first, STEPS + 1)
    }


def test_a_healthy_run_has_none() -> None:
    assert alarms(run()) == []


def test_the_page_lists_them(root: Path) -> None:
    table = (root / "docs/report.md").read_text().partition("| alarm | when |")[2].partition("\n\n")[0]
    assert tuple(re.findall(r"^\| `([a-z-]+)`", table, re.MULTILINE)) == NAMES


def test_nothing_is_said_of_what_is_not_recorded() -> None:
    assert alarms(History()) == []
    assert alarms(History([Step(n, {"critic/advantages/mean": 0.0}) for n in range(STEPS)])) == []


FAULTS = {
    "no-reward": (
        from_step(31, critic__score__max=0.0, critic__score__mean=0.0, critic__score__min=-1.0),
        35,
    ),
    "no-variance": (from_step(31, rollouts__groups_without_variance=0.95), 34),
    "format-falls": (from_step(31, rollouts__format=0.6), 32),
    "one-answer": (from_step(31, rollouts__commonest_answer=0.95), 34),
    "length-limit": (from_step(31, response_length__clip_ratio=0.5, response_length__max=300.0), 32),
    "entropy-collapse": (from_step(31, actor__entropy=0.001), 35),
    "kl-explodes": ({31: {"actor/kl_loss": 5.0}}, 31),
    "gradient-explodes": ({31: {"actor/grad_norm": math.nan}}, 31),
    "disagreement": ({31: {AGREEMENT: 0.9}}, 31),
    "memory-grows": ({n: {MEMORY: 9.0 + 0.1 * n} for n in range(11, STEPS + 1)}, 28),
    "slow-step": ({31: {SECONDS: 30.0}}, 31),
}


def test_steps_without_a_gradient_are_not_the_usual_ones() -> None:
    silent = {n: {"actor/grad_norm": 0.0} for n in range(1, 21)}
    (alarm,) = alarms(run({**silent, 35: {"actor/grad_norm": 5.0}}))
    assert (alarm.name, alarm.step, alarm.text) == ("gradient-explodes", 35, "gradient norm 5, 0.4 is usual")


def test_a_reward_that_is_no_number_is_none() -> None:
    (alarm,) = alarms(run({31: {"critic/score/mean": math.nan}}))
    assert (alarm.name, alarm.step) == ("no-reward", 31)
    assert alarm.text == "the reward is no number, or too large for one"


@pytest.mark.parametrize("name", NAMES)
def test_a_fault_is_named_at_its_first_step(name: str) -> None:
    changed, first = FAULTS[name]
    (alarm,) = alarms(run(changed))
    assert (alarm.name, alarm.step) == (name, first)
    assert alarm.text
    assert alarm.advice
    earlier = run(changed)
    earlier.steps = earlier.steps[: first - 1]
    assert alarms(earlier) == []


def test_groups_of_equal_rewards_are_seen_without_responses() -> None:
    """Where no rollouts are kept, the step's highest and lowest reward still tell that all are equal."""
    history = run(from_step(31, critic__score__max=0.125, critic__score__min=0.125))
    for step in history.steps:
        del step.data["rollouts/groups_without_variance"]
    assert [alarm.name for alarm in alarms(history)] == ["no-variance"]


def test_what_is_no_fault() -> None:
    for changed in (
        {31: {SECONDS: 30.0, "timing_s/testing": 20.0}},  # a validation, which all runs have
        from_step(31, rollouts__commonest_answer=0.95, rollouts__commonest_right_answer=0.95),
        from_step(31, response_length__clip_ratio=0.9, response_length__max=40.0),  # below the limit
        {31: {"actor/ppo_kl": 0.05}},  # 50 times the usual, and little
        {n: {"actor/grad_norm": 0.0} for n in range(1, 21)},  # nothing to learn from, until step 21
        {n: {"actor/grad_norm": 1e-7} for n in range(1, 31)} | from_step(31, actor__grad_norm=0.02),
        from_step(31, critic__score__max=0.0, critic__score__mean=-0.5, critic__score__min=-1.0)
        | {n: {} for n in range(35, STEPS + 1)},  # four steps
        {n: {MEMORY: 9.0 + 0.001 * n} for n in range(1, STEPS + 1)},
    ):
        assert alarms(run(changed)) == []


def test_no_agreement_at_all_is_an_alarm() -> None:
    (alarm,) = alarms(run({31: {AGREEMENT: math.nan}, 33: {AGREEMENT: 0.5}}))
    assert (alarm.name, alarm.step, alarm.last, alarm.steps) == ("disagreement", 31, 33, 2)
    assert "0.500" in alarm.text
