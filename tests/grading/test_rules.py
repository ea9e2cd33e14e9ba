"""The rules of docs/rewards.md: answers that a careful person would, or would not, pay for."""

import time
from collections.abc import Callable, Mapping
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpru_verl.grading import grade, read_answer

TEXTS = {
    "A": "He washes his hands",
    "B": "He cuts the onion",
    "C": "He pours water into the pan",
    "D": "He turns on the stove",
    "E": "None of the choices provided",
}
ORDERS = {"A": "1 3 4 2", "B": "2 1 3 4", "C": "4 2 3 1", "D": "3 4 1 2", "E": "None of the choices provided"}
IMAGES = {**dict.fromkeys("ABCD", "<image>"), "E": "None of the choices provided"}
SETS: list[Mapping[str, str] | None] = [TEXTS, ORDERS, IMAGES, None]


def respond(answer: str) -> str:
    return f"<think>x</think><answer>{answer}</answer>"


@pytest.mark.parametrize("options", SETS)
@pytest.mark.parametrize(
    "answer",
    [
        *("B: no", "B. is not the answer", "B) is wrong", "B (wrong)", "B: definitely not this one"),
        *(
            "B is not correct",
            "B, which is incorrect",
            "B. not 3 1 4 2",
            "B isn't it",
            "B, not B",
            "Not B",
            "B?",
        ),
        *(
            "B - or another one",
            "B. or the first, or the last",
            "B. Option C",
            "B. Option two",
            "B: all of them",
        ),
        *(
            "B. none of them",
            "B. 'C'",
            "B.\u0421",
            "B. BCDE",
            "B. BC",
            "B. B1 C1 D1",
            "B, maybe D",
            "B because C",
        ),
        *(
            "\u3010\u7b54\u6848\u3011B\u6216C",
            "<B> or <C>",
            "B|C",
            "\u3014B\u3015 or C",
            "\u2234 B or C",
            "\\fbox{B} or C",
        ),
        *(
            "Thus, B is not the answer.",
            "Thus, B is the answer or C",
            "\u7efc\u4e0a\u6240\u8ff0\uff0c\u7b54\u6848\u4e0d\u4e3aB",
        ),
        *("B. 3 1 4 2 or 4 3 2 1", "B. 3142/4321", "the answer is not B", "B. C is correct"),
    ],
)
def test_an_answer_that_is_taken_back_or_shared_is_none(
    answer: str, options: Mapping[str, str] | None
) -> None:
    assert grade(respond(answer), "B", options=options).parsed is None


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        (TEXTS, "B. He pours some water"),
        (TEXTS, "B. The man pours something"),
        (TEXTS, "B. The man leaves the room"),
        (TEXTS, "B. " + " ".join(TEXTS.values())),
        (TEXTS, "B. 2"),
        (TEXTS, "B: he does not cut the onion"),
        (ORDERS, "B. one two three four"),
        (ORDERS, "B. 2"),
        (ORDERS, "B. Image 3 comes first"),
        (IMAGES, "B. 2"),
        (IMAGES, "B. 3 1 4 2"),
        (IMAGES, "B. None of the above"),
    ],
)
def test_text_that_is_not_the_options_own_is_no_answer(options: Mapping[str, str], answer: str) -> None:
    assert grade(respond(answer), "B", options=options).parsed is None


@pytest.mark.parametrize("options", SETS)
@pytest.mark.parametrize(
    "answer",
    [
        *(
            "C is correct",
            "C is the right answer.",
            "C is the answer",
            "**C** is correct",
            "I choose C",
            "It's C",
        ),
        *("My answer is C", "So the answer is C", "Therefore, C.", "I would go with option C", "I'll pick C"),
        *(
            "C!",
            "C;",
            "C,",
            "<b>C</b>",
            "- C",
            "# C",
            "C and not B",
            "C (not B)",
            "C, not A or B",
            "C rather than A",
        ),
        *("C\u200b", "\ufeffC", "\u200fC", "\u0421", "C\u3002", "C\u3001", "\u3010C\u3011", "\u300cC\u300d"),
        *(
            "\u7b54\u6848\uff1aC",
            "\u7b54\u6848\u662fC\u3002",
            "\u9009C",
            "\u9009\u9879C",
            "C\u662f\u6b63\u786e\u7b54\u6848",
        ),
        *("\\(\\boxed{C}\\)", "\\[\\boxed{C}\\]", "The final answer is: $\\boxed{C}$"),
        *("The next frame is C", "The correct previous image is C", "The missing step is C."),
        '```json\n{"answer": "C"}\n```',
        *(
            "\u3010\u7b54\u6848\u3011C",
            "\u3010\u7b54\u6848\u3011\uff1aC",
            "\u3014C\u3015",
            "C|",
            "| C |",
            "\\fbox{C}",
        ),
        *(
            "Thus, C is the answer.",
            "As a result, the answer is C.",
            "\u2234 C",
            "\u7efc\u4e0a\u6240\u8ff0\uff0c\u7b54\u6848\u4e3aC",
        ),
    ],
)
def test_a_letter_that_a_person_would_be_sure_of(answer: str, options: Mapping[str, str] | None) -> None:
    assert grade(respond(answer), "C", options=options).parsed == "C"


