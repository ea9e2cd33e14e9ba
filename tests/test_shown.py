"""Each command that README and docs/ show exists with its options, and is run by a test or marked."""

import ast
import importlib
import importlib.util
import re
import shutil
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from support.frames import stills
from support.rows import reordering, write_parquet
from support.shown import PAGES, ROOT, Block, all_commands, blocks, commands, recipe_of

from tpru_verl import cli, recipes

SHOWN = list(all_commands())
TPRU = [(block.place, arguments[1:]) for block, arguments in SHOWN if arguments[0] == "tpru"]
# What a command begins with -> the file that runs it with other arguments.
RUN_BY = {
    "tpru train --launch": "tests/launch/test_cluster.py",
    "tpru export": "tests/runs/test_export.py",
    "tpru eval compare": "tests/eval/test_evaluate.py",
    "tpru eval export": "tests/eval/test_harnesses.py",
    "tpru eval predict": "tests/eval/test_predict.py",
    "tpru eval": "tests/eval/test_evaluate.py",
    "tpru build": "tests/builder/test_build.py",
    "tpru report": "tests/runs/test_report.py",
    "tpru data audit": "tests/data/test_audit.py",
    "lmms-eval": "tests/frameworks/test_lmms_eval.py",
    "inspect eval": "tests/frameworks/test_inspect_ai.py",
    "swift rlhf": "tests/frameworks/test_ms_swift.py",
    "make": ".ci/run",
    "pip install": "Makefile",
    "python3 -m venv": "Makefile",
    "python3.12 -m venv": "Makefile",
    ". .venv/bin/activate": "Makefile",
    "python -m tpru_verl.doctor.torchvision_repair": "Makefile",
    "python benchmarks/scale.py": "tests/benchmarks/test_scale.py",
    "python benchmarks/gpu_smoke.py": "tests/demo/test_end_to_end.py",
}
# Run below, as they stand, in a folder that has what they name.
HERE = re.compile(r"tpru data (?:validate|stats|view|prepare) (?!Stephengzk)")


def begins(arguments: list[str]) -> str | None:
    if "--launch" in arguments and "--submit" not in arguments:
        return "tpru train --launch"
    line = " ".join(arguments)
    return next((start for start in RUN_BY if line == start or line.startswith(f"{start} ")), None)


def test_each_command_is_run_by_a_test_or_marked() -> None:
    open_ones = [
        f"{block.place}: {' '.join(arguments)}"
        for block, arguments in SHOWN
        if not (block.is_marked or HERE.match(" ".join(arguments)) or begins(arguments))
    ]
    assert not open_ones, "no test runs these; add a comment such as `# needs a GPU; not run by the tests`"


def test_files_that_run_commands_are_there() -> None:
    for start, file in RUN_BY.items():
        assert (ROOT / file).is_file()
        assert any(begins(arguments) == start for _, arguments in SHOWN), f"no page shows {start}"


@pytest.mark.parametrize(("place", "arguments"), TPRU)
def test_a_command_of_ours_parses(place: str, arguments: list[str]) -> None:
    commands().main(arguments, prog_name="tpru", standalone_mode=False)


@pytest.mark.parametrize(
    "line", ["data validat rows", "train --steps 3", "demo --stepz 3", "eval run x --pixels 1"]
)
def test_a_command_that_is_wrong_does_not_parse(line: str) -> None:
    with pytest.raises(Exception, match=r"No such|Missing|Invalid"):
        commands().main(line.split(), prog_name="tpru", standalone_mode=False)


def test_recipes_and_overrides_compose(monkeypatch: pytest.MonkeyPatch) -> None:
    """The overrides of all lines with one recipe and its overlays at once; line by line takes ten seconds."""
    importlib.import_module("hydra_plugins.tpru")  # sets the variable once, also for later tests
    monkeypatch.setenv("TPRU_DEMO_CHECKPOINT", "checkpoint")
    groups: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for block, arguments in SHOWN:
        if not (composed := recipe_of(arguments)):
            continue
        name, overrides = composed
        assert name in recipes.names() or name in recipes.names("EasyR1"), f"{block.place}: {name}"
        overlays = "".join(item for item in overrides if item.startswith("+tpru="))
        groups[name, overlays] |= {item.partition("=")[0]: item for item in overrides}
    assert len(groups) > 1
    for (name, _), overrides in groups.items():
        files = {f"data.{one}_files": f"data.{one}_files=rows" for one in ("train", "val")}
        recipes.compose(name, [*{**files, **overrides}.values()])
        assert not recipes.doubtful_keys(name, [*overrides.values()])


def test_overrides_that_are_wrong_do_not_compose() -> None:
    found = recipe_of(["tpru", "train", "tpru_7b", "+tpru=lora", "trainer.n_gpu=4"])
    assert found
    assert found == ("tpru_7b", ["+tpru=lora", "trainer.n_gpu=4"])
    with pytest.raises(ValueError, match=r"found no key 'trainer\.n_gpu'"):
        recipes.compose("tpru_7b", found[1])


