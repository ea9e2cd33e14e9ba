"""`inspect eval` gives our rows our verdicts."""

import json
from pathlib import Path

from support.harnesses import OwnRun, call

from tpru_verl.eval.benchmarks import BENCHMARKS


def test_same_rows_same_verdicts(own: OwnRun, tmp_path: Path) -> None:
    for name, path in own.sources.items():
        log = tmp_path / name
        args = ["--model", "openai-api/local/tiny", "-T", f"data={path}", "--log-dir", log]
        args += ["--log-format", "json", "--display", "none", "--max-retries", 1]
        task = f"tpru_verl/{name.replace('-', '_')}"
        call("-m", "inspect_ai", "eval", task, *args, LOCAL_BASE_URL=own.server.url, LOCAL_API_KEY="none")
        (file,) = log.glob("*.json")
        found = json.loads(file.read_text())
        assert found["status"] == "success"
        verdicts = {
            sample["id"]: (score.get("answer"), score["value"]["correct"] == 1)
            for sample in found["samples"]
            for score in sample["scores"].values()
        }
        assert verdicts == own.verdicts[name]
    assert own.asked_since() == own.asked


def test_each_benchmark_is_listed_and_takes_its_options() -> None:
    from inspect import signature

    from inspect_ai import list_tasks  # type: ignore[import-not-found]

    from tpru_verl.eval.harnesses import inspect_tasks

    file = Path(inspect_tasks.__file__)
    listed = {task.name for task in list_tasks(file.name, root_dir=file.parent)}
    assert listed == {name.replace("-", "_") for name in BENCHMARKS}
    options = ["data", "style", "min_pixels", "max_pixels", "token_side", "max_tokens"]
    assert all([*signature(getattr(inspect_tasks, name)).parameters] == options for name in listed)
