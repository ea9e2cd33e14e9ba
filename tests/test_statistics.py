"""Verdicts and statistics: against formulas worked by hand, other implementations, and simulation."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tpru_verl.eval.item import Item
from tpru_verl.eval.scoring import judge, majority, pass_at
from tpru_verl.statistics import (
    brier,
    clusters_of,
    design_effect,
    expected_error,
    holm,
    mcnemar,
    mean_of,
    paired,
    reliability,
    share,
    standard_error,
    wilson,
)

CHOICE = Item("x", "Which?\nA. left\nB. right\nC. none", "B", (), {"A": "left", "B": "right", "C": "none"})
ORDER = Item("x", "In which order?", "BDAC", ())
NUMBER = Item("x", "How many?", "3", (), {}, tuple(map(str, range(101))))


class TestVerdicts:
    @pytest.mark.parametrize(
        ("response", "parsed"),
        [
            ("<think>A is early, C late.</think><answer>B</answer>", "B"),
            ("B", "B"),
            ("B. right", "B"),
            ("(B)", "B"),
            ("right", "B"),
            ("The correct answer is B.", "B"),
            ("The left one is too early.\n\nAnswer: B", "B"),
            ("<think>A or C?</think>B", "B"),
            ("<think>A or C?</think>\nThe answer is C", "C"),
            ("A. left\nB. right", None),
            ("A is too early, C late.", None),
            ("I cannot tell.", None),
            ("It could be A.\nIt could be B.", None),
            ("<answer>A</answer><answer>B</answer>", None),
            ("<think>The answer is B", None),
            ("", None),
        ],
    )
    def test_what_is_read(self, response: str, parsed: str | None) -> None:
        found = judge(CHOICE, response)
        assert found.parsed == parsed
        assert found.correct == (parsed == "B")

    @pytest.mark.parametrize(
        "response", ["BDAC", "B, D, A, C", "<think>CABD</think><answer>B-D-A-C</answer>"]
    )
    def test_orders(self, response: str) -> None:
        assert judge(ORDER, response).correct
        assert not judge(ORDER, "CABD or BDAC").correct

    def test_numbers(self) -> None:
        assert judge(NUMBER, "3").correct
        assert judge(NUMBER, "4").parsed == "4"
        assert judge(NUMBER, "some").parsed is None

    def test_a_response_that_was_cut_off_has_no_last_line(self) -> None:
        reasoning = "It could be A.\nSo the answer is A"
        assert judge(CHOICE, reasoning).parsed == "A"
        assert judge(CHOICE, reasoning, cut_off=True).parsed is None
        assert judge(CHOICE, "A", cut_off=True).parsed == "A"
        assert judge(CHOICE, "x\n<answer>A</answer>", cut_off=True).parsed == "A"

    @settings(deadline=None)
    @given(st.text())
    def test_nothing_raises(self, response: str) -> None:
        judge(CHOICE, response)

    @settings(deadline=None)
    @given(st.lists(st.sampled_from(["A", "B", "C", None]), max_size=7))
    def test_majority_does_not_depend_on_the_order(self, parsed: list[str | None]) -> None:
        found = majority(parsed)
        assert found == majority(parsed[::-1])
        if found is not None:
            assert all(parsed.count(found) > parsed.count(other) for other in {*parsed} - {found, None})


def test_pass_at_k_is_the_share_of_draws_with_a_right_one() -> None:
    for n, right, k in [(5, 2, 1), (5, 2, 3), (4, 0, 2), (4, 4, 4)]:
        rows = [1] * right + [0] * (n - right)
        draws = [any(rows[i] for i in draw) for draw in product(range(n), repeat=k) if len({*draw}) == k]
        assert pass_at(k, right, n) == pytest.approx(sum(draws) / len(draws))
    with pytest.raises(ValueError, match="expected 0 <= right <= n"):
        pass_at(6, 1, 5)


class TestShare:
    def test_rows_of_their_own_have_the_usual_error(self) -> None:
        scores = np.random.default_rng(0).random(40)
        error = standard_error(scores, clusters_of([""] * 40))
        assert error == pytest.approx(scores.std(ddof=1) / np.sqrt(40))

    def test_copies_of_a_row_tell_nothing_new(self) -> None:
        rng = np.random.default_rng(1)
        scores = (rng.random(50) < 0.6).astype(float)
        names = [f"v{i}" for i in range(50)]
        once, often = share(scores, names), share(np.tile(scores, 8), names * 8)
        assert often.error == pytest.approx(once.error)
        assert (often.low, often.high) == pytest.approx((once.low, once.high), abs=0.01)
        assert (often.n, often.clusters) == (400, 50)

    @settings(deadline=None)
    @given(st.lists(st.tuples(st.booleans(), st.sampled_from("abcdef")), min_size=1, max_size=60))
    def test_an_interval_holds_the_mean_and_stays_in_range(self, rows: list[tuple[bool, str]]) -> None:
        found = share([float(right) for right, _ in rows], [source for _, source in rows])
        assert 0 <= found.low <= found.mean + 1e-12
        assert found.mean - 1e-12 <= found.high <= 1

    def test_all_right_is_as_sure_as_there_are_sources(self) -> None:
        few, many = share([1.0] * 100, [str(i % 5) for i in range(100)]), share([1.0] * 100, [""] * 100)
        assert few.low < many.low < 1
        assert many.low == pytest.approx(wilson(100, 100, float(stats.t.ppf(0.975, 99)))[0])

    def test_the_interval_holds_the_truth_as_often_as_it_says(self) -> None:
        """400 simulated evaluations: 40 sources of 6 rows whose chances differ, truth 0.5."""
        rng, names = np.random.default_rng(7), [str(i) for i in range(40) for _ in range(6)]
        held = {"clustered": 0, "rows": 0}
        for _ in range(400):
            scores = (rng.random(240) < np.repeat(rng.beta(1, 1, 40), 6)).astype(float)
            for key, sources in (("clustered", names), ("rows", [""] * 240)):
                found = share(scores, sources)
                held[key] += found.low <= 0.5 <= found.high
        assert held["clustered"] / 400 > 0.92
        assert held["rows"] / 400 < 0.85  # what ignoring sources costs

    def test_no_rows(self) -> None:
        with pytest.raises(ValueError, match="found 0 rows"):
            share([], [])


class TestPaired:
    def test_as_scipy_has_it(self) -> None:
        rng = np.random.default_rng(3)
        a, b = (rng.random(200) < 0.5).astype(float), (rng.random(200) < 0.62).astype(float)
        found = paired(a, b, [""] * 200)
        theirs = stats.ttest_rel(b, a).confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))
        exact = stats.permutation_test((b, a), lambda x, y: np.mean(x - y), permutation_type="samples", rng=1)
        assert found.p == pytest.approx(exact.pvalue, abs=0.02)

    @pytest.mark.parametrize(("gained", "lost"), [(4, 0), (5, 0), (7, 1), (9, 6), (40, 21)])
    def test_with_a_row_a_source_p_is_mcnemars(self, gained: int, lost: int) -> None:
        b = [1.0] * gained + [0.0] * (461 - gained)
        a = [0.0] * gained + [1.0] * lost + [0.0] * (461 - gained - lost)
        found = paired(a, b, [""] * 461)
        assert found.p == pytest.approx(found.mcnemar, abs=0.005)

    def test_one_source_tells_nothing(self) -> None:
        found = paired([0.0] * 10, [1.0] + [0.0] * 9, ["s"] * 10)
        assert (found.low, found.high, found.p) == (-1, 1, 1)

    @pytest.mark.parametrize(("sources", "p"), [(2, 0.5), (5, 0.0625), (6, 0.03125)])
    def test_few_sources_are_never_sure_whatever_their_rows(self, sources: int, p: float) -> None:
        names = [f"v{i % sources}" for i in range(20 * sources)]
        assert paired([0.0] * len(names), [1.0] * len(names), names).p == p

    @pytest.mark.parametrize("sources", [2, 3, 5, 10])
    def test_sources_that_vary_are_no_difference(self, sources: int) -> None:
        rng, false = np.random.default_rng(1), 0
        names = np.repeat([f"v{i}" for i in range(sources)], 20)
        for _ in range(200):
            chance = np.repeat(rng.random(sources), 20)
            moved = np.clip(chance + np.repeat(rng.normal(0, 0.15, sources), 20), 0, 1)
            a, b = ((rng.random(len(names)) < share).astype(float) for share in (chance, moved))
            false += paired(a, b, names.tolist(), samples=1000).p < 0.05
        assert false <= 18

    def test_rows_of_a_source_are_no_more_than_the_source(self) -> None:
        rng = np.random.default_rng(4)
        a, b = (rng.random(30) < 0.4).astype(float), (rng.random(30) < 0.7).astype(float)
        names = [f"v{i}" for i in range(30)]
        once, often = paired(a, b, names), paired(np.tile(a, 20), np.tile(b, 20), names * 20)
        assert (often.low, often.high) == pytest.approx((once.low, once.high), abs=0.02)
        alone = paired(np.tile(a, 20), np.tile(b, 20), [""] * 600)
        assert alone.high - alone.low < (once.high - once.low) / 3

    def test_no_difference_is_found_no_more_often_than_it_should(self) -> None:
        rng, false = np.random.default_rng(5), 0
        for seed in range(200):
            a, b = (rng.random(150) < 0.5).astype(float), (rng.random(150) < 0.5).astype(float)
            false += paired(a, b, [""] * 150, samples=1000, seed=seed).p < 0.05
        assert false <= 20

    def test_the_same_seed_the_same_numbers(self) -> None:
        a, b = [0.0, 1, 0, 1, 1, 0], [1.0, 1, 0, 1, 0, 1]
        assert paired(a, b, [""] * 6) == paired(a, b, [""] * 6)
        assert (paired(a, b, [""] * 6).gained, paired(a, b, [""] * 6).lost) == (2, 1)

    def test_equal_runs(self) -> None:
        found = paired([0.0, 1.0], [0.0, 1.0], ["", ""])
        assert (found.low, found.high, found.p, found.mcnemar) == (0, 0, 1, 1)

    def test_shares_have_no_mcnemar(self) -> None:
        assert paired([0.5, 1.0], [0.25, 1.0], ["", ""]).mcnemar is None

    def test_rows_that_do_not_pair(self) -> None:
        with pytest.raises(ValueError, match="found 1 and 2, expected the same"):
            paired([1.0], [1.0, 0.0], [""])


def test_a_mean_has_students_interval_over_sources() -> None:
    values = [1.0, 3.0, 5.0, 7.0]
    found = mean_of(values, [""] * 4)
    half = stats.t.interval(0.95, 3, scale=stats.sem(values))[1]
    assert (found.mean, found.low, found.high) == pytest.approx((4.0, 4 - half, 4 + half))
    twice = mean_of(values * 2, list("abcd") * 2)
    assert (twice.low, twice.high) == pytest.approx((found.low, found.high))  # copies tell nothing new
    assert mean_of(values, ["one"] * 4).high == math.inf


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_the_exact_test(gained: int, lost: int) -> None:
    expected = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1
    assert mcnemar(gained, lost) == pytest.approx(expected)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []


def test_design_effect() -> None:
    twos, ones = np.full(50, 2), np.ones(100, np.int64)
    together = np.repeat([2, 0], 25)
    assert design_effect(twos, together) == pytest.approx(2, rel=0.02)
    assert design_effect(ones, np.repeat([1, 0], 50)) == 1
    assert design_effect(twos, np.full(50, 1)) == 1  # less than binomial is taken as binomial
    assert design_effect(twos, np.full(50, 2)) == 2
    assert design_effect(np.array([100]), np.array([60])) == 1


class TestCalibration:
    def test_brier(self) -> None:
        assert brier([(1.0, True), (0.0, False)]) == 0
        assert brier([(0.0, True), (1.0, False)]) == 2
        assert brier([(0.25, i == 2) for i in range(4)]) == pytest.approx(0.75**2 + 3 * 0.25**2)

    def test_bins_hold_their_upper_end(self) -> None:
        found = reliability([0.0, 0.1, 0.1000001, 0.95, 1.0, 1.0], [False, True, False, True, True, False])
        assert [(one.low, one.n) for one in found] == [(0.0, 2), (0.1, 1), (0.9, 3)]
        assert found[0].probability == pytest.approx(0.05)
        assert found[0].right == 0.5
        assert found[2].right == pytest.approx(2 / 3)

    def test_a_model_that_knows_how_sure_it_is(self) -> None:
        draw = np.random.default_rng(0)
        chances = draw.uniform(0.2, 1, 20_000)
        honest = expected_error(reliability(chances.tolist(), (draw.random(20_000) < chances).tolist()))
        boasting = expected_error(reliability(chances.tolist(), (draw.random(20_000) < chances / 2).tolist()))
        assert honest < 0.02
        assert boasting == pytest.approx(chances.mean() / 2, abs=0.02)
        with pytest.raises(ValueError, match="found 0"):
            expected_error([])