@pytest.mark.parametrize(
    ("options", "answer", "parsed"),
    [
        (TEXTS, "B, he cuts the onion", "B"),
        (TEXTS, "He cuts the onion (B)", "B"),
        (TEXTS, "B. The man cuts an onion", "B"),
        (TEXTS, "B. Because the onion is cut", "B"),
        (TEXTS, "None of the above", "E"),
        (TEXTS, "None", "E"),
        (IMAGES, "none of these", "E"),
        (ORDERS, "E. None of the above", "E"),
        (None, "E. None of the choices provided", "E"),
        (IMAGES, "C. Image 3", "C"),
        (IMAGES, "C - the onion is cut", "C"),
        (IMAGES, "C\nThe onion is cut.", "C"),
        (IMAGES, "C. A pot boils", "C"),
        (IMAGES, "C, A also fits", None),
        (IMAGES, "C. A is it", None),
        (IMAGES, "C\nB", None),
        (None, "C. A pot boils", "C"),
        (None, "C. The person holds a knife", "C"),
        (None, "C, because I see the pot", "C"),
        (None, "C, or I", None),
        (IMAGES, "C is the worst choice", None),
        (IMAGES, "C is least likely", None),
        (IMAGES, "C (too late)", None),
        (IMAGES, "C, discard it", None),
        (IMAGES, "C. Discard the seeds", "C"),
        (IMAGES, "C. The least full glass is shown", "C"),
        (None, "C: opposite corner of the room", "C"),
        (None, "C, too early in the morning to see it", "C"),
        (
            {"A": "Add the onions", "B": "Discard the seeds"},
            "B. discard the seeds because they are bitter",
            "B",
        ),
        ({"A": "left", "B": "right"}, "A. right", None),
        ({"A": "left", "B": "right"}, "B. right", "B"),
        ({"A": "the red cup", "B": "a blue lid"}, "A. red cup", "A"),
        ({"A": "\u5207\u6d0b\u8471", "B": "\u5012\u6c34"}, "A\u3001\u4ed6\u5728\u5012\u6c34", None),
        ({"A": "\u5207\u6d0b\u8471", "B": "\u5012\u6c34"}, "A\u3001\u5207\u6d0b\u8471", "A"),
        ({"A": "2", "B": "4"}, "A. 2", "A"),
        ({"A": "BAC", "B": "CAB"}, "A. BAC", "A"),
        ({"A": "it is red", "B": "red"}, "red", "B"),
    ],
)
def test_text_beside_the_letter(options: Mapping[str, str] | None, answer: str, parsed: str | None) -> None:
    assert grade(respond(answer), "F", options=options).parsed == parsed


@pytest.mark.parametrize(
    "answer",
    [
        *(
            "first 4, then 2, then 3, finally 1",
            "4th, 2nd, 3rd, 1st",
            "the fourth, the second, the third, the first",
        ),
        *(
            "1. Image 4\n2. Image 2\n3. Image 3\n4. Image 1",
            "1) 4\n2) 2\n3) 3\n4) 1",
            "(1) 4 (2) 2 (3) 3 (4) 1",
        ),
        *("Step 1: Image 4\nStep 2: Image 2\nStep 3: Image 3\nStep 4: Image 1", "4 < 2 < 3 < 1"),
        *(
            "<image 4> <image 2> <image 3> <image 1>",
            "<image 4><image 2><image 3><image 1>",
            "four, two, three, one",
        ),
        *(
            "first 4, second 2, third 3, fourth 1",
            "The correct order of the images is 4, 2, 3, 1.",
            "- 4\n- 2\n- 3\n- 1",
        ),
        *(
            "The correct chronological order of frames is 4 2 3 1",
            "4/2/3/1",
            "4 2 3, and last 1",
            "4 2 3 1 last",
        ),
        *("4 2 3 1 is the correct order", "\u56fe4\u2192\u56fe2\u2192\u56fe3\u2192\u56fe1"),
    ],
)
def test_an_order_that_a_person_would_be_sure_of(answer: str) -> None:
    assert grade(respond(answer), "4 2 3 1").parsed == "4 2 3 1"
    assert grade(respond(answer), "C", options=ORDERS).parsed == "C"
    assert grade(respond(answer), "1 2 3 4").accuracy == 0


