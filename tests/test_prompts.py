"""What a template tells the model to write is what the grader accepts."""

import re
import time
from pathlib import Path

import pytest

from tpru_verl import prompts
from tpru_verl.grading import grade
from tpru_verl.prompts import TEMPLATES, check_file, render
from tpru_verl.sample import NONE_OPTION, Task, parse_options, problems_of, recognise_task

STEPS = "Step {}: <image> Step {}: <image> Step 4: <image> Which image is step {}?\n"
CHOICES = f"A. <image>\nB. <image>\nC. {NONE_OPTION}\nD. <image>\nE. <image>"
PROBLEMS = {
    Task.TEMPORAL_REORDERING: (
        "These photos show a tower. Below are 4 images in random order, labelled 1-4. What is the "
        "correct sequence?\n<image><image><image><image>\n"
        f"A. 1 3 4 2\nB. 4 2 3 1\nC. 2 1 4 3\nD. 1 2 3 4\nE. {NONE_OPTION}"
    ),
    Task.NEXT_FRAME_PREDICTION: STEPS.format(1, 2, 3) + CHOICES,
    Task.PREVIOUS_FRAME_REVIEW: STEPS.format(2, 3, 1) + CHOICES,
}
FREE_ORDER = (
    "These are 4 images in random order, labelled 1-4. What is the correct sequence? " + "<image>" * 4
)


def told(prompt: str, answer: str) -> str:
    """The response that the prompt's last lines spell out, with the placeholders filled in."""
    shape = prompt[prompt.index("<think>your reasoning") :]
    assert shape.endswith("</answer>")
    return shape.replace("your reasoning", "C follows from A").replace("your final answer", answer)


@pytest.mark.parametrize("task", Task)
def test_tpru_asks_for_what_earns_everything(task: Task) -> None:
    problem = PROBLEMS[task]
    assert recognise_task(problem) is task
    prompt = render(problem, task)
    assert "letter of the option" in prompt
    for letter in parse_options(problem):
        assert problems_of(problem, letter, problem.count("<image>")) == []
        result = grade(told(prompt, letter), letter, task=task, options=parse_options(problem))
        assert (result.accuracy, result.format, result.score()) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("task", [Task.TEMPORAL_REORDERING, None])
def test_tpru_asks_for_numbers_where_there_are_no_options(task: Task | None) -> None:
    prompt = render(FREE_ORDER, task)
    assert "the numbers of the images separated by spaces" in prompt
    result = grade(told(prompt, "4 2 3 1"), "4 2 3 1", task=task)
    assert (result.accuracy, result.format) == (1.0, 1.0)


@pytest.mark.parametrize("task", [Task.TEMPORAL_REORDERING, None])
def test_tpru_asks_for_letters_where_images_have_letters(task: Task | None) -> None:
    prompt = render("Order the steps.\nA. <image>\nB. <image>\nC. <image>\nD. <image>", task)
    assert "their letters without spaces where the question labels them with letters" in prompt
    options = dict.fromkeys("ABCD", "<image>")
    assert grade(told(prompt, "BDAC"), "BDAC", task=task, options=options).score() == 1.0


@pytest.mark.parametrize("task", Task)
def test_paper_examples_have_the_published_form(task: Task) -> None:
    prompt = render(PROBLEMS[task], task, "paper")
    blocks = ["<think>" + block for block in prompt.split("<think>")[1:3]]
    order, choice = (block[: block.index("</answer>") + 9] for block in blocks)
    assert grade(order, "CABD").score("paper") == pytest.approx(0.92)
    assert grade(choice, "C", task=task).score("paper") == pytest.approx(0.92)
    assert grade(choice, "C", task=task).score() == 1.0


def test_bare_is_the_problem_unchanged() -> None:
    assert render("  {{ x }} <image>\n", None, "bare") == "  {{ x }} <image>\n"


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("task", [*Task, None])
def test_every_template_keeps_the_images_and_runs_no_row(template: str, task: Task | None) -> None:
    problem = "{{ 7 * 7 }} {% raise %} <image><image>"
    prompt = render(problem, task, template)
    assert problem in prompt
    assert prompt.count("<image>") == 2


