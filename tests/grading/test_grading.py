"""The grader: tolerant of how an answer is written, strict about what it says."""

import math
import re
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import combinations, pairwise, permutations
from statistics import mean

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tpru_verl.grading import PRESETS, grade
from tpru_verl.grading.orders import MEASURES, order_credit
from tpru_verl.grading.penalties import penalty

OPTIONS = {
    "A": "1 2 3 4",
    "B": "a red ball",
    "C": "<image>",
    "D": "4 2 3 1",
    "E": "None of the choices provided",
}


def respond(answer: str, reasoning: str = "because") -> str:
    return f"<think>{reasoning}</think>\n<answer>{answer}</answer>"


@pytest.mark.parametrize(
    "answer",
    [
        *("C", "c", " C \n", "(C)", "[C]", "C.", "C)", "C:", "**C**", "`C`", "'C'", '"C"', "**C.** Image 3"),
        *(r"\boxed{C}", r"$\boxed{C}$", r"\boxed{\text{C}}", "C. Image 3", "(C) Image 3", "C: <image>"),
        *(
            "\uff23",
            "\uff08\uff23\uff09",
            "\uff43\uff0e",
            "((C))",
            "__C__",
            "\u201cC\u201d",
            "Option C",
            "option (c)",
        ),
        *(
            "Answer: C",
            "The correct answer is **C**.",
            "C - Image 3",
            "C (Image 3)",
            "Image C",
            "C. Image C",
            "Answer: Option C",
            "\\boxed{C}.",
        ),
    ],
)
def test_ways_to_write_a_letter(answer: str) -> None:
    result = grade(respond(answer), "C")
    assert (result.accuracy, result.format, result.partial, result.parsed) == (1.0, 1.0, 1.0, "C")
    assert grade(respond(answer), "C", options=OPTIONS).accuracy == 1.0
    assert grade(respond(answer), "D").accuracy == 0.0


@pytest.mark.parametrize(
    "answer",
    [
        *(
            "A or C",
            "C or A",
            "A, C",
            "C, A",
            "C/A",
            "ABCDE",
            "A B C D E",
            "A. B. C. D. E.",
            "C. or D",
            "(A)(C)",
            "(A) (B) (C)",
            "C (or D)",
            "A - B",
            "A|C",
            "\uff21\uff0c\uff23",
            "\\boxed{A}\\boxed{C}",
            "C \\boxed{D}",
        ),
        *("", " ", "?", "3", "the third", "Cat", "C" * 300, "A red ball", "not sure", "\u0411", "A-frame"),
        *("4 2 3 1", "Answer:", "The answer is", "\\boxed{}", "<C>", "C</answer", "<answer>C", "<think>C"),
    ],
)
def test_hedges_and_nonsense_are_no_answer(answer: str) -> None:
    result = grade(respond(answer), "C")
    assert (result.accuracy, result.partial, result.parsed) == (0.0, 0.0, None)


@pytest.mark.parametrize(
    ("answer", "parsed"),
    [
        ("B. a red ball", "B"),
        ("(B) (a red ball)", "B"),
        ("a red ball", "B"),
        ("A RED  BALL.", "B"),
        ("Answer: a red ball", "B"),
        ("4231", "D"),
        ("4 -> 2 -> 3 -> 1", "D"),
        ("Image 4, image 2, image 3, image 1", "D"),
        ("D. 4, 2, 3, 1", "D"),
        ("none of the choices provided", "E"),
        ("C. Image 3", "C"),
        ("B. 4 2 3 1", None),  # one option's letter with another one's text
        ("A. 2 1 3 4", None),  # an order that is not the option's
        ("2 1 3 4", None),  # outside the options
        ("F", None),
        ("a red ball or 4 2 3 1", None),
        ("B. a red ball, or D", None),
        ("A B C D E", None),
        ("ABCDE", None),
        ("<image>", None),
        ("", None),
    ],
)
def test_options_tell_text_from_a_second_answer(answer: str, parsed: str | None) -> None:
    assert grade(respond(answer), "F", options=OPTIONS).parsed == parsed
    for truth in OPTIONS:
        assert grade(respond(answer), truth, options=OPTIONS).accuracy == float(truth == parsed)


