"""lmms-eval's own command gives our rows our verdicts."""

import json
from pathlib import Path

from support.harnesses import OwnRun, call, export
from support.pages import CHOICES, cases

from tpru_verl.eval.benchmarks import BENCHMARKS
from tpru_verl.eval.harnesses import rows as harness_rows


def test_same_rows_same_verdicts(own: OwnRun, tmp_path: Path) -> None:
    export("lmms-eval", tmp_path / "tasks", own.sources)
    names = ",".join(harness_rows.task_name(BENCHMARKS[name]) for name in own.sources)
    model = f"model=tiny,base_url={own.server.url},api_key=none"
    args = ["--model", "openai", "--model_args", model, "--batch_size", 1, "--log_samples"]
    args += ["--include_path", tmp_path / "tasks", "--tasks", names, "--output_path", tmp_path / "out"]
    said = call("-m", "lmms_eval", *args, HF_HOME=str(tmp_path / "home"))
    written = {path.name.partition("samples_")[2]: path for path in (tmp_path / "out").rglob("*.jsonl")}
    # lmms-eval catches every error, such as a missing package, and still exits with 0.
    assert written, f"lmms-eval exited with 0 and wrote no results; it printed: {said[-2000:] or 'nothing'}"
    assert own.asked_since() == own.asked
    for name in own.sources:
        samples = written[f"{harness_rows.task_name(BENCHMARKS[name])}.jsonl"]
        lines = sorted(
            (json.loads(line) for line in samples.read_text().splitlines()), key=lambda x: x["doc_id"]
        )
        theirs = [(line["accuracy"] == 1, line["unparsed"] == 1) for line in lines]
        assert theirs == [(right, parsed is None) for parsed, right in own.verdicts[name].values()]


def test_its_column_of_the_documentation(root: Path) -> None:
    from lmms_eval.tasks.muirbench.utils import (  # type: ignore[import-not-found]
        MultiChoiceRegexFilter,
        muir_aggregation,
    )

    reader = MultiChoiceRegexFilter(regex_pattern=r"([A-Z])\\.")
    for response, _, _, theirs in cases(root, CHOICES[0]):
        (read,) = reader.apply([[response]], [{}])
        score = muir_aggregation([{"pred": read, "answer": "B", "task": "x"}])
        assert theirs == ("right" if score else "wrong"), response
