"""Tries a wheel in an empty environment of this Python: python tests/support/smoke.py dist/NAME.whl

Only the standard library is needed. Ends with 1 and the first thing that does not work.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROWS = """
import io, json, sys
import pyarrow as pa, pyarrow.parquet as pq
from PIL import Image
pictures = []
for red in (10, 80, 160, 240):
    buffer = io.BytesIO()
    Image.new("RGB", (56, 42), (red, 0, 0)).save(buffer, "PNG")
    pictures.append(buffer.getvalue())
problem = "What is the correct order?" + " <image>" * 4 + chr(10) + chr(10).join(
    ["A. 1 2 3 4", "B. 3 1 4 2", "C. 4 3 2 1", "D. 2 1 4 3", "E. None of the choices provided"])
cells = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
images = pa.array([[{"bytes": one, "path": None} for one in pictures]] * 2, cells)
pq.write_table(pa.table({"problem": [problem] * 2, "answer": ["B", "C"], "images": images}), sys.argv[1])
"""
GRADES = """
import importlib.util, sys
from pathlib import Path
import tpru_verl
from tpru_verl.grading import grade
assert tpru_verl.__version__ in sys.argv[1], tpru_verl.__version__
right = "<think>It boils first.</think><answer>B</answer>"
assert grade(right, "B").score("tpru") == 1.0
assert grade("B: no", "C").score("tpru") == 0.0
assert grade("<answer>4 2 3 1</answer>", "4 2 3 1", task="temporal_reordering").accuracy == 1.0
# As veRL and EasyR1 load a reward: a file by its path.
for name, arguments in (
    ("verl", dict(data_source="x", solution_str=right, ground_truth="B", extra_info={})),
    ("easyr1", dict(reward_inputs=[dict(response=right, ground_truth="B", response_length=9)])),
):
    path = Path(tpru_verl.__file__).parent / "reward_fns" / f"{name}.py"
    spec = importlib.util.spec_from_file_location("custom_module", path)
    module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
    found = module.compute_score(**arguments)
    score = found["score"] if isinstance(found, dict) else found[0]["overall"]
    assert score == 1.0, (name, found)
heavy = {"torch", "verl", "vllm", "ray", "transformers"}
assert not any(importlib.util.find_spec(one) for one in heavy), "the base install brought a heavy package"
"""


def main() -> None:
    (wheel,) = map(Path, sys.argv[1:])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        venv.create(folder / "env", with_pip=True)
        python, tpru = (folder / "env" / "bin" / one for one in ("python", "tpru"))

        def run(*words: object, code: int = 0) -> str:
            # From a folder with nothing in it, so that no clone is imported.
            environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
            environment["COLUMNS"] = "200"
            done = subprocess.run(
                [*map(str, words)], cwd=folder, env=environment, capture_output=True, text=True, check=False
            )
            if done.returncode != code or "Traceback" in done.stderr:
                sys.exit(
                    f"{' '.join(map(str, words))[:200]}: exit {done.returncode}\n{done.stdout}{done.stderr}"
                )
            return done.stdout + done.stderr

        run(python, "-m", "pip", "install", "--quiet", wheel.resolve())
        run(python, "-m", "pip", "check")
        helped = help_of(run, [tpru])
        run(python, "-c", ROWS, folder / "rows.parquet")
        said = run(tpru, "data", "validate", folder / "rows.parquet")
        run(python, "-c", GRADES, wheel.name)
        hint = run(tpru, "build", "sim:bricks", folder / "out", code=1)
        assert 'pip install ".[build]" in a clone' in hint, hint
        version = ".".join(map(str, sys.version_info[:3]))
        print(f"Python {version}: {wheel.name}, {helped} help pages; {said.strip().splitlines()[-1]}")


def help_of(run, words: list) -> int:
    """How many commands and groups below `words` show their help."""
    text = run(*words, "--help")
    commands = re.search(r"Commands -*.*?\n(.*?)\n[╰+]", text, re.DOTALL)
    names = re.findall(r"^[│|] ([a-z][a-z-]*) ", commands[1], re.MULTILINE) if commands else []
    return 1 + sum(help_of(run, [*words, name]) for name in names)


if __name__ == "__main__":
    main()
