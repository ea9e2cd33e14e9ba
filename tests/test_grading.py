"""The grader: tolerant of how an answer is written, strict about what it says."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpru_verl.grading import grade

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
        ),
        *("", " ", "?", "3", "the third", "Cat", "C" * 300, "A red ball", "not sure", "\u0421", "\uff23"),
    ],
)
def test_hedges_and_nonsense_are_no_answer(answer: str) -> None:
    result = grade(respond(answer), "C")
    assert (result.accuracy, result.partial, result.parsed) == (0.0, 0.0, None)


def test_options_tell_text_from_a_second_answer() -> None:
    assert grade(respond("B. a red ball"), "B", options=OPTIONS).accuracy == 1.0
    assert grade(respond("a red ball"), "B", options=OPTIONS).accuracy == 1.0
    assert grade(respond("4231"), "D", options=OPTIONS).parsed == "D"
    assert grade(respond("B. 4 2 3 1"), "B", options=OPTIONS).parsed is None
    assert grade(respond("F"), "F", options=OPTIONS).parsed is None
    assert grade(respond("<image>"), "C", options=OPTIONS).parsed is None


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
    ],
)
@pytest.mark.parametrize("truth", ["4 2 3 1", "4231"])
def test_ways_to_write_an_order(answer: str, truth: str) -> None:
    result = grade(respond(answer), truth)
    assert (result.accuracy, result.partial, result.parsed) == (1.0, 1.0, "4 2 3 1")


@pytest.mark.parametrize(
    ("answer", "partial"),
    [
        ("4 2 1 3", 0.5),
        ("1 2 3 4", 0.5),
        ("2 4 1 3", 0.0),
        ("4 2 3", 0.0),
        ("4 2 3 1 1", 0.0),
        ("4 4 4 4", 0.0),
    ],
)
def test_partial_is_the_share_of_right_positions(answer: str, partial: float) -> None:
    result = grade(respond(answer), "4 2 3 1")
    assert (result.accuracy, result.partial) == (0.0, partial)


def test_order_of_letters_only_where_an_order_is_asked_for() -> None:
    assert grade(respond("CABD"), "CABD").accuracy == 1.0
    assert grade(respond("C, A, B, D"), "CABD", task="temporal_reordering").accuracy == 1.0
    assert grade(respond("CABD"), "C", task="next_frame_prediction").parsed is None
    assert grade(respond("4 2 3 1 or 1 2 3 4"), "4 2 3 1").parsed is None


@pytest.mark.parametrize(
    ("response", "parsed"),
    [
        ("<think>I would say <answer>A</answer></think><answer>C</answer>", "C"),
        ("<think>x</think><answer>A</answer><answer>C</answer>", "C"),
        ("<answer>C</answer>", "C"),
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
        ("<answer>C</answer><think>x</think>", 0.0),
        ("<answer>C</answer>", 0.0),
    ],
)
def test_format_is_all_or_nothing(response: str, form: float) -> None:
    assert grade(response, "C").format == form


def test_tpru_preset_is_dyadic_and_perfect_is_one() -> None:
    assert grade(respond("C"), "C").score() == 1.0
    assert grade("<answer>C</answer>", "C").score() == 0.875
    assert grade(respond("A"), "C").score("tpru") == 0.125
    assert grade("", "C").score() == 0.0
    with pytest.raises(ValueError, match="preset: found 'best', expected one of tpru, paper"):
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


@pytest.mark.parametrize(
    "piece", ["<", "<answer>", "</think>", "<answer>A</answer>", " ", "(", "\\boxed{", "1 "]
)
def test_a_megabyte_is_quick(piece: str) -> None:
    """Linear time: a backtracking expression takes minutes here. The bound is loose for a busy machine."""
    response = (piece * (2**20 // len(piece) + 1))[: 2**20]
    begin = time.process_time()
    grade(response, "C")
    grade(f"<think>x</think><answer>{response}", "4 2 3 1")
    assert time.process_time() - begin < 0.5


def test_a_megabyte_of_opening_brackets() -> None:
    begin = time.process_time()
    grade("<" * 2**20, "C")
    assert time.process_time() - begin < 0.05
