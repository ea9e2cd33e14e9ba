"""Each message of docs/troubleshooting.md is one that our code, or the installed framework, prints."""

import ast
import re
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Where each framework's messages are. EasyR1, whose package is called `verl` too, has its own environment.
FILES = {
    "veRL": (
        "verl/single_controller/ray/base.py",
        "verl/utils/config.py",
        "verl/utils/dataset/rl_dataset.py",
        "verl/workers/config/actor.py",
        "verl/experimental/agent_loop/agent_loop.py",
    ),
    "vLLM": (
        "vllm/config/model.py",
        "vllm/model_executor/models/utils.py",
        "vllm/multimodal/processing/context.py",
        "vllm/v1/core/kv_cache_utils.py",
        "vllm/v1/engine/exceptions.py",
        "vllm/v1/engine/input_processor.py",
        "vllm/v1/engine/utils.py",
        "vllm/v1/worker/utils.py",
    ),
    "Ray": ("ray/_private/worker.py", "ray/scripts/symmetric_run.py"),
    "transformers": (
        "transformers/modeling_utils.py",
        "transformers/models/auto/configuration_auto.py",
        "transformers/models/qwen2_5_vl/modeling_qwen2_5_vl.py",
        "transformers/utils/hub.py",
    ),
    "Hydra": ("hydra/_internal/config_loader_impl.py",),
    "OmegaConf": ("omegaconf/dictconfig.py",),
    "EasyR1": (
        "verl/trainer/ray_trainer.py",
        "verl/utils/dataset.py",
        "verl/workers/reward/function.py",
    ),
}
UNCHECKED = ("seen", "reported")


def entries() -> list[tuple[str, str]]:
    """Message and who prints it, of each line of the page's tables."""
    text = (ROOT / "docs/troubleshooting.md").read_text().replace(r"\|", "\0")
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [[cell.strip().replace("\0", "|") for cell in line.strip("| ").split(" | ")] for line in lines]
    for cell in cells:
        assert len(cell) == 4, cell
    return [(message, of) for message, of, *_ in cells if message not in ("message", "---")]


def texts(file: Path) -> list[str]:
    """All strings of a file; `...` for each value that is put into one."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(str(v.value) if isinstance(v, ast.Constant) else "..." for v in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


@cache
def printed(of: str) -> list[str]:
    if of == "ours":
        return [text for file in sorted((ROOT / "tpru_verl").rglob("*.py")) for text in texts(file)]
    if of == "EasyR1":
        places = sorted(Path(sys.prefix, "frameworks/easyr1/lib").glob("python*/site-packages"))
    else:
        spec = find_spec(FILES[of][0].partition("/")[0])
        places = [Path(spec.origin).parent.parent] if spec and spec.origin else []
    if not places or not (places[0] / FILES[of][0]).is_file():
        pytest.skip(f"{of} is not installed")
    return [text for name in FILES[of] for text in texts(places[0] / name)]


def says(text: str, message: str) -> bool:
    """Whether the parts of a message between its `...` stand in the text, in their order."""
    parts = [re.escape(part) for part in re.split(r"\s*\.\.\.\s*", message) if part]
    return re.search(".*?".join(parts), text, re.DOTALL) is not None


def test_the_page_has_enough_messages() -> None:
    assert len(entries()) >= 40
    assert {of for _, of in entries()} == {"ours", *FILES, *UNCHECKED}


@pytest.mark.parametrize(("message", "of"), [entry for entry in entries() if entry[1] not in UNCHECKED])
def test_a_message_is_printed(message: str, of: str) -> None:
    assert re.fullmatch(r"`[^`]{12,}`", message), f"{message}: expected the words alone"
    assert any(says(text, message.strip("`")) for text in printed(of)), f"{of} prints no {message}"


def test_a_message_that_nobody_prints_is_found() -> None:
    assert not any(says(text, "found no gold, expected gold") for text in printed("ours"))
    assert says("found 3 rows, expected 8", "found ... rows, expected")
    assert not says("expected 8 rows, found 3", "found ... rows, expected")
