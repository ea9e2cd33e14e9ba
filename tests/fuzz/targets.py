"""What is fuzzed: each target takes bytes of a stranger, and raises only where our code is at fault.

`run.py` looks for such bytes (`make fuzz`); `test_corpus.py` replays those that are kept.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

from tpru_verl.data.checks import problems_of_row
from tpru_verl.data.images import problem_of, read_header, scan, thumbnail
from tpru_verl.data.source.forms import Source
from tpru_verl.data.source.rows import read_rows
from tpru_verl.grading import PRESETS, grade, read_answer
from tpru_verl.prompts import render
from tpru_verl.runs.history import HistoryReader
from tpru_verl.runs.logs import RunFiles, accuracies, clipped
from tpru_verl.sample import parse_options, recognise_task

MOST_PIXELS = 2**20  # of a picture that is decoded in full here: larger ones only take time
_KINDS = {b"p": ".parquet", b"j": ".json", b"l": ".jsonl", b"t": ".tsv", b"c": ".csv"}
_FILES = {
    b"m": "metrics.jsonl",
    b"r": "rollouts/1.jsonl",
    b"v": "validation/1.jsonl",
    b"g": "generations.log",
    b"e": "experiment_log.jsonl",
    b"c": "recipe.yaml",
    b"s": "run.json",
}


@cache
def _folder() -> Path:
    """A folder in memory where there is one."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="tpru-fuzz-", dir=memory if memory.is_dir() else None))
    import atexit

    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _one_line(error: Exception) -> None:
    text = str(error)
    assert 0 < len(text) < 2000, text[:2000]
    assert "\n" not in text, error


def grader(data: bytes) -> None:
    """`answer NUL problem with options NUL response`."""
    answer, _, rest = data.decode("utf-8", "replace").partition("\0")
    problem, _, response = rest.partition("\0")
    options, task = parse_options(problem) or None, recognise_task(problem)
    found = grade(response, answer, task=task, options=options)
    assert 0 <= found.accuracy <= found.partial <= 1, found
    assert found.format in (0, 1), found
    assert found.parsed is not None or found.partial == 0, found
    for preset in PRESETS:
        assert 0 <= found.score(preset) <= 1, found
    with suppress(ValueError):
        read_answer(answer, options, task)


def picture(data: bytes) -> None:
    """A picture's file. What our own scan says is what Pillow says."""
    problem_of(data)
    with suppress(ValueError):
        header = read_header(data)
        if header.width * header.height <= MOST_PIXELS:
            problem_of(data, deep=True)
            with suppress(ValueError):
                small = thumbnail(data, 64)
                assert max(small.size) <= 64
            _compare(data)


def _compare(data: bytes) -> None:
    import io

    from PIL import Image

    if (ours := scan(data)) is None:
        return
    try:
        with Image.open(io.BytesIO(data)) as image:
            theirs = (image.format, *image.size, image.mode)
    except Exception:  # Pillow looks at more of the file
        return
    assert theirs == (ours.format, ours.width, ours.height, ours.mode), (theirs, ours)


def rows(data: bytes) -> None:
    """A letter of _KINDS, and a file of rows of that kind."""
    suffix = _KINDS.get(data[:1])
    if suffix is None:
        return
    path = _folder() / f"rows{suffix}"
    path.write_bytes(data[1:])
    try:
        source = Source.open(str(path))
        for unit in source.units:
            for number, row in enumerate(read_rows(unit, source.form(unit))):
                for problem in problems_of_row(row):
                    assert "\n" not in problem, problem
                _ = row.place, row.source_id, row.row_id
                if number == 20:
                    break
    except (ValueError, FileNotFoundError) as error:
        _one_line(error)
    finally:
        path.unlink()


def report(data: bytes) -> None:
    """The files of a run, each `letter of _FILES, content, NUL NUL`."""
    folder = _folder() / "run"
    for piece in data.split(b"\0\0"):
        if name := _FILES.get(piece[:1]):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(piece[1:])
    if not folder.exists():
        return
    try:
        files = RunFiles.find(folder)
        _ = files.started_in
        history = HistoryReader(files).update()
        for step in history.steps:
            _ = accuracies(step), step.usual_seconds, step.trained, clipped(step, history.response_limit)
        assert all("\n" not in note for note in history.notes), history.notes
    except (ValueError, FileNotFoundError) as error:
        _one_line(error)
    finally:
        shutil.rmtree(folder)


def template(data: bytes) -> None:
    """A prompt template."""
    path = _folder() / "mine.jinja"
    path.write_bytes(data)
    from tpru_verl.prompts import _load

    _load.cache_clear()
    try:
        render("Which comes next? <image>", "next_frame_prediction", str(path))
    except ValueError as error:
        _one_line(error)


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target for target in (grader, picture, rows, report, template)
}
