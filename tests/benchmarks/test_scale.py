"""benchmarks/scale.py: its operations are those that PyTorch counts, and docs/scale.md shows its tables."""

from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("verl")
from tpru_verl.shapes import SHAPES, Shape


@pytest.fixture
def scale(root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    return import_module("scale")


@pytest.mark.parametrize("tied", [True, False])
def test_estimated_operations_are_those_that_pytorch_counts(scale: ModuleType, tied: bool) -> None:
    shape = Shape(3, 256, 704, 4, 2, 64, 1000, tied, 2, 160, 420, 14)
    parameters, text, picture = scale.counted(shape, 300, (8, 6))
    assert scale.forward(shape, 300) == pytest.approx(text, rel=1e-4)  # without rotary angles
    assert scale.see(shape, 48) == picture
    assert shape.parameters == pytest.approx(parameters, rel=0.01)  # it has no biases and norms


def rows(root: Path, after: str) -> list[list[str]]:
    lines = (
        (root / "docs/scale.md").read_text().partition(after)[2].partition("\n\n|")[2].partition("\n\n")[0]
    )
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines.splitlines()[2:]]


@pytest.mark.parametrize(
    ("after", "counts", "grown"),
    [("With as many rows a step", [8, 64, 512], False), ("With rows a step in proportion", [64, 512], True)],
)
def test_the_page_shows_what_the_script_says(
    scale: ModuleType, root: Path, after: str, counts: list[int], grown: bool
) -> None:
    assert rows(root, after) == scale.show(["tpru_3b", "tpru_7b", "tpru_32b"], counts, grown, [])[1:]


def test_a_step_that_does_not_fit_is_called_so(scale: ModuleType) -> None:
    recipe = scale.settings_of(scale.compose("tpru_32b").settings, 8, False)
    shape = SHAPES["Qwen/Qwen2.5-VL-32B-Instruct"]._replace(layers=400)
    assert scale.step_of(recipe, shape, scale.Rows()).bottleneck == "does not fit"


def test_fsdp_holds_and_moves_the_estimated_bytes(scale: ModuleType) -> None:
    ranks, world = import_module("ranks"), 2
    states, gathered, reduced = ranks.counted(world)
    weights, gradients = scale.exchanged(ranks.SHAPE, world)
    assert weights > 0
    assert gradients > 0
    assert states == pytest.approx(16 * ranks.SHAPE.parameters / world, rel=0.002)  # biases
    assert gathered == pytest.approx(2 * weights, rel=0.002)
    assert reduced == pytest.approx(gradients, rel=0.002)
