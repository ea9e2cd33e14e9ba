"""The documentation agrees with the code: tables, links, commands, figures, public names."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest
from support.pages import CHOICES, OPTIONS, cases, choice
from support.shown import PAGES, ROOT, commands

from tpru_verl.eval.item import Item
from tpru_verl.eval.scoring import judge
from tpru_verl.grading import grade
from tpru_verl.sample import parse_options

THOUGHT = "<think>A is too early, B late.</think>"


def table(root: Path) -> list[tuple[str, str, str, str]]:
    """Output, published reward, the letter that we read, our reward: of each line of the table."""
    text = (root / "docs/rewards.md").read_text()
    assert f"`{OPTIONS}`" in text
    lines = [line for line in text.partition("Forty outputs")[2].splitlines() if line.startswith("|")][2:]
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    return [(output, published, read, score) for output, published, _, read, score in cells]


def test_forty_outputs(root: Path) -> None:
    rows = table(root)
    assert len(rows) == 40
    options = parse_options(OPTIONS)
    for output, published, read, score in rows:
        response = "" if output == "(empty)" else output[1:-1].replace("⏎", "\n")
        if response.startswith("T"):
            response = THOUGHT + response[1:]
        elif response.endswith("</answer>T"):
            response = response[:-1] + THOUGHT
        found = grade(response, "C", task="temporal_reordering", options=options)
        assert (found.parsed or "-") == read, output
        assert found.score("tpru") == float(score), output
        assert found.score("paper") == pytest.approx(float(published)), output


def test_what_we_make_of_the_cases_of_the_evaluation(root: Path) -> None:
    rows = cases(root, CHOICES[0])
    assert len(rows) == 14
    for response, ours, *_ in rows:
        assert (judge(choice(), response).parsed or "-") == ours, response
    orders = cases(root, CHOICES[1])
    assert len(orders) == 6
    for response, ours, _ in orders:
        assert (judge(Item("x", "", "BDAC", ()), response).parsed or "-") == ours, response


def text_of(page: str) -> str:
    return (ROOT / page).read_text()


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors(file), f"{page}: no heading {target}"


NAMED = [
    (page, span) for page in PAGES for span in re.findall(r"(?<!`)`(tpru(?: [^`]*)?)`(?!`)", text_of(page))
]


@pytest.mark.parametrize(("page", "span"), NAMED)
def test_a_command_that_is_named_exists_with_its_options(page: str, span: str) -> None:
    # Names between bars are alternatives: `tpru eval run|compare`.
    *words, last = span.split()[1:] or [""]
    for alternative in last.split("|"):
        command, arguments = commands(), [word for word in (*words, alternative) if word]
        while hasattr(command, "commands") and arguments and not arguments[0].startswith("-"):
            known = command.commands
            # `tpru eval MODEL` is `tpru eval run MODEL`.
            name = arguments.pop(0) if arguments[0] in known or "run" not in known else "run"
            assert name in known, f"{page}: {span}"
            command = known[name]
        options = {word.partition("=")[0] for word in arguments if word.startswith("--")}
        known = {
            name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)
        }
        assert options <= known | {"--help"}, f"{page}: {span}"


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page: str) -> None:
    for path in re.findall(r"\bpython3? ((?:benchmarks|docs)/\S+\.py)", text_of(page)):
        assert (ROOT / path).is_file(), f"{page}: {path}"
    for path in re.findall(
        r"(?<![\w/])(?:tests|tpru_verl|benchmarks|recipes|reward_fns)/[\w/]+\.\w+", text_of(page)
    ):
        assert "NAME" in path or (ROOT / path).exists(), f"{page}: {path}"


def test_the_readme_is_short() -> None:
    assert len(text_of("README.md").splitlines()) <= 170


def test_results_are_markdown_tables() -> None:
    assert not re.search(r"[\u2500-\u257f]|```", text_of("benchmarks/RESULTS.md"))


@pytest.mark.parametrize("page", PAGES)
def test_figures_beside_a_link_to_results_are_those_of_results(page: str) -> None:
    """Figures of a line may be rounded, and are those of the parts that the line links."""
    parts = re.split(r"^## ", text_of("benchmarks/RESULTS.md"), flags=re.MULTILINE)
    results = {part.partition("\n")[0]: FIGURE.findall(part) for part in parts}
    for line in text_of(page).splitlines():
        measured = [figure for part in re.findall(r"RESULTS\.md#(\w+)", line) for figure in results[part]]
        for figure in FIGURE.findall(re.sub(r"`[^`]*`", "", line)) if measured else ():
            digits = len(figure.partition(".")[2])
            assert figure in {f"{float(value):.{digits}f}" for value in measured}, f"{page}: {figure}: {line}"


FIGURE = re.compile(r"(?<![\w.])\d+\.\d+(?!\.?\d)")  # with a decimal point; no version, no part of a name


def public_names(module: str) -> list[str]:
    """What a module's file assigns to `__all__`; nothing is imported."""
    path = ROOT / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            return ast.literal_eval(node.value)
    return []


def test_the_page_of_public_names_is_what_the_packages_export() -> None:
    files = [*(ROOT / "tpru_verl").rglob("__init__.py"), *(ROOT / "tpru_verl").glob("*.py")]
    modules = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files
    }
    packages = {module for module in modules if (ROOT / module.replace(".", "/")).is_dir()}
    sections = re.split(r"^## ", text_of("docs/public-names.md"), flags=re.MULTILINE)[1:]
    listed = {
        section.split("`")[1]: set(
            re.findall(r"`([\w.]+)`", " ".join(re.findall(r"^\| (`.*?) \|", section, re.M)))
        )
        for section in sections
    }
    for module in modules:
        if exported := public_names(module):
            assert listed.get(module) == set(exported), module
            for name in exported:
                is_module = importlib.util.find_spec(f"{module}.{name}") if module in packages else None
                assert is_module or hasattr(importlib.import_module(module), name), f"{module}.{name}"
    for module in listed:
        assert importlib.util.find_spec(module), module