@pytest.mark.parametrize(
    "answer",
    [
        *("first 4, third 2, second 3", "1. 2. 3. 4", "4 2 3 1 or not", "2. Image 4\n1. Image 3"),
        "Image 1 is last, Image 4 is first, Image 2 is second, Image 3 is third",
        *("Last is 1, then 4, 2, 3", "4/2", "\u6700\u540e\u56fe1, \u56fe4, \u56fe2, \u56fe3"),
    ],
)
def test_no_order(answer: str) -> None:
    assert grade(respond(answer), "4 2 3 1").parsed is None


@pytest.mark.parametrize(
    ("after", "kept"),
    [
        ("I hope this helps.", True),
        (", I think.", True),
        (" Because it is the last one.", True),
        (" So A is the answer.", True),
        (" The answer is A.", True),
        (" No other option fits.", True),
        (" No, that is wrong, it is B.", False),
        (" That is not right.", False),
        (" Wait, I was wrong.", False),
        (" Actually B.", False),
        (" The answer is B.", False),
        (" or B", False),
        ("\nB", False),
        (" **B**", False),
        (" (B)", False),
        ("\n\u2234 B", False),
        ("\n\u3010\u7b54\u6848\u3011B", False),
        ("\n\u7b54\u6848\uff1aB", False),
        (" \\fbox{B}", False),
        ("\n\u2234 A", True),
        (" Thus $\\boxed{B}$.", False),
        (" Final: B", False),
        (" Actually, the correct one is B.", False),
        (" Let me reconsider: B.", False),
        (" Hmm, B fits better.", False),
        (" On second thought B.", False),
        (" \u5e94\u8be5\u662fB", False),
        (" **A** fits best.", True),
        (" Note: image is C shown earlier", True),
        (" The next step is D in the sequence but A is the answer", True),
        (" In step 3 the frame is B-shaped.", True),
        (" In the first frame B is better visible.", True),
        (" Because B is right of A in the picture.", True),
    ],
)
def test_text_after_the_answer_may_take_it_back(after: str, kept: bool) -> None:
    assert grade(respond("A") + after, "A").accuracy == float(kept)


# --- a chat template that opens the reasoning -----------------------------------------------------------


@pytest.mark.parametrize("answer", ["C", "A"])
def test_a_template_that_opens_the_reasoning(answer: str) -> None:
    """The whole form is earned without a second `<think>`, and with one, so that neither is taught."""
    begun, whole = f"\nx</think>\n\n<answer>{answer}</answer>", respond(answer)
    full = grade(whole, "C").score()
    assert grade(begun, "C", opened_think=True).score() == full
    assert grade(whole, "C", opened_think=True).score() == full
    assert grade(begun, "C").score() == full - 0.125
    assert grade(f"</think><answer>{answer}</answer>", "C", opened_think=True).format == 0
    assert grade(f"<answer>{answer}</answer>", "C", opened_think=True).format == 0


@pytest.mark.parametrize(
    "said", ["It is <answer>C</answer>. But", "<answer>C</answer>", "So the answer is C"]
)
@pytest.mark.parametrize("untagged", [True, False])
def test_a_reasoning_that_the_template_opens_and_nobody_ends_has_no_answer(said: str, untagged: bool) -> None:
    opened = grade(said, "C", opened_think=True, untagged=untagged)
    assert (opened.parsed, opened.score()) == (None, 0)
    assert opened.parsed == grade(f"<think>{said}", "C", untagged=untagged).parsed