@pytest.mark.parametrize("truth", ["D", "d", "(D)", "D.", "**D**", "4 2 3 1", "4231", "D. 4 2 3 1", "\uff24"])
def test_the_truth_is_read_by_the_same_rules(truth: str) -> None:
    assert grade(respond("D"), truth, options=OPTIONS).accuracy == 1.0
    assert grade(respond("A"), truth, options=OPTIONS).accuracy == 0.0


def test_a_letter_is_its_own_option_before_it_is_another_ones_text() -> None:
    options = {"A": "B", "B": "A", "C": "Image D", "D": "Image C"}
    assert grade(respond("B"), "B", options=options).parsed == "B"
    assert grade(respond("Image C"), "D", options=options).parsed == "D"
    assert grade(respond("Option C"), "C", options=options).parsed == "C"
    assert grade(respond("x y"), "A", options={"A": "x y", "B": "X Y."}).parsed is None


@pytest.mark.parametrize(
    "answer",
    [
        "4 2 3 1",
        "4231",
        "4,2,3,1",
        "4 -> 2 -> 3 -> 1",
        "4→2→3→1",
        "[4, 2, 3, 1]",
        r"\boxed{4231}",
        "**4 2 3 1**.",
        "4 > 2 > 3 > 1",
        "image 4, image 2, image 3, image 1",
        "Frame 4, Frame 2, Frame 3, Frame 1",
        "Image4 -> Image2 -> Image3 -> Image1",
        "image_4, image_2, image_3, image_1",
        "Images 4, 2, 3 and 1",
        "4, then 2, then 3, then 1",
        "(4) (2) (3) (1)",
        "The correct order is: 4, 2, 3, 1.",
        r"$4 \rightarrow 2 \to 3 \to 1$",
        "\uff14\uff12\uff13\uff11",
        "4\n2\n3\n1",
    ],
)
@pytest.mark.parametrize("truth", ["4 2 3 1", "4231", "(4, 2, 3, 1)", "4 -> 2 -> 3 -> 1"])
def test_ways_to_write_an_order(answer: str, truth: str) -> None:
    result = grade(respond(answer), truth)
    assert (result.accuracy, result.partial, result.parsed) == (1.0, 1.0, "4 2 3 1")


@pytest.mark.parametrize(
    ("answer", "partial"),
    [
        ("4 2 1 3", 5 / 6),
        ("2 4 3 1", 5 / 6),
        ("1 2 3 4", 1 / 6),
        ("1 3 2 4", 0.0),
        ("4 2 3", 0.0),
        ("4 2 3 1 1", 0.0),
        ("4 2 3 5", 0.0),
        ("4 4 4 4", 0.0),
        ("4 2 3 1 or 1 2 3 4", 0.0),
        ("1 2 3 4, 4 2 3 1", 0.0),
        ("D", 0.0),
    ],
)
def test_partial_is_the_share_of_pairs_in_order(answer: str, partial: float) -> None:
    result = grade(respond(answer), "4 2 3 1")
    assert (result.accuracy, result.partial) == (0.0, partial)
    assert result.parsed == (answer if sorted(answer) == sorted("4 2 3 1") else None)


def test_an_order_names_each_image_once() -> None:
    assert grade(respond("4 4"), "4 4").parsed is None
    assert grade(respond("42 31"), "4 2 3 1").parsed is None
    assert grade(respond("CA BD"), "CABD").parsed is None
    assert grade(respond("\u0411\u0410"), "\u0411\u0410").parsed is None


def test_more_than_nine_images() -> None:
    truth = "10 2 3 1 4 5 6 7 8 9"
    assert grade(respond(truth.replace(" ", ", ")), truth).accuracy == 1.0
    assert grade(respond("2 10 3 1 4 5 6 7 8 9"), truth).partial == 44 / 45
    assert grade(respond("10231456789"), truth).parsed is None


ORDERS = {"A": "1 3 4 2", "B": "4 2 3 1", "C": "2 4 3 1", "D": "1 2 3", "E": "None of the choices provided"}


