"""The same rows, pixels and verdicts in four harnesses.

The classes at the end are there where their harness is; each needs an environment, with this project:

    tests/frameworks/lmms_eval.txt      pytest tests/test_eval_hosts.py -k TestLmmsEval
    tests/frameworks/inspect_ai.txt     pytest tests/test_eval_hosts.py -k TestInspect
    VLMEVALKIT=CHECKOUT, and its needs  pytest tests/test_eval_hosts.py -k TestVLMEvalKit
"""

import importlib.util
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from benchmark_rows import lego_tsv
from endpoint import Asked, Endpoint, by_prompt, endpoint
from PIL import Image
from rows import picture, reordering, write_parquet
from test_docs import CHOICES, cases, choice

from tpru_verl.eval.benchmarks import BENCHMARKS
from tpru_verl.eval.hosts import rows as hosts
from tpru_verl.eval.hosts.vlmevalkit import dataset_class
from tpru_verl.eval.pixels import Bounds
from tpru_verl.eval.results import read_lines

BENCHES = ("tpru-test", "lego-puzzles")


def installed(module: str) -> bool:
    """Whether a package is there; nothing is imported."""
    return importlib.util.find_spec(module) is not None


@dataclass
class Sources:
    """Fixtures of two benchmarks, one row of them with a broken picture."""

    paths: dict[str, Path]

    def options(self) -> list[str]:
        return [f"--data={name}={path}" for name, path in self.paths.items()]


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    rows = [reordering(seed, answer="BADCE"[seed % 5]) for seed in range(8)]
    rows.append(reordering(9, images=[picture(0), b"no picture", picture(2), picture(3)]))
    tpru = write_parquet(tmp_path / "rows" / "test.parquet", rows)
    return Sources({"tpru-test": tpru, "lego-puzzles": lego_tsv(tmp_path / "lego")})


Verdicts = dict[str, tuple[str | None, bool]]  # row -> what was read, whether it is right