# --- responses without tags ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "parsed"),
    [
        ("The disc moves.\nSo, the answer is **B**.", "B"),
        ("The disc moves.\nMy final answer is B.", "B"),
        ("The disc moves.\n### Answer: B", "B"),
        ("The disc moves.\nThe answer is \\(\\boxed{B}\\).", "B"),
        ("The disc moves.\nThus we get $\\boxed{B}$ in the end.", "B"),
        ("The disc moves.\n\\[\\boxed{B}\\]", "B"),
        ("The disc moves.\n**B**", "B"),
        ("The disc moves.\nThus, B is the answer.", "B"),
        ("The disc moves.\nAs a result, the answer is B.", "B"),
        ("The disc moves.\n\u2234 B", "B"),
        ("The disc moves.\n\u7efc\u4e0a\u6240\u8ff0\uff0c\u7b54\u6848\u4e3aB", "B"),
        ("I doubt it.\nPerhaps B is the answer.", None),
        ("The disc moves.\n\u56e0\u6b64\u9009B\u3002", "B"),
        ("The disc moves.\nTherefore, the missing frame is B.", "B"),
        ("The disc moves.\n$$\n\\boxed{B}\n$$", "B"),
        ("The disc moves.\n\\[\n\\boxed{B}\n\\]", "B"),
        ("Answer: B\n\nExplanation: the disc moves in B, not in A.", "B"),
        ("Answer: B\n\nWait, that is wrong.", None),
        ("Answer: B\n\nNo, it is C, as the disc moves", None),
        ("Answer: A or B\n\nThe disc moves.", None),
        ("<think>It asks for the <answer> tag.</think>\n\nB", "B"),
        ("A. x\nB. y\nC. z\nD", None),
        ("A\nB", None),
        ("The disc moves.\nA ball rolls.", None),
        ("The answer is A.\nOr is it B?", None),
        ("<think>The answer is B", None),
        ("<answer>B", None),
        ("", None),
    ],
)
def test_untagged_responses(response: str, parsed: str | None) -> None:
    assert grade(response, "B", options=ORDERS, untagged=True).parsed == parsed
    assert grade(response, "B", options=ORDERS).parsed is None


# --- the right answer of a row ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "options", "read"),
    [
        ("<answer> B </answer>", None, "B"),
        ("<think>y</think><answer>B</answer>", ORDERS, "B"),
        ("\u7b54\u6848\uff1aB", None, "B"),
        ("b\n", ORDERS, "B"),
        ("(B)", TEXTS, "B"),
        ("#### B", TEXTS, "B"),
        ("It moves.\nThe answer is B.", None, "B"),
        ("He cuts the onion", TEXTS, "B"),
        ("B. He cuts the onion", TEXTS, "B"),
        ("3", {"A": "2", "B": "3"}, "B"),
        ("4 2 3 1", ORDERS, "C"),
        ("[4, 2, 3, 1]", None, "4 2 3 1"),
        ("0 2 1", None, "0 2 1"),
        ("CABD", dict.fromkeys("ABCD", "<image>"), "C A B D"),
    ],
)
def test_a_right_answer_is_read_as_a_response_is(
    answer: str, options: Mapping[str, str] | None, read: str
) -> None:
    assert read_answer(answer, options) == read
    assert grade(respond(read), answer, options=options).score() == 1.0
    assert grade(
        respond(answer.removeprefix("<think>y</think>").replace("answer>", "b>")), answer, options=options
    )