@pytest.mark.parametrize(
    ("answer", "truth", "partial"),
    [
        ("B", "B", 1.0),
        ("C", "B", 5 / 6),
        ("2 4 3 1", "B", 5 / 6),
        ("C", "4 2 3 1", 5 / 6),
        ("A", "B", 1 / 6),
        ("D", "B", 0.0),  # an order of fewer images
        ("E", "B", 0.0),
        ("B", "E", 0.0),
        ("E", "E", 1.0),
        ("3 4 2 1", "B", 0.0),  # outside the options, however close
    ],
)
def test_partial_credit_compares_the_orders_of_the_options(answer: str, truth: str, partial: float) -> None:
    result = grade(respond(answer), truth, options=ORDERS, task="temporal_reordering")
    assert (result.partial, result.accuracy) == (partial, float(partial == 1))


def test_words_of_the_same_letters_are_no_orders() -> None:
    assert grade(respond("A"), "B", options={"A": "STOP", "B": "SPOT"}).partial == 0.0
    assert grade(respond("A"), "B", options={"A": "CAB", "B": "ABC"}).partial == 1 / 3


def test_order_of_letters_only_where_an_order_is_asked_for() -> None:
    assert grade(respond("CABD"), "CABD").accuracy == 1.0
    assert grade(respond("C, A, B, D"), "CABD", task="temporal_reordering").accuracy == 1.0
    assert grade(respond("cabd"), "CABD").parsed == grade(respond("c, a, b, d"), "CABD").parsed == "C A B D"
    assert grade(respond("CABD"), "C", task="next_frame_prediction").parsed is None
    assert grade(respond("CABD"), "CABD", task="next_frame_prediction").parsed is None
    assert grade(respond("CABD"), "CABD", options=dict.fromkeys("ABCD", "<image>")).accuracy == 1.0
    assert grade(respond("CABD"), "C", options=dict.fromkeys("ABCD", "<image>")).parsed is None
    assert grade(respond("4 2 3 1 or 1 2 3 4"), "4 2 3 1").parsed is None


@pytest.mark.parametrize(
    ("response", "parsed"),
    [
        ("<think>I would say <answer>A</answer></think><answer>C</answer>", "C"),
        ("or <answer>A</answer>?</think><answer>C</answer>", "C"),
        ("x</think><answer>C</answer>", "C"),  # a chat template may write the first tag
        ("<answer>C</answer>", "C"),
        ("So <answer>C</answer>, I think.", "C"),
        ("<think>x</think><answer>C</answer><answer>(c)</answer>", "C"),
        ("<think>x</think><answer>C</answer><think>y</think><answer>C</answer>", "C"),
        ("<think>x</think><answer>A</answer><answer>C</answer>", None),
        ("<think>x</think><answer></answer><answer>C</answer>", None),
        ("<answer>A</answer><think>x</think><answer>C</answer>", None),
        ("<think>x</think><answer>A</answer><think>y</think><answer>C</answer>", None),
        ("<answer>C</answer><think>x</think>", None),
        ("<think>x</think><answer>C</answer><think>y</think>", None),
        ("<think>x</think><answer>C</answer></think>", None),
        ("<think>x<think>y</think></think><answer>C</answer>", "C"),  # a tag may be named in the reasoning
        ("<think>x</think>y</think><answer>C</answer>", None),
        ("<answer>C</answer>" * 16, "C"),
        ("<answer>C</answer>" * 16 + "<answer>D", None),
        ("<think>x<think>y</think><answer>C</answer>", "C"),
        ("<think>Write <think>..</think> and <answer>A</answer>.</think><answer>C</answer>", "C"),
        ("<think>x</think><ANSWER>C</ANSWER>", "C"),
        ("<THINK>A?</THINK><Answer>C</Answer>", "C"),
        ("<think>x</think><!-- <answer>C</answer> -->", None),
        ("<think>x</think><!-- <answer>A</answer> --><answer>C</answer>", "C"),
        ("<think>x</think><!-- <answer>C</answer>", None),
        ("<think>x</think><answer><answer>C</answer></answer>", None),
        ("<think>x</think><answer>C</answer></answer>", None),
        ("<think>x</think></answer><answer>C</answer>", None),
        ("<think>x</think><answer>C</answer><answer>", None),
        ("<answer><think>x</think>C</answer>", None),
        ("<think>x</think>" + "<answer>C</answer>" * 99, None),
        ("<think>x</think>" * 99 + "<answer>C</answer>", None),
        ("<think>It is <answer>C</answer></think>", None),
        ("<think>It is <answer>C</answer>", None),
        ("<think>x</think><answer>C", None),
        ("<think>x</think>C</answer>", None),
        ("<think>x</think><answer>A<answer>C</answer>", None),
        ("<think>x</think><answer>A</answer><think>or <answer>C</answer>", None),
        ("C", None),
        ("", None),
    ],
)
def test_final_answer_after_the_reasoning_counts(response: str, parsed: str | None) -> None:
    assert grade(response, "C").parsed == parsed
    assert grade(response, "C").accuracy == float(parsed == "C")


