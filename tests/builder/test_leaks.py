"""`tpru build --against`: no row has a picture of a test set, whatever was done to the source's pictures."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.builds import Run
from support.frames import scenes
from support.results import read

COVERED = (("--crop", "0,0.05,0,0"), ("--crop", "0,0.1,0,0"), ("--mask", "0,0,1,0.15"))


@pytest.mark.parametrize("options", COVERED)
def test_pictures_of_a_test_set_are_found_whether_they_are_covered_or_not(
    build: Run, tmp_path: Path, options: tuple[str, str]
) -> None:
    source = scenes(tmp_path / "in", takes=3)
    build(source, "whole")
    build(source, "covered", *options)
    for held in ("whole", "covered"):
        with pytest.raises(SystemExit) as stop:
            build(source, "out", *options, "--against", tmp_path / held)
        assert "found no usable clip" in str(stop.value.code)
        assert str(stop.value.code).endswith(f"has a picture of {tmp_path / held}")


def withheld(folder: Path, **changes: Any) -> Path:
    """The rows of a build as a contest gives them, in one file: `changes` stand in place of the answers."""
    rows = [{"problem": row["problem"], "images": row["images"]} for row in read(folder)]
    path = folder.with_suffix(".parquet")
    pq.write_table(pa.Table.from_pylist([{**row, **changes} for row in rows]), path)
    return path


@pytest.mark.parametrize("changes", [{"answer": ""}, {}, {"answer": "B", "problem": "What is this?"}])
def test_a_test_set_counts_whatever_its_answers_and_texts_are(
    build: Run, tmp_path: Path, changes: dict[str, str]
) -> None:
    build(scenes(tmp_path / "tests", takes=2), "held")
    path = withheld(tmp_path / "held", **changes)
    manifest = build(scenes(tmp_path / "in", takes=6), "out", "--against", path)
    assert manifest["left_out"] == {"leak": 2}
    assert manifest["not compared"] == 0


def test_pictures_of_a_test_set_that_cannot_be_compared_are_told(
    build: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(scenes(tmp_path / "tests", takes=2), "held")
    path = withheld(tmp_path / "held", images=[{"bytes": b"cut", "path": None}])
    count = len(read(tmp_path / "held"))
    manifest = build(scenes(tmp_path / "in", takes=2), "out", "--against", path)
    assert manifest["not compared"] == count
    said = (
        f"found {count} pictures that cannot be compared, expected none; the first: {path} row 0: images[0]: "
    )
    assert said in capsys.readouterr().err
    card = (tmp_path / "out/README.md").read_text()
    assert f"by perceptual hash. {count} of its pictures could not be read, and were not compared." in card