@pytest.mark.parametrize(
    ("answer", "options", "expected"),
    [
        ("3", None, "found '3', expected a letter or an order such as '4 2 3 1'"),
        ("dog", None, "found 'dog', expected a letter or an order"),
        ("A or B", None, "found 'A or B', expected a letter"),
        ("<answer>A</answer><answer>B</answer>", None, "expected a letter"),
        ("F", ORDERS, "found 'F', expected one of A, B, C, D, E"),
        ("1 2 3 4", ORDERS, "expected one of A, B, C, D, E"),
        ("CABD", ORDERS, "expected one of A, B, C, D, E"),
        (" ", ORDERS, "found ' ', expected an option letter or an order"),
        (3, ORDERS, "found 3, expected an option letter or an order"),
        (["B"], None, r"found \['B'\], expected an option letter or an order"),
    ],
)
def test_an_answer_that_no_response_can_match(
    answer: object, options: Mapping[str, str] | None, expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        read_answer(answer, options)


@given(st.text(max_size=12), st.sampled_from(SETS), st.sampled_from([None, "next_frame_prediction"]))
def test_an_answer_that_is_read_can_be_matched(
    answer: str, options: Mapping[str, str] | None, task: str | None
) -> None:
    try:
        read = read_answer(answer, options, task)
    except ValueError:
        return
    assert grade(respond(read), answer, options=options, task=task).score() == 1.0


# --- what holds for every output ----------------------------------------------------------------------

BITS = (
    *("A", "B", "C", "D", "E", "a", "b", "c"),
    *(
        ". ",
        ", ",
        " ",
        "(",
        ")",
        ": ",
        " - ",
        "\n",
        "1",
        "2",
        "3",
        "4",
        "1 3 4 2",
        "4 2 3 1",
        "not ",
        "or ",
        "and ",
    ),
    *(
        "is correct",
        "because ",
        "rather than ",
        "None of the above",
        "the answer is ",
        "I choose ",
        "option ",
    ),
    *(
        "He cuts the onion",
        "He pours water into the pan",
        "no",
        "first ",
        "\\boxed{",
        "}",
        "</answer>",
        "<answer>",
    ),
    *("<think>", "</think>", "<!--", "-->", "\u7b54\u6848", "\u9009", "\u0421"),
)
OUTPUTS = st.lists(st.sampled_from(BITS), max_size=10).map("".join)


@given(
    OUTPUTS,
    st.sampled_from(["{}", "<answer>{}</answer>", "<think>x</think><answer>{}</answer>{}"]),
    st.booleans(),
)
def test_no_output_is_right_for_two_answers(text: str, frame: str, untagged: bool) -> None:
    response = frame.replace("{}", text)
    for options in SETS:
        right = [
            truth for truth in "ABCDE" if grade(response, truth, options=options, untagged=untagged).accuracy
        ]
        assert len(right) <= 1, (right, options)
    orders = ("1 3 4 2", "4 2 3 1", "1 2 3 4", "2 1 3 4")
    assert sum(grade(response, order, untagged=untagged).accuracy for order in orders) <= 1


PIECES = (
    "not A ",
    "is ",
    "is the ",
    "or ",
    "No",
    " it is 1",
    "1 ",
    "answer is ",
    "\u9009",
    "<!--",
    "<!---->",
    "-->",
    "<think>",
)
FRAMES: list[Callable[[str], str]] = [
    lambda text: text,
    lambda text: f"<think>x</think><answer>B</answer>{text}",
    lambda text: f"<think>x</think>{text}<answer>B</answer>",
    lambda text: f"<think>x</think><answer>B {text}</answer>",
    lambda text: f"x\n{text}",
    lambda text: f"<THINK>{text}</THINK><ANSWER>B</ANSWER>",
]


@pytest.mark.parametrize(("piece", "frame"), product(PIECES, FRAMES))
def test_two_megabytes_take_less_than_half_a_second(piece: str, frame: Callable[[str], str]) -> None:
    response = frame(piece * (2 * 10**6 // len(piece)))
    begin = time.process_time()
    grade(response, "B", options=ORDERS, untagged=True)
    assert time.process_time() - begin < 0.5


@pytest.mark.parametrize("options", SETS)
@pytest.mark.parametrize(
    "answer",
    [
        *("\u7b54\u3048\u306fB", "\u7b54\u3048\u306fB\u3067\u3059\u3002", "\u6b63\u89e3\uff1aB"),
        *("\uc815\ub2f5\uc740 B", "\uc815\ub2f5: B", "\ub2f5\uc740 B\uc785\ub2c8\ub2e4."),
        *(
            "La r\u00e9ponse est B",
            "R\u00e9ponse : B",
            "La bonne r\u00e9ponse est la B.",
            "Die Antwort ist B",
        ),
        *(
            "La respuesta correcta es B",
            "A resposta \u00e9 B",
            "Risposta: B",
            "\u041e\u0442\u0432\u0435\u0442: B",
        ),
        *(
            "\u6b63\u78ba\u7b54\u6848\u662fB",
            "\u61c9\u9078B",
            "\u9078\u9805B",
            "B\u9009\u9879",
            "\u7b54\uff1aB",
        ),
    ],
)
def test_answers_in_other_languages(answer: str, options: Mapping[str, str] | None) -> None:
    assert grade(respond(answer), "B", options=options).accuracy == 1
    assert grade(f"He looks.\n{answer}", "B", options=options, untagged=True).accuracy == 1


@pytest.mark.parametrize("options", SETS)
@pytest.mark.parametrize(
    "answer",
    [
        *("B was ruled out", "B can be excluded", "B has been eliminated"),
        *("B\u3067\u306f\u306a\u3044", "B \ub610\ub294 C", "La r\u00e9ponse n'est pas B", "B ou C"),
    ],
)
def test_no_answers_in_other_words(answer: str, options: Mapping[str, str] | None) -> None:
    assert grade(respond(answer), "B", options=options).accuracy == 0


@pytest.mark.parametrize("form", ["{0} {1}", "{0}\t{1}", "{0} = {1}", "{1}, {0}", "{1}: {0}"])
def test_a_letter_beside_the_text_of_its_option(form: str) -> None:
    assert grade(respond(form.format("B", TEXTS["B"])), "B", options=TEXTS).accuracy == 1
    assert grade(respond(form.format("B", TEXTS["A"])), "B", options=TEXTS).accuracy == 0
