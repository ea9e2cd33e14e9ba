"""The files of an evaluation belong to one run, and its sources are read before anything is asked."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support.endpoint import Asked, endpoint
from support.rows import reordering, write_parquet

Tpru = Callable[..., tuple[object, str, str]]


@pytest.fixture
def sources(tmp_path: Path) -> list[object]:
    """Options that name two sources of one row each."""
    paths = [write_parquet(tmp_path / f"rows{i}.parquet", [reordering(i)]) for i in (1, 2)]
    return [part for path in paths for part in ("--rows", path)]


def test_a_run_that_fails_leaves_no_summary_of_an_earlier_one(
    tpru_eval: Tpru, sources: list[object], tmp_path: Path
) -> None:
    """Its rows are those of the new run by then."""

    def gone(number: int, asked: Asked) -> tuple[int, bytes] | None:
        return (404, b'{"error": {"message": "no such model"}}') if number == 3 else None

    with endpoint(fault=gone) as server:
        args = ["tiny", "--base-url", server.url, "--out", tmp_path / "out", *sources]
        assert tpru_eval(*args)[0] == 0
        code, _, _ = tpru_eval(*args, "--max-tokens", 7)
    assert "no such model" in str(code)
    code, _, _ = tpru_eval("compare", tmp_path / "out", tmp_path / "out")
    assert "found no summary.json, expected the --out of a finished `tpru eval`" in str(code)
    assert not (tmp_path / "out/page.html").exists()


def test_a_run_that_fails_before_its_first_rows_leaves_all_files(
    tpru_eval: Tpru, sources: list[object], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with endpoint(fault=lambda number, asked: (404, b"{}") if number == 2 else None) as server:
        args = ["tiny", "--base-url", server.url, "--out", out, *sources]
        assert tpru_eval(*args)[0] == 0
        kept = {path.name: path.read_bytes() for path in out.iterdir()}
        assert "tiny" in str(tpru_eval(*args, "--max-tokens", 7)[0])
    assert {path.name: path.read_bytes() for path in out.iterdir()} == kept


@pytest.mark.parametrize("missing", ["nowhere.parquet", "columns.parquet"])
def test_all_sources_are_read_before_the_first_is_asked(
    tpru_eval: Tpru, sources: list[object], tmp_path: Path, missing: str
) -> None:
    (tmp_path / "columns.parquet").write_bytes(b"no table")
    with endpoint() as server:
        args = ["tiny", "--base-url", server.url, "--out", tmp_path / "out", *sources]
        code, _, _ = tpru_eval(*args, "--rows", tmp_path / missing)
    assert missing in str(code)
    assert not server.asked
    assert not (tmp_path / "out").exists()