@pytest.mark.parametrize(
    ("response", "form"),
    [
        ("<think>x</think><answer>C</answer>", 1.0),
        (" <think>x\ny</think>\n\n<answer> C </answer>\n", 1.0),
        ("So: <think>x</think><answer>C</answer>", 0.0),
        ("<think>x</think> so <answer>C</answer>", 0.0),
        ("<think>x</think><answer>C</answer> done", 0.0),
        ("<think>x</think><answer>C</answer><answer>C</answer>", 0.0),
        ("<think><answer>C</answer></think>", 0.0),
        ("<think>x<think>y</think><answer>C</answer>", 0.0),
        ("<think>x</think><answer>C</think></answer>", 0.0),
        ("<think>x</think><answer>C<answer>D</answer>", 0.0),
        ("<answer>C</answer><think>x</think>", 0.0),
        ("<answer>C</answer>", 0.0),
        ("<think></think><answer>C</answer>", 0.0),
        ("<think> \n\u200b</think><answer>C</answer>", 0.0),
        ("<think>\u56fe</think><answer>C</answer>", 1.0),
        ("x</think><answer>C</answer>", 0.0),  # as long as nobody says that the template opened the reasoning
    ],
)
def test_format_is_all_or_nothing(response: str, form: float) -> None:
    assert grade(response, "C").format == form


def test_tpru_preset_is_dyadic_and_perfect_is_one() -> None:
    assert grade(respond("C"), "C").score() == 1.0
    assert grade("<answer>C</answer>", "C").score() == 0.875
    assert grade(respond("A"), "C").score("tpru") == 0.125
    assert grade("", "C").score() == 0.0
    with pytest.raises(ValueError, match="preset: found 'best', expected one of tpru, tpru_partial, paper"):
        grade("", "C").score("best")


@pytest.mark.parametrize(
    ("response", "truth", "accuracy", "formed"),
    [
        ("<think>x</think><answer>C</answer>", "C", 1, True),
        ("<think>x</think><answer>A</answer>", "C", 0, True),
        ("< think >x< / think >\n< answer > C < / answer >", "C", 1, True),
        ("<think>x</think><answer>'C'</answer>", "C", 1, False),
        ("<think>x</think><answer>c</answer>", "C", 0, False),
        ("<think>x</think><answer>C.</answer>", "C", 0, False),
        ("<think>x</think><answer>ABCDE</answer>", "C", 0, True),
        ("<think><answer>C</answer></think><answer>A</answer>", "C", 1, True),
        ("<think><answer>A</answer></think><answer>C</answer>", "C", 0, True),
        ("<think>x</think><answer>4 2 3 1</answer>", "4 2 3 1", 1, False),
        ("<think>x</think><answer>4 / 2</answer>", "4/2", 1, False),
        ("so <think>x</think><answer>C</answer>", "C", 1, False),
        ("<answer>C", "C", 0, False),
        ("<answer></answer>", "", 1, False),
        ("", "", 0, False),
    ],
)
def test_paper_preset_is_the_published_function(
    response: str, truth: str, accuracy: int, formed: bool
) -> None:
    expected = (1 - 0.1) * float(accuracy) + 0.1 * (0.2 if formed else 0.0)
    assert grade(response, truth).score("paper") == expected


def test_perfect_published_score() -> None:
    assert grade(respond("C"), "C").score("paper") == pytest.approx(0.92)
    assert grade(respond("A"), "C").score("paper") == pytest.approx(0.02)


@given(st.text(), st.text(max_size=20))
def test_no_text_raises(response: str, answer: str) -> None:
    grade(response, answer)
    grade(respond(response), answer)


