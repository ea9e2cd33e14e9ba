"""`tpru build --against`: no row has a picture of a test set, whatever was done to the source's pictures."""

from pathlib import Path

import pytest
from support.builds import Run
from support.frames import scenes

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