def test_a_template_of_ones_own(tmp_path: Path) -> None:
    mine = tmp_path / "mine.jinja"
    mine.write_text("{{ task }}: {{ content }}")
    assert render("<image>?", Task.NEXT_FRAME_PREDICTION, str(mine)) == "next_frame_prediction: <image>?"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no problem in it", "found 0 <image> tags in the prompt, expected 1"),
        ("{{ content }} {{ answer }}", "'answer' is undefined"),
        ("{{ content", "mine.jinja"),
    ],
)
def test_templates_that_do_not_serve(tmp_path: Path, text: str, message: str) -> None:
    mine = tmp_path / "mine.jinja"
    mine.write_text(text)
    with pytest.raises(ValueError, match=message):
        render("<image>", None, str(mine))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ cycler.__init__.__globals__.os.system('true') }}", "of 'StrictUndefined' object is unsafe"),
        ("{{ cycler }}", "'cycler' is undefined"),
        ("{{ content.__class__.__mro__ }}", "access to attribute '__class__'"),
        ("{{ ''.__class__.__base__.__subclasses__() }}", "is unsafe"),
        ("{{ range(10**9) | list }}", "OverflowError"),
        ("{% for i in range(101) %}x{% endfor %}", "found a loop of more than 100 rounds"),
        ("{% for c in content * 99 %}{% set x = c %}{% endfor %}", "found a loop of more than 100 rounds"),
        (
            "{% for a in 'ab' %}{% for b in 'ab' %}{% for c in 'ab' %}{% endfor %}{% endfor %}{% endfor %}",
            "two at",
        ),
        ("{% for a in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}", "found loops in loops"),
        ("{{ 'x' * 10**10 }}", "found more than 1,000,000 characters"),
        ("{% set s = 'xxxxxxxxxx' %}" + "{% set s = s ~ s %}" * 60 + "{{ s }}", "found more than 1,000,000"),
        ("{% set s = 'xxxxxxxxxx' %}" + "{% set s = s + s %}" * 60 + "{{ s }}", "found more than 1,000,000"),
        (
            "{% set s = 'xxxxxxxxxx' %}" + "{% set s = [s, s] | join %}" * 60,
            "found a list of more than 200,000",
        ),
        ("{% set s = 'xxxxxxxxxx' %}" + "{% set s = s | replace('', s) %}" * 9, "found more than 1,000,000"),
        ("{% set s %}" + "{{ content }}" * 9 + "{% endset %}", "line 1: found a set block"),
        ("{% set x = [1] %}" + "{% set x = x + x %}" * 40, "found a list of more than 200,000 items"),
        ("{% set x = (1,) %}" + "{% set x = x + x %}" * 40, "found a list of more than 200,000 items"),
        (
            "{% set x = ['a'] %}" + "{% set x = [x, x] %}" * 40 + "{{ x }}",
            "found a list of more than 200,000",
        ),
        ("{% set x = ['a'] %}" + "{% set x = {1: x, 2: x} %}" * 40 + "{{ x }}", "found a list of more than"),
        ("{{ [['x' * 100000] * 1000] * 1000 }}", "found a list of more than 200,000 items"),
        ("{{ [1] * 10**10 }}", "found a list of more than 200,000 items"),
        ("{{ 7 ** 1000000000 }}", "found a number of more than 10,000 bits"),
        ("{{ '%999999999999d' % 1 }}", "expected the text itself"),
        ("{{ 'x'.center(10**10) }}", "found a call of center, expected range or one of"),
        ("{{ '{:>4000000000}'.format(1) }}", "found a call of format"),
        ("{{ 'x' | center(10**10) }}", "No filter named 'center'"),
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("{{ content + 1 }}", "TypeError: can only concatenate str"),
        ("{{ content.nothing }}", "has no attribute 'nothing'"),
        (
            "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
            "found a macro, expected text, conditions and loops",
        ),
        ("{% block a %}{{ self.a() }}{% endblock %}", "found a block"),
        ("{% include '/etc/passwd' %}", "found an include"),
        ("\n{% if %}", "line 2: "),
        ("(" * 10 + "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "RecursionError"),
        ("x" * 100_001, "found more than 100,000 characters"),
        ("x" * 99_999 + "{% for i in range(20) %}" + "{{ content }}" * 9000 + "{% endfor %}", "found"),
    ],
)
def test_a_template_is_bounded_and_its_errors_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    mine = tmp_path / "mine.jinja"
    mine.write_text(text)
    begin = time.process_time()
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        render("<image>" * 9, None, str(mine))
    assert time.process_time() - begin < 5
    assert str(error.value).startswith("prompt_template: ")
    assert "\n" not in str(error.value)


def test_a_template_for_a_trainer_without_a_sandbox_is_tried_in_ours(tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("{{ content | trim }} Think first.")
    check_file("data.format_prompt", mine)
    for name in TEMPLATES:
        check_file("data.format_prompt", Path(prompts.__file__).with_name(f"{name}.jinja"))
    mine.write_text("{{ content }}{{ cycler.__init__.__globals__.os.system('true') }}")
    with pytest.raises(ValueError, match=r"^data\.format_prompt: .*mine\.txt: .*is unsafe"):
        check_file("data.format_prompt", mine)


def test_what_a_template_may_use(tmp_path: Path) -> None:
    mine = tmp_path / "mine.jinja"
    mine.write_text(
        "{% set n = 2 %}{% for i in range(n) %}{{ loop.index }}{{ ', ' if not loop.last }}{% endfor %} "
        "{{ content | trim | replace('?', '!') }}{{ task.upper() ~ n * 'x' }}"
    )
    assert render(" <image>? ", "a", str(mine)) == "1, 2 <image>!Axx"


def test_unknown_template() -> None:
    with pytest.raises(
        FileNotFoundError, match=r"prompt_template: found 'nice', expected tpru, paper, bare or"
    ):
        render("<image>", None, "nice")
