"""VLMEvalKit gives our rows our verdicts. No package: run with VLMEVALKIT=CHECKOUT and its needs."""

import json
import os
from pathlib import Path

from support.harnesses import OwnRun, call, export
from support.pages import CHOICES, cases, choice

from tpru_verl.eval.benchmarks import BENCHMARKS
from tpru_verl.eval.harnesses import rows as harness_rows


def test_same_rows_same_verdicts(own: OwnRun, tmp_path: Path) -> None:
    export("vlmevalkit", tmp_path / "lmu", own.sources)
    names = [harness_rows.vlmevalkit_name(BENCHMARKS[name]) for name in own.sources]
    args = [os.environ["VLMEVALKIT"], "--data", *names, "--model", "tiny", "--base-url", own.server.url]
    args += ["--local-media", "--judge", "exact_matching", "--work-dir", tmp_path / "out"]
    call("-m", "tpru_verl.eval.harnesses.vlmevalkit", *args, LMUData=str(tmp_path / "lmu"))
    assert own.asked_since() == own.asked
    for name in own.sources:
        file, *_ = (tmp_path / "out").rglob(
            f"*{harness_rows.vlmevalkit_name(BENCHMARKS[name])}_verdicts.json"
        )
        found = {line["id"]: (line["parsed"], line["correct"]) for line in json.loads(file.read_text())}
        assert found == own.verdicts[name]


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