def call(*args: object, **environment: str) -> str:
    """Standard output of a program that succeeds."""
    env = {**os.environ, "OPENAI_API_KEY": "none", "HF_HUB_OFFLINE": "1", **environment}
    done = subprocess.run(
        [sys.executable, *map(str, args)], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def ours(server: Endpoint, sources: Sources, out: Path) -> dict[str, Verdicts]:
    code = "import sys; from tpru_verl.cli import main; main()"
    call(
        "-c",
        code,
        "eval",
        "tiny",
        "--base-url",
        server.url,
        "--bench",
        ",".join(BENCHES),
        "--out",
        out,
        *sources.options(),
    )
    found = {
        name: {line["id"]: (line["parsed"], line["score"] == 1) for line in read_lines(out / f"{name}.jsonl")}
        for name in BENCHES
    }
    verdicts = [verdict for lines in found.values() for verdict in lines.values()]
    assert {right for _, right in verdicts} == {True, False}  # or to agree would be easy
    assert None in {parsed for parsed, _ in verdicts}
    return found


def seen(asked: list[Asked]) -> set[tuple[str, tuple[bytes, ...]]]:
    """Prompts with the pixels of their pictures."""
    return {
        (one.text, tuple(Image.open(io.BytesIO(image)).convert("RGB").tobytes() for image in one.images))
        for one in asked
        if one.images
    }


@pytest.fixture
def server() -> Iterator[Endpoint]:
    with endpoint(by_prompt) as running:
        yield running


class TestExport:
    def test_rows_say_what_our_own_run_would(self, sources: Sources) -> None:
        rows = [*hosts.rows_of(BENCHMARKS["tpru-test"], str(sources.paths["tpru-test"]), "tpru", Bounds())]
        assert len(rows) == 9
        assert [bool(row.failed) for row in rows] == [False] * 8 + [True]
        assert "images[1]: found an image that can't be decoded" in rows[-1].failed
        assert not hosts.verdict_of(vars(rows[-1]), "<answer>B</answer>").correct
        assert hosts.verdict_of(vars(rows[0]), "<think>C</think><answer>3 1 4 2</answer>").correct
        assert [type(part) for part in rows[0].parts()].count(bytes) == 4

    def test_an_unknown_host(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="host: found 'x', expected lmms-eval or vlmevalkit"):
            hosts.export("x", tmp_path, [], "tpru", Bounds())

    def test_names_do_not_meet_those_of_the_hosts(self) -> None:
        assert hosts.task_name(BENCHMARKS["muirbench"]) == "tpru_muirbench"
        assert hosts.vlmevalkit_name(BENCHMARKS["lego-puzzles"]) == "TPRU_LEGO"
        assert "TPRU_Test" in hosts.by_vlmevalkit_name()


def test_inspect_finds_the_tasks_by_entry_point() -> None:
    (found,) = entry_points(group="inspect_ai", name="tpru_verl")
    assert found.value == "tpru_verl.eval.hosts.inspect_tasks"


def test_a_vlmevalkit_class_reads_what_was_exported(
    sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without VLMEvalKit: its base class is stood in for by the two attributes that are used."""
    monkeypatch.setenv("LMUData", str(tmp_path / "lmu"))
    chosen = [(BENCHMARKS[name], str(path)) for name, path in sources.paths.items()]
    hosts.export("vlmevalkit", tmp_path / "lmu", chosen, "tpru", Bounds())
    made: Any = dataset_class(SimpleNamespace().__class__)
    assert "TPRU_LEGO" in made.supported_datasets()
    data = made.load_data(made, "TPRU_LEGO")
    self = SimpleNamespace(data=data, img_root=str(tmp_path / "images"))
    self.dump_image = lambda line: made.dump_image(self, line)
    cells = json.loads(data.iloc[0]["image"])
    parts = made.build_prompt(self, {**data.iloc[0], "image": cells})
    assert [part["type"] for part in parts].count("image") == 4
    assert Image.open(parts[1]["value"]).size == (168, 112)
    with pytest.raises(FileNotFoundError, match=r"tpru eval export vlmevalkit .* --bench muirbench"):
        made.load_data(made, "TPRU_MUIRBench")


def test_the_launcher_wants_a_checkout(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tpru_verl.eval.hosts.vlmevalkit", str(tmp_path), "--data", "TPRU_Test"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "found no run.py and vlmeval in it, expected VLMEvalKit's checkout" in done.stderr


class TestLmmsEval:
    __test__ = installed("lmms_eval")

    def test_same_rows_same_verdicts(self, server: Endpoint, sources: Sources, tmp_path: Path) -> None:
        expected = ours(server, sources, tmp_path / "ours")
        asked = seen(server.asked)
        server.asked.clear()
        chosen = [(BENCHMARKS[name], str(path)) for name, path in sources.paths.items()]
        hosts.export("lmms-eval", tmp_path / "tasks", chosen, "tpru", Bounds())
        names = ",".join(hosts.task_name(BENCHMARKS[name]) for name in BENCHES)
        model = f"model=tiny,base_url={server.url},api_key=none"
        args = ["--model", "openai", "--model_args", model, "--batch_size", 1, "--log_samples"]
        args += ["--include_path", tmp_path / "tasks", "--tasks", names, "--output_path", tmp_path / "out"]
        call("-m", "lmms_eval", *args, HF_HOME=str(tmp_path / "home"))
        assert seen(server.asked) == asked
        for name in BENCHES:
            (samples,) = (tmp_path / "out").rglob(f"*samples_{hosts.task_name(BENCHMARKS[name])}.jsonl")
            lines = sorted(
                (json.loads(line) for line in samples.read_text().splitlines()), key=lambda x: x["doc_id"]
            )
            theirs = [(line["accuracy"] == 1, line["unparsed"] == 1) for line in lines]
            assert theirs == [(right, parsed is None) for parsed, right in expected[name].values()]

    def test_its_column_of_the_documentation(self, root: Path) -> None:
        from lmms_eval.tasks.muirbench.utils import (  # type: ignore[import-not-found]
            MultiChoiceRegexFilter,
            muir_aggregation,
        )

        reader = MultiChoiceRegexFilter(regex_pattern=r"([A-Z])\\.")
        for response, _, _, theirs in cases(root, CHOICES[0]):
            (read,) = reader.apply([[response]], [{}])
            score = muir_aggregation([{"pred": read, "answer": "B", "task": "x"}])
            assert theirs == ("right" if score else "wrong"), response


class TestInspect:
    __test__ = installed("inspect_ai")

    def test_same_rows_same_verdicts(self, server: Endpoint, sources: Sources, tmp_path: Path) -> None:
        expected = ours(server, sources, tmp_path / "ours")
        asked = seen(server.asked)
        server.asked.clear()
        for name in BENCHES:
            log = tmp_path / name
            args = ["--model", "openai-api/local/tiny", "-T", f"data={sources.paths[name]}", "--log-dir", log]
            args += ["--log-format", "json", "--display", "none", "--max-retries", 1]
            task = f"tpru_verl/{name.replace('-', '_')}"
            call("-m", "inspect_ai", "eval", task, *args, LOCAL_BASE_URL=server.url, LOCAL_API_KEY="none")
            (file,) = log.glob("*.json")
            found = json.loads(file.read_text())
            assert found["status"] == "success"
            verdicts = {
                sample["id"]: (score.get("answer"), score["value"]["correct"] == 1)
                for sample in found["samples"]
                for score in sample["scores"].values()
            }
            assert verdicts == expected[name]
        assert seen(server.asked) == asked


class TestVLMEvalKit:
    __test__ = "VLMEVALKIT" in os.environ

    def test_same_rows_same_verdicts(self, server: Endpoint, sources: Sources, tmp_path: Path) -> None:
        expected = ours(server, sources, tmp_path / "ours")
        asked = seen(server.asked)
        server.asked.clear()
        chosen = [(BENCHMARKS[name], str(path)) for name, path in sources.paths.items()]
        hosts.export("vlmevalkit", tmp_path / "lmu", chosen, "tpru", Bounds())
        names = [hosts.vlmevalkit_name(BENCHMARKS[name]) for name in BENCHES]
        args = [os.environ["VLMEVALKIT"], "--data", *names, "--model", "tiny", "--base-url", server.url]
        args += ["--local-media", "--judge", "exact_matching", "--work-dir", tmp_path / "out"]
        call("-m", "tpru_verl.eval.hosts.vlmevalkit", *args, LMUData=str(tmp_path / "lmu"))
        assert seen(server.asked) == asked
        for name in BENCHES:
            file, *_ = (tmp_path / "out").rglob(f"*{hosts.vlmevalkit_name(BENCHMARKS[name])}_verdicts.json")
            found = {line["id"]: (line["parsed"], line["correct"]) for line in json.loads(file.read_text())}
            assert found == expected[name]

    def test_its_columns_of_the_documentation(self, root: Path) -> None:
        code = (
            "import json, sys; sys.path.insert(0, sys.argv[1])\n"
            "from vlmeval.utils.matching_util import can_infer, can_infer_lego\n"
            "choices, orders, options = json.loads(sys.argv[2])\n"
            "print(json.dumps([[can_infer(c, dict(options)) or '-' for c in choices],\n"
            "  [can_infer_lego(c, 'sort', {x: f'step {x}' for x in 'ABCD'}) or '-' for c in orders]]))"
        )
        choices, orders = (cases(root, title) for title in CHOICES)
        asked = json.dumps([[row[0] for row in choices], [row[0] for row in orders], dict(choice().options)])
        found = json.loads(call("-c", code, os.environ["VLMEVALKIT"], asked).splitlines()[-1])
        assert found == [[row[2] for row in choices], [row[2] for row in orders]]