@given(
    st.lists(
        st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "A", "C", " ", "x"]), max_size=12
    )
)
def test_scores_stay_in_range_and_accuracy_needs_the_answer(parts: list[str]) -> None:
    result = grade("".join(parts), "C")
    assert 0 <= result.score("paper") <= 1
    assert 0 <= result.score() <= 1
    assert result.accuracy <= float("C" in parts)


PIECES = (
    *("<", ">", "/", "</", "< ", "<answer>", "</answer>", "<think>", "</think>", "<think></think>"),
    *("<answer>A</answer>", "<think></think><answer>A</answer>", " ", "\n", "(", "()", "{", "\\boxed{", "[("),
    *("1", "1 ", "A", "A, ", "- > ", "*", "the answer is ", "\uff23", "\u0301", "\u00a0"),
)


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("frame", ["{}", "<think>x</think><answer>{}", "<think>{}</think><answer>C</answer>"])
def test_a_megabyte_is_quick(piece: str, frame: str) -> None:
    """Linear time: a backtracking expression takes minutes here, this one some 10 ms."""
    response = frame.replace("{}", (piece * (2**20 // len(piece) + 1))[: 2**20])
    for truth in ("C", "4 2 3 1"):
        begin = time.process_time()
        result = grade(response, truth)
        assert time.process_time() - begin < 1
    begin = time.process_time()
    result.score("paper")
    penalty(response, max_length=100, ngram=3)
    assert time.process_time() - begin < 1


def test_huge_answers_are_not_remembered() -> None:
    tracemalloc.start()
    try:
        for i in range(50):
            grade(f"<answer>{i}{'x' * 10**5}</answer>", "C")
        assert tracemalloc.get_traced_memory()[0] < 10**6
    finally:
        tracemalloc.stop()


# --- orders -------------------------------------------------------------------------------------------

MONOTONE = {"exact", "kendall", "lis"}


def corrected(order: Sequence[str]) -> Iterator[list[str]]:
    """The orders that come of `order` by exchanging two neighbours that stand in the wrong order."""
    for i in range(len(order) - 1):
        if order[i] > order[i + 1]:
            yield [*order[:i], order[i + 1], order[i], *order[i + 2 :]]


@pytest.mark.parametrize(
    ("measure", "chance"),
    [
        ("exact", Fraction(1, 24)),
        ("positions", Fraction(1, 4)),
        ("kendall", Fraction(1, 2)),
        ("lis", Fraction(17, 36)),
        ("adjacent", Fraction(1, 4)),
    ],
)
def test_chance_of_four(measure: str, chance: Fraction) -> None:
    credits = [order_credit(order, "1234", measure) for order in permutations("1234")]
    assert len(credits) == 24
    assert mean(credits) == pytest.approx(float(chance), abs=1e-12)
    described = order_credit.__doc__ or ""
    assert f"{chance.numerator}/{chance.denominator}" in described.partition(f"`{measure}`:")[2][:400]


@pytest.mark.parametrize("n", [2, 3, 5])
def test_chance_formulas(n: int) -> None:
    truth = [str(i) for i in range(n)]
    chances = {m: mean(order_credit(p, truth, m) for p in permutations(truth)) for m in MEASURES}
    expected = {"exact": 1 / math.factorial(n), "positions": 1 / n, "kendall": 0.5, "adjacent": 1 / n}
    assert {m: chances[m] for m in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("predicted", "credits"),
    [
        ("1234", (1, 1, 1, 1, 1)),
        ("4321", (0, 0, 0, 0, 0)),
        ("2134", (0, 1 / 2, 5 / 6, 2 / 3, 1 / 3)),
        ("2341", (0, 0, 1 / 2, 2 / 3, 2 / 3)),
        ("2413", (0, 0, 1 / 2, 1 / 3, 0)),
        ("4231", (0, 1 / 2, 1 / 6, 1 / 3, 1 / 3)),
    ],
)
def test_measures_by_hand(predicted: str, credits: tuple[float, ...]) -> None:
    assert tuple(order_credit(predicted, "1234", m) for m in MEASURES) == pytest.approx(credits)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("predicted", ["123", "12345", "1233", "1235", "", ["12", "34"]])
def test_no_credit_for_other_labels(measure: str, predicted: Sequence[str]) -> None:
    assert order_credit(predicted, "1234", measure) == 0.0


def test_orders_at_the_edge() -> None:
    for measure in MEASURES:
        assert order_credit("1", "1", measure) == order_credit("", "", measure) == 1.0
        assert order_credit("2", "1", measure) == order_credit("12", "11", measure) == 0.0
        assert order_credit("121", "112", measure) == 0.0
    with pytest.raises(ValueError, match="measure: found 'tau', expected one of exact, positions, kendall"):
        order_credit("12", "12", "tau")


@given(st.permutations("12345678"), st.permutations("12345678"))
def test_measures_depend_on_the_arrangement_alone(predicted: list[str], truth: list[str]) -> None:
    renamed = {label: chr(ord("P") + i) for i, label in enumerate(truth)}
    for measure in MEASURES:
        credit = order_credit(predicted, truth, measure)
        assert 0 <= credit <= 1
        assert (credit == 1) == (predicted == truth)
        assert credit == order_credit([renamed[c] for c in predicted], "PQRSTUVW", measure)


def test_lis_is_the_longest_of_all_subsequences() -> None:
    for order in permutations("12345"):
        longest = max(k for k in range(1, 6) if any(list(c) == sorted(c) for c in combinations(order, k)))
        assert order_credit(order, "12345", "lis") == (longest - 1) / 4


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_fixing_an_inversion_of_neighbours_never_lowers_a_monotone_measure(n: int) -> None:
    truth = "123456"[:n]
    for order in permutations(truth):
        for better in corrected(order):
            for measure in MONOTONE:
                assert order_credit(better, truth, measure) >= order_credit(order, truth, measure)
            gain = order_credit(better, truth) - order_credit(order, truth)
            assert gain == pytest.approx(2 / (n * (n - 1)))


def test_fixing_any_inversion_raises_kendall() -> None:
    for order in permutations("12345"):
        for i, j in combinations(range(5), 2):
            if order[i] > order[j]:
                better = list(order)
                better[i], better[j] = order[j], order[i]
                assert order_credit(better, "12345") > order_credit(order, "12345")


@pytest.mark.parametrize("measure", sorted(set(MEASURES) - MONOTONE))
def test_the_other_measures_are_not_monotone(measure: str) -> None:
    """The docstring says so; who finds one monotone after all may say more."""
    assert any(
        order_credit(better, "1234", measure) < order_credit(order, "1234", measure)
        for order in permutations("1234")
        for better in corrected(order)
    )


# --- presets and penalties ----------------------------------------------------------------------------


@pytest.mark.parametrize("n", range(2, 12))
def test_tpru_partial_keeps_the_order_of_orders(n: int) -> None:
    """From the worst order to the best, one inversion less at a time: each step earns more."""
    truth = [str(i + 1) for i in range(n)]
    order, ladder = truth[::-1], [truth[::-1]]
    while order != truth:
        order = next(corrected([label.zfill(2) for label in order]))
        order = [label.lstrip("0") for label in order]
        ladder.append(order)
    assert len(ladder) == n * (n - 1) // 2 + 1
    scores = [grade(respond(" ".join(o)), " ".join(truth)).score("tpru_partial") for o in ladder]
    assert (scores[0], scores[-1]) == (0.125, 1.0)
    assert all(a < b for a, b in pairwise(scores))
    assert all((64 * score).is_integer() for score in scores)
    unformed = grade(f"<answer>{' '.join(truth)}</answer>", " ".join(truth)).score("tpru_partial")
    assert unformed == 0.875
    assert (scores[-2] < unformed) == (n <= 4)


def test_tpru_partial_is_tpru_where_no_order_is_asked_for() -> None:
    for response in (respond("C"), respond("A"), "<answer>C</answer>", "<answer>A</answer>", ""):
        result = grade(response, "C")
        assert result.score("tpru_partial") == result.score("tpru")


def scores_of(preset: str) -> set[float]:
    orders = ["".join(order) for order in permutations("1234")]
    texts = [text for order in orders for text in (respond(order), f"<answer>{order}</answer>", "")]
    return {grade(text, "4231").score(preset) for text in texts}


def advantages(score: float, size: int) -> list[float]:
    """What veRL's own GRPO makes of a group whose responses all earn `score`."""
    pytest.importorskip("verl")
    import numpy as np
    import torch
    from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage

    rewards = torch.zeros(size, 3)
    rewards[:, -1] = score
    groups = np.array(["a"] * size, dtype=object)
    values, _ = compute_grpo_outcome_advantage(rewards, torch.ones(size, 3), groups)
    return values.flatten().tolist()


@pytest.mark.parametrize(("preset", "different"), [("tpru", 4), ("tpru_partial", 14)])
def test_a_group_of_equals_has_no_advantage(preset: str, different: int) -> None:
    scores = scores_of(preset)
    assert len(scores) >= different
    for score in scores:
        for size in range(2, 17):
            assert advantages(score, size) == [0.0] * (3 * size)
            less = penalty("x" * 90, max_length=100, buffer=30)
            assert advantages(score - 0.5 * less, size) == [0.0] * (3 * size)


def test_the_published_reward_moves_a_group_of_equals() -> None:
    """Bit for bit means with its defect: five times 0.92 is not five times its mean in float32."""
    assert max(map(abs, advantages(grade(respond("C"), "C").score("paper"), 5))) > 0.01


@pytest.mark.parametrize(
    "response", ["", "x", respond("4 2 3 1"), respond("1 2 3 4"), "<answer>4231</answer>"]
)
def test_all_numbers_are_floats(response: str) -> None:
    for truth, options in (("4 2 3 1", None), ("B", ORDERS), ("?", None)):
        result = grade(response, truth, options=options)
        numbers = [result.accuracy, result.format, result.partial, result.published]
        assert all(type(value) is float for value in [*numbers, *map(result.score, PRESETS)])
    for measure in MEASURES:
        assert type(order_credit("12", "21", measure)) is float
    assert type(penalty(response)) is type(penalty(response, max_length=1, ngram=1)) is float


def test_a_score_is_less_its_penalties() -> None:
    found = grade("<think>x</think><answer>B</answer>", "B")
    assert found.score("tpru", max_length=100, length=90) == 0.5
    assert found.score("tpru", max_length=100, length=1000) == 0.0
    assert grade("no no no no", "B").score(ngram=1, max_length=1) == -1.0


def test_penalty_is_off_by_default() -> None:
    assert penalty("again " * 9999) == 0.0


@pytest.mark.parametrize(
    ("length", "expected"),
    [(0, 0), (80, 0), (81, 3 / 64), (90, 0.5), (95, 0.75), (100, 1), (101, 1), (9999, 1)],
)
def test_length_penalty(length: int, expected: float) -> None:
    """The last fifth of 100 is a ramp; a twentieth of it is 3.2/64."""
    assert penalty("x" * length, max_length=100) == expected
    assert penalty("x" * 9, max_length=100, length=length) == expected
    assert penalty("x" * length, max_length=100, buffer=0) == float(length > 100)


@pytest.mark.parametrize(
    ("text", "ngram", "expected"),
    [
        ("", 1, 0),
        ("a b", 3, 0),
        ("a b c d", 2, 0),
        ("a a a a a", 1, 51 / 64),  # 4 of 5
        ("a b a b a", 2, 0.5),  # ab, ba, ab, ba
        ("a b a b a", 5, 0),
        ("b a\tb  a\nb a", 2, 38 / 64),  # 3 of 5
    ],
)
def test_repetition_penalty(text: str, ngram: int, expected: float) -> None:
    assert penalty(text, ngram=ngram) == expected
    assert penalty(text, ngram=ngram, max_length=1000, length=900) == min(1, expected + 0.5)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"max_length": 0}, "max_length: found 0, expected 1 or more"),
        ({"ngram": 0}, "ngram: found 0, expected 1 or more"),
        ({"max_length": 9, "buffer": 10}, r"buffer: found 10, expected 0 to max_length \(9\)"),
        ({"max_length": 9, "buffer": -1}, "buffer: found -1"),
    ],
)
def test_penalties_that_make_no_sense(kwargs: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        penalty("x", **kwargs)


@given(st.text(), st.integers(1, 99), st.integers(1, 9))
def test_penalty_stays_in_range_and_on_the_grid(text: str, max_length: int, ngram: int) -> None:
    value = penalty(text, max_length=max_length, ngram=ngram)
    assert 0 <= value <= 1
    assert (64 * value).is_integer()


# --- any order, any options, any text around them -----------------------------------------------------

PLAIN = st.text(st.characters(exclude_characters="<"))
VISIBLE = re.compile(r"[^\s\u00ad\u200b-\u200f\u2060-\u2064\ufeff]")
AFTER = st.text(
    st.characters(exclude_characters="<ABCDEFGH")
)  # a letter after an answer may be another answer
STYLES = (
    "{}",
    " {} \n",
    "**{}**",
    "({})",
    "[{}]",
    "\\boxed{{{}}}",
    "`{}`",
    "{}.",
    "Answer: {}",
    "'{}'",
    "\u201c{}\u201d",
)
JOINTS = (" ", ",", ", ", " -> ", "->", "\u2192", "; ", " > ", "\n", ", then ", " and ")
NAMES = ("", "image ", "Image", "Frame ", "photo ", "step ", "frame_", "#")
COUNTS = st.integers(2, 9).flatmap(lambda n: st.permutations([str(i + 1) for i in range(n)]))


@st.composite
def written_orders(draw: st.DrawFn, order: Sequence[str]) -> str:
    joint, name = draw(st.sampled_from(JOINTS)), draw(st.sampled_from(NAMES))
    text = draw(st.sampled_from(["".join(order), joint.join(name + label for label in order)]))
    return draw(st.sampled_from(STYLES)).format(text)


@given(st.data(), COUNTS, PLAIN, PLAIN, PLAIN)
def test_any_order_in_any_text(
    data: st.DataObject, order: list[str], thought: str, between: str, after: str
) -> None:
    other = data.draw(st.permutations(order))
    said, truth = data.draw(written_orders(order)), data.draw(written_orders(other))
    quoted = data.draw(st.sampled_from(["", "<answer>1 2</answer>", "<answer>", "<image>"]))
    response = f"<think>{thought}{quoted}</think>{between}<answer>{said}</answer>{after}"
    result = grade(response, truth)
    assert result.parsed == " ".join(order)
    assert result.accuracy == float(order == other)
    assert result.partial == order_credit(order, other)
    formed = not (between + after).strip() and "<answer>" not in quoted and VISIBLE.search(thought + quoted)
    assert result.format == float(bool(formed))


# No letter of the words that may stand before an answer, so that an option's text is nothing but itself.
OPTION_TEXT = st.text("bcdgkmuvxyz 0123456789\u00e9\u03bb\u4e2d", min_size=2, max_size=20)
OPTION_SETS = st.lists(
    OPTION_TEXT.filter(lambda t: len("".join(t.split())) > 1),
    min_size=2,
    max_size=8,
    unique_by=lambda t: "".join(t.split()),
).map(lambda texts: dict(zip("ABCDEFGH", texts, strict=False)))


@given(st.data(), OPTION_SETS, PLAIN, AFTER)
def test_any_options_in_any_text(
    data: st.DataObject, options: dict[str, str], thought: str, after: str
) -> None:
    letter, truth, other = (data.draw(st.sampled_from(sorted(options))) for _ in range(3))
    form = data.draw(
        st.sampled_from(["{0}", "{1}", "({0})", "{0}. {1}", "({0}) {1}", "{0}: {1}", "Option {0}"])
    )
    said = data.draw(st.sampled_from(STYLES)).format(form.format(letter, options[letter]))
    response = f"<think>{thought}</think><answer>{said}</answer>{after}"
    result = grade(response, truth, options=options)
    assert (result.parsed, result.accuracy) == (letter, float(letter == truth))
    assert grade(response, options[truth], options=options).accuracy == result.accuracy

    assume(other != letter)
    for cheat in (
        f"{letter}. {options[other]}",
        f"{letter} or {other}",
        f"{options[letter]} {options[other]}Q",
    ):
        assert grade(respond(cheat), letter, options=options).parsed is None
    twice = f"<think>{thought}</think><answer>{said}</answer><answer>{other}</answer>"
    assert grade(twice, letter, options=options).parsed is None
    assert grade(f"<think>{response}</think>", letter, options=options).parsed is None
