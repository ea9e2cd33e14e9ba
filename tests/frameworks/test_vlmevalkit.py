"""VLMEvalKit gives our rows our verdicts. No package: run with VLMEVALKIT=CHECKOUT and its needs."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from endpoint import Endpoint, by_prompt, endpoint
from harnesses import BENCHES, Sources, call, ours, seen, write_sources
from test_docs import CHOICES, cases, choice

from tpru_verl.eval.benchmarks import BENCHMARKS
from tpru_verl.eval.hosts import rows as hosts
from tpru_verl.eval.pixels import Bounds


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    return write_sources(tmp_path)


@pytest.fixture
def server() -> Iterator[Endpoint]:
    with endpoint(by_prompt) as running:
        yield running


def test_same_rows_same_verdicts(server: Endpoint, sources: Sources, tmp_path: Path) -> None:
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


def test_its_columns_of_the_documentation(root: Path) -> None:
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
