"""Wrong orders: near ones in every row, shares that are met, and no option that gives itself away."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.frames import clip

from tpru_verl.builder.filters import Filters
from tpru_verl.builder.tasks import Draft, TaskOptions, drafts_of
from tpru_verl.builder.wrong_orders import WrongOrders, checked_shares, farthest
from tpru_verl.data.audit.question import swaps
from tpru_verl.sample import Task


@settings(max_examples=100, deadline=None)
@given(st.integers(3, 8), st.booleans(), st.booleans(), st.integers(0, 2**32))
def test_a_neighbours_swap_is_always_listed(steps: int, listed: bool, chained: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    right = tuple(int(i) + 1 for i in rng.permutation(steps))
    wrong = WrongOrders({}).draw(right, rng, listed=listed, chained=chained)
    assert len({*wrong}) == len(wrong) == (3 if listed else 4)
    assert right not in wrong
    assert 1 in {swaps(right, order) for order in wrong}
    shown = [*wrong, right] if listed else wrong
    mirrored = {order[::-1] in shown for order in shown}
    assert mirrored == {chained or steps == 3}


@pytest.mark.parametrize(
    "shares",
    [
        {},
        {1: 0.4, 2: 0.3, 3: 0.3},
        {1: 0.34, 4: 0.33, 5: 0.33},
        {1: 0.65, 2: 0.35},
        {1: 0.34, 5: 0.33, 6: 0.33},
    ],
)
def test_shares_are_met(shares: dict[int, float]) -> None:
    rng, orders = np.random.default_rng(0), WrongOrders(checked_shares(shares) if shares else {})
    for row in range(300):
        orders.draw(tuple(rng.permutation(4).tolist()), rng, listed=row % 5 > 0, chained=6 in shares)
    made = orders.made[4]
    wanted = shares or {1: 1 / 3, **dict.fromkeys((2, 3, 4, 5), 1 / 6)}
    assert {n: round(made[n] / made.total(), 2) for n in wanted} == pytest.approx(wanted, abs=0.04)


def test_options_do_not_tell_the_right_order() -> None:
    """Its distances to the other options are as often the smallest as those of any other option."""
    rng, orders = np.random.default_rng(1), WrongOrders({})
    usual: Counter[bool] = Counter()
    for row in range(1500):
        right = tuple(rng.permutation(4).tolist())
        shown = [right, *orders.draw(right, rng, listed=True, chained=row % 3 == 0)]
        shown = [shown[i] for i in rng.permutation(4)]
        apart = [sum(swaps(one, other) for other in shown) for one in shown]
        usual[shown[int(np.argmin(apart))] == right] += 1
    assert abs(usual[True] / usual.total() - 0.25) < 0.045


def test_no_two_rows_ask_for_the_same_order() -> None:
    """Four frames have one order, five have two, nine have nine evenly spaced ones."""
    options = TaskOptions((Task.TEMPORAL_REORDERING,), rows_per_clip=6)
    for frames, expected in ((4, 1), (5, 2), (9, 6)):
        rows = [*drafts_of(clip(frames), (0, 0), [], "", options, Filters(), 3)]
        steps = [row.steps for row in rows if isinstance(row, Draft)]
        assert len(steps) == len({*steps}) == expected
        assert {row[1] for row in rows if isinstance(row, tuple)} <= {"no other steps"}


@pytest.mark.parametrize(
    "shares", [{1: 0.1, 2: 0.9}, {1: 0.6, 2: 0.4}, {2: 1.0}, {}, {0: 1.0}, {1: -1.0, 2: 2.0}]
)
def test_shares_that_cannot_be_met_are_refused(shares: dict[int, float]) -> None:
    with pytest.raises(ValueError, match="--order-distances: "):
        checked_shares(shares)


def test_the_reverse_is_the_farthest() -> None:
    assert [swaps(tuple(range(n)), tuple(reversed(range(n)))) for n in (3, 4, 8)] == [3, 6, 28]
    assert [farthest(n) for n in (3, 4, 8)] == [3, 6, 28]
