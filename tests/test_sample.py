"""What a problem's text says, and what makes a row valid."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpru_verl.grading import grade
from tpru_verl.sample import (
    MAX_IMAGES,
    NONE_OPTION,
    Sample,
    Task,
    option_spans,
    parse_options,
    problems_of,
    recognise_task,
)

SHORT_ORDER = (
    "Reorder the frames. Frame 1:<image> Frame 2:<image> Frame 3:<image> Frame 4:<image> "
    f"Options: A. 3142 B. 1243 C. 4321 D. 2134 E. {NONE_OPTION}"
)
SHORT_NEXT = (
    "Find step 3. Step 1:<image> Step 2:<image> Step 4:<image> It is between step 2 and 4. "
    f"A.<image> B.<image> C. {NONE_OPTION} D.<image> E.<image>"
)
SHORT_PREVIOUS = (
    "Find step 1. Step 2:<image> Step 3:<image> Step 4:<image> It is before step 2. "
    f"A. {NONE_OPTION} B.<image> C.<image> D.<image> E.<image>"
)
STEPS = "Step 1: <image> Step 2: <image> Step 3: <image> Step 4: <image>"
LONG_ORDER = (
    "These photos show the next step, then what was before. Below are 4 images in random order, labelled "
    "1-4. What is the correct sequence?\n<image><image><image><image>\n"
    f"(A) 4 2 3 1\n(B) 1 2 3 4\n(C) {NONE_OPTION}\n"
    "Answer with a letter."
)


def test_options_of_the_short_forms() -> None:
    assert parse_options(SHORT_ORDER) == {
        "A": "3142",
        "B": "1243",
        "C": "4321",
        "D": "2134",
        "E": NONE_OPTION,
    }
    assert parse_options(SHORT_NEXT) == dict.fromkeys("ABDE", "<image>") | {"C": NONE_OPTION}
    assert list(parse_options(SHORT_NEXT)) == list("ABCDE")


def test_options_on_lines_with_brackets_and_text_after_them() -> None:
    assert parse_options(LONG_ORDER) == {"A": "4 2 3 1", "B": "1 2 3 4", "C": NONE_OPTION}


MARKS = (
    *(
        "{}. {}",
        "{}.{}",
        "{}) {}",
        "({}) {}",
        "[{}] {}",
        "{}: {}",
        "({}). {}",
        "Option {}: {}",
        "Option ({}): {}",
    ),
    *(
        "OPTION {}. {}",
        "- {}. {}",
        "* {}) {}",
        "  + {}: {}",
        "\u2022 {}. {}",
        "> {}. {}",
        "- Option {}: {}",
        "1. {}. {}",
    ),
    *(
        "**{}.** {}",
        "**{}**. {}",
        "**{}. {}**",
        "- **{}**: {}",
        "**({})** {}",
        "**Option {}:** {}",
        "`{}`: {}",
        "{}\\. {}",
    ),
    *(
        "\uff08{}\uff09{}",
        "{}\u3001{}",
        "{}\uff0e{}",
        "{}\uff1a{}",
        "\u3010{}\u3011{}",
        "{}\uff09 {}",
        "\u9009\u9879{}\uff1a{}",
        "\u9078\u9805{}\uff1a{}",
        "\uff3b{}\uff3d{}",
        "\u300c{}\u300d{}",
    ),
    *(
        *("Choice {}: {}", "Answer {}: {}", "Image {}: {}", "R\u00e9ponse {} : {}", "\ubcf4\uae30 {}. {}"),
        *("### {}. {}", "### Option {}\n{}", "**{}** {}", "Option {} - {}", "{} \u2013 {}"),
        *("{}| {}", "| {} | {} |", "{}\uff5c{}"),
        *("{}\u3002{}", "{}\t{}", "{}\u3000{}", "{}\u00b7{}", "{}\uff0c{}", "{}; {}", "{}/ {}", "{}> {}"),
        *("<{}> {}", "${}$. {}", "{}. *{}*", "{}. **{}**", "- {}. `{}`"),
        *("<b>{}.</b> {}", "<b>{}</b>. {}", "<li>{}. {}</li>", "<p>{}: {}</p>", "\u200b{}. {}"),
    ),
)
TEXTS = ("the red cup", "the blue cup", "the lid")


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("letters", ["ABC", "\uff21\uff22\uff23"])
@pytest.mark.parametrize("between", ["\n", "\n\n", ";\n", "\r\n"])
def test_option_marks(mark: str, letters: str, between: str) -> None:
    listed = between.join(mark.format(letter, text) for letter, text in zip(letters, TEXTS, strict=True))
    problem = f"Which is next?\n{listed}\nAnswer with one letter."
    options = parse_options(problem)
    assert options == dict(zip("ABC", TEXTS, strict=True))
    assert [problem[start:end] for start, end in option_spans(problem, options)] == [*TEXTS]
    assert problems_of(f"<image>{problem}", "E", 1) == ["answer: found 'E', expected one of A, B, C"]
    right, wrong = (f"<answer>{text}</answer>" for text in ("the blue cup", "B. the red cup"))
    assert grade(right, "B", options=options).accuracy == 1
    assert grade(wrong, "B", options=options).accuracy == 0


@pytest.mark.parametrize(
    "after", ["Respond with (A), (B), or (C).", 'Write "A. text" or "B. text".', "Say A: or B: first.", ""]
)
def test_lines_that_begin_with_marks_are_the_options(after: str) -> None:
    texts = ("Mr. A. Smith (see B. below)", "(A) and vitamin B. complex", "U.S.A.")
    listed = "".join(f"{letter}. {text}\n" for letter, text in zip("ABC", texts, strict=True))
    assert parse_options(f"Robot A. meets robot B. Who?\n{listed}{after}") == dict(
        zip("ABC", texts, strict=True)
    )


def test_circled_letters_are_marks() -> None:
    assert parse_options("Which? \u24b6 left \u24b7 right") == {"A": "left", "B": "right"}
    assert parse_options("Which?\n\u24d0 left\n\u24d1 right") == {"A": "left", "B": "right"}


@pytest.mark.parametrize(
    "prose",
    [
        "A man opens a door.\nB roll follows.",
        "A/B tests come first.\nB/C tests follow.",
        "Name A\uff0cB\uff0cC.\nSay A; B; or C.",
        "A\tB\tC\nB\tC\tA",
        "A\uff0cB\uff0cC\nB\uff0cC\uff0cD",
        "If A > B, then A;\nelse B; or <B>. Point $A$ is left, $B$ is right.",
    ],
)
def test_letters_of_prose_are_no_marks(prose: str) -> None:
    assert parse_options(prose) == {}


def test_small_letters_are_marks_where_there_are_no_capitals() -> None:
    assert parse_options("Which?\na) left\nb) right") == {"A": "left", "B": "right"}
    assert parse_options("a) he sits\nb) he stands\nWhich? A) left, B) right") == {"A": "left", "B": "right"}


def test_a_letter_may_be_missing_where_each_option_has_its_line() -> None:
    assert parse_options("Which?\nA. two\nB. one\nD. three") == {"A": "two", "B": "one", "D": "three"}


def test_letters_that_are_listed_are_no_options() -> None:
    assert parse_options("\u8bf7\u4ece A\u3001B\u3001C \u4e2d\u9009\u62e9") == {}
    assert parse_options("A\u3001\u7ea2\uff1bB\u3001\u84dd\n\u8bf7\u4eceA\u3001B\u4e2d\u9009") == {
        "A": "\u7ea2",
        "B": "\u84dd",
    }


def test_spans_of_options_that_a_table_gives() -> None:
    """Their texts may have lines of their own, which `parse_options` cuts."""
    options = {"A": "left\nand up", "B": "see A. left"}
    problem = "A. left\nand up\nB. see A. left\n\nA. left\n and up\nB. see A. left\n"
    assert [problem[i:j] for i, j in option_spans(problem, options)] == ["left\n and up", "see A. left"]
    assert option_spans(problem, {**options, "C": "right"}) == option_spans(problem, {}) == []
    assert option_spans("A. lefty B. right", {"A": "left", "B": "right"}) == []


@given(st.lists(st.text("abc AB.\n", max_size=6), min_size=2, max_size=5))
def test_spans_hold_the_texts(texts: list[str]) -> None:
    problem = "".join(f"\n{letter}. {text}" for letter, text in zip("ABCDE", texts, strict=False))
    options = parse_options(problem)
    spans = option_spans(problem, options)
    assert [" ".join(problem[i:j].split()) for i, j in spans] == [*options.values()]


@pytest.mark.parametrize(
    "problem",
    [
        *(
            "A. B." + " " * 10**5 + "x",
            "A." + " " * 10**5 + "B." + " " * 10**5,
            "- " * 10**5,
            "-" + " " * 10**5,
        ),
        *("A. x" + " " * 10**5 + "y\nB. z", "a) " * 10**5, "\nA. x" * 10**4, "|*" * 10**5),
        *("A. B. " * 10**5, "\n" * 10**5, "1. " * 10**5, "Option " * 10**5, "*" * 10**5, "A\u3001 " * 10**5),
    ],
)
def test_options_take_linear_time(problem: str) -> None:
    begin = time.process_time()
    for options in (parse_options(problem), {"A": "", "B": ""}):
        option_spans(problem, options)
    assert time.process_time() - begin < 2


def test_last_run_of_letters_counts_and_one_letter_is_none() -> None:
    assert parse_options("Robot A. moves to B. and stops. A) left, B) right") == {"A": "left", "B": "right"}
    assert parse_options("Robot A. moves.") == {}
    assert parse_options("What order?") == {}


@pytest.mark.parametrize(
    ("problem", "task"),
    [
        (SHORT_ORDER, Task.TEMPORAL_REORDERING),
        (LONG_ORDER, Task.TEMPORAL_REORDERING),
        (SHORT_NEXT, Task.NEXT_FRAME_PREDICTION),
        (SHORT_PREVIOUS, Task.PREVIOUS_FRAME_REVIEW),
        ("Put these into the correct order: <image><image>", Task.TEMPORAL_REORDERING),
        ("<image> What happens next? A. <image> B. <image>", Task.NEXT_FRAME_PREDICTION),
        ("<image> Which is the previous step? A. <image> B. <image>", Task.PREVIOUS_FRAME_REVIEW),
        ("<image> Which one? A. <image> B. <image>", None),
        (f"Arrange the steps in the correct order. {STEPS}", Task.TEMPORAL_REORDERING),
        (f"{STEPS} Which is the correct order? A. Step 2 first B. Step 3 first", Task.TEMPORAL_REORDERING),
        (f"In which order do they happen? {STEPS}", None),
        (f"{STEPS} What is the next step? A. cut B. fry", Task.NEXT_FRAME_PREDICTION),
        (f"{STEPS} Which picture shows step 5?\nA. wash\nB. cut", Task.NEXT_FRAME_PREDICTION),
        (f"{STEPS} What should the person do now?\nA. wash\nB. go back", Task.NEXT_FRAME_PREDICTION),
        (f"{STEPS} What now?\nA. to the previous page\nB. follow the link", Task.NEXT_FRAME_PREDICTION),
        (f"{STEPS} They are shuffled. Which is first?\nA. wash\nB. cut", Task.TEMPORAL_REORDERING),
        (f"In the correct order: {STEPS} Step 5? A.<image> B.<image>", Task.NEXT_FRAME_PREDICTION),
        (f"The correct order? {STEPS.replace('Step 1:', 'Step 5:')}", Task.PREVIOUS_FRAME_REVIEW),
        (f"The correct order? {STEPS.replace('Step 3:', 'Step 5:')}", Task.NEXT_FRAME_PREDICTION),
        (f"{STEPS.replace('Step 1:', 'Step 10:')}", Task.PREVIOUS_FRAME_REVIEW),
        ("", None),
    ],
)
def test_task_is_recognised_from_the_text(problem: str, task: Task | None) -> None:
    assert recognise_task(problem) is task


def test_task_names_its_data_source() -> None:
    assert [task.data_source for task in Task] == [f"tpru/{task.value}" for task in Task]


def test_sample_reads_its_options() -> None:
    sample = Sample(SHORT_ORDER, "A", (b"",) * 4, Task.TEMPORAL_REORDERING, "track", "track-0", "0")
    assert sample.options["A"] == "3142"


@pytest.mark.parametrize(
    ("problem", "answer", "images"),
    [
        (SHORT_ORDER, "A", 4),
        (SHORT_NEXT, "C", 7),
        ("<image><image><image> order?", "3 1 2", 3),
        (SHORT_ORDER, " E ", 4),
        (SHORT_ORDER, "<answer>E</answer>", 4),
        (SHORT_ORDER, "\u7b54\u6848\uff1aE", 4),
        (SHORT_ORDER, "3 1 4 2", 4),
        (f"Arrange the steps in the correct order. {STEPS}", "3 1 4 2", 4),
        ("Reorder the shuffled photos. Step 1 <image> Step 2 <image> Step 3 <image>", "2 1 3", 3),
    ],
)
def test_valid_rows(problem: str, answer: str, images: int) -> None:
    assert problems_of(problem, answer, images) == []


@pytest.mark.parametrize(
    ("problem", "answer", "images", "message"),
    [
        (SHORT_ORDER, "F", 4, "answer: found 'F', expected one of A, B, C, D, E"),
        (SHORT_ORDER, "A or B", 4, "answer: found 'A or B', expected one of A, B, C, D, E"),
        ("<image> What is the next step?", "CABD", 1, "answer: found 'CABD', expected a letter"),
        (SHORT_ORDER, "A", 3, "images: found 3, expected 4, one for each <image> tag in problem"),
        (SHORT_ORDER, 3, 4, "answer: found 3, expected an option letter or an order"),
        (
            "<image> order?",
            "1 1 2",
            1,
            "answer: found '1 1 2', expected a letter or an order such as '4 2 3 1'",
        ),
        ("no tag A. x B. y", "A", 0, f"images: found 0, expected 1 to {MAX_IMAGES}"),
        (None, "A", 0, "problem: found None, expected text with <image> tags"),
    ],
)
def test_broken_rows_say_what_was_found_and_expected(
    problem: object, answer: object, images: int, message: str
) -> None:
    assert problems_of(problem, answer, images) == [message]


@given(
    st.one_of(st.text(), st.none(), st.integers(), st.binary()),
    st.one_of(st.text(), st.none()),
    st.integers(),
)
def test_nothing_raises(problem: object, answer: object, images: int) -> None:
    assert isinstance(problems_of(problem, answer, images), list)
    recognise_task(str(problem))