def source_of(arguments: list[str]) -> tuple[str, str]:
    """The file that `python FILE` or `python -m MODULE` runs, and the text in which its options stand."""
    if arguments[1] != "-m":
        file = ROOT / arguments[1]
        beside = ("measure.py", "training.py") if file.parent.name == "benchmarks" else ()
        texts = [file.read_text(), *((file.parent / name).read_text() for name in beside)]
        return arguments[1], "\n".join(texts)
    parts = arguments[2].split(".")
    spec = importlib.util.find_spec(parts[0])  # a package's __init__ may import much
    assert spec, arguments
    assert spec.submodule_search_locations or len(parts) == 1, arguments
    folder = Path(next(iter(spec.submodule_search_locations or [spec.origin or ""])))
    return arguments[2], folder.joinpath(*parts[1:]).with_suffix(".py").read_text() if parts[1:] else ""


@cache
def vllm_options() -> str:
    (folder,) = getattr(importlib.util.find_spec("vllm"), "submodule_search_locations", None) or [""]
    names = ("engine/arg_utils.py", "entrypoints/openai/cli_args.py")
    return "\n".join((Path(folder) / name).read_text() for name in names)


def test_options_of_other_programs_exist() -> None:
    vllm = 0
    for block, arguments in SHOWN:
        options = [word.partition("=")[0] for word in arguments if word.startswith("--")]
        line = " ".join(arguments)
        if "harnesses.vlmevalkit" in line:  # hands its options to a program that is not here
            continue
        if arguments[0] == "python" and "main_ppo" not in line:
            name, text = (arguments[2], "") if "vllm." in line else source_of(arguments)
            text = text or vllm_options()
        elif arguments[:2] == ["vllm", "serve"]:
            name, text, vllm = "vllm serve", vllm_options(), vllm + 1
        else:
            continue
        for option in options:
            field = option.removeprefix("--").replace("-", "_")
            known = re.search(
                rf"\"{option}\"|^\s+{field}: |--{field.replace('_', '-')}\b", text, re.MULTILINE
            )
            assert known, f"{block.place}: {name} has no {option}"
    assert vllm


def test_make_targets_and_extras_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    extras = set(re.findall(r"^([a-z-]+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    for block, arguments in SHOWN:
        if arguments[0] == "make":
            assert {word for word in arguments[1:] if "=" not in word} <= targets, block.place
        for asked in re.findall(r"(?<=\.\[)[^\]]+(?=\])", " ".join(arguments)):
            assert set(asked.split(",")) <= extras, f"{block.place}: {asked}"


PYTHON = [block for page in PAGES for block in blocks(page) if block.language == "python"]


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.place)
def test_a_block_of_python_imports_what_is_there(block: Block) -> None:
    """It is run where all that it imports is ours, and compared with the values in its comments."""
    tree, ours = ast.parse(block.text), True
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        module = getattr(node, "module", None) or (names[0] if names else "")
        if module.partition(".")[0] == "tpru_verl":
            imported = importlib.import_module(module)
            assert isinstance(node, ast.Import) or all(hasattr(imported, name) for name in names), module
        elif names:
            ours = False
    if not ours:
        return
    scope: dict[str, Any] = {}
    for node in tree.body:
        source = ast.get_source_segment(block.text, node) or ""
        comment = block.text.splitlines()[(node.end_lineno or 1) - 1].partition("  # ")[2]
        if isinstance(node, ast.Expr) and comment:
            assert eval(source, scope) == eval(comment, scope), f"{block.place}: {source}"
        else:
            exec(source, scope)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands below read, under the names that the pages use."""
    folder = tmp_path_factory.mktemp("shown")
    for number, name in enumerate(("rows", "test")):
        rows = [reordering(100 * number + i, answer="ABCDE"[i % 5]) for i in range(20)]
        write_parquet(folder / f"{name}.parquet", rows)
    columns = [f"Input_{i}" for i in range(1, 5)]
    lines = [",".join(["Id", *columns, "Sentence", "Answer"])]
    for number in range(8):
        names = [path.name for path in sorted(stills(folder / f"train/r{number}", number, 4).iterdir())]
        lines.append(f'r{number},{",".join(names)},A disc grows.,"[3, 1, 4, 2]"')
    (folder / "train.csv").write_text("\n".join(lines) + "\n")
    for name in ("rows", "prepared"):  # what `tpru build` and `tpru data prepare` leave
        (folder / name / "data").mkdir(parents=True)
        for seed, split in ((200, "train"), (300, "test")):
            shard = folder / name / f"data/{split}-00000-of-00001.parquet"
            write_parquet(shard, [reordering(seed), reordering(seed + 1)])
    return folder


RUN_HERE = sorted({" ".join(arguments) for _, arguments in SHOWN if HERE.match(" ".join(arguments))})


@pytest.mark.parametrize("line", RUN_HERE)
def test_a_command_runs(
    line: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    left_out = shutil.ignore_patterns("prepared") if " prepare " in line else None
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True, ignore=left_out)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [*line.split(" "), "--workers", "1"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code in (0, None), capfd.readouterr().err
