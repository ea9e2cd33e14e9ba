"""Rows for another harness: our prompt, our prepared pictures, and the fields that our judge needs."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tpru_verl.data.tokens.pixels import Bounds, png
from tpru_verl.eval.asking import prompt_of
from tpru_verl.eval.benchmarks import BENCHMARKS, Benchmark, load
from tpru_verl.eval.engines.base import parts_of, prepared_images
from tpru_verl.eval.item import Item
from tpru_verl.eval.scoring import Verdict, judge
from tpru_verl.files import whole, write_text
from tpru_verl.sample import IMAGE_TAG
from tpru_verl.terminal import line_of

HARNESSES = ("lmms-eval", "vlmevalkit")
TEXTS = ("id", "prompt", "answer", "options", "accepted", "task", "scene", "source", "failed")


@dataclass(frozen=True)
class HarnessRow:
    """One row: `images` are PNG within the pixel bounds, one for each `<image>` tag of `prompt`.

    `options` and `accepted` are JSON. A row with `failed` has no pictures, and every answer to it is wrong.
    """

    id: str
    prompt: str
    answer: str
    options: str
    accepted: str
    task: str
    scene: str
    source: str
    failed: str
    images: tuple[bytes, ...]

    def parts(self) -> list[str | bytes]:
        """Text and pictures in their order."""
        pictures = iter(self.images)
        return [next(pictures, b"") if part == IMAGE_TAG else part for part in parts_of(self.prompt)]


def rows_of(benchmark: Benchmark, data: str | None, style: str, bounds: Bounds) -> Iterator[HarnessRow]:
    """All rows of a benchmark. The prompt and `failed` of a row that cannot be asked say why."""
    for item in load(benchmark, data).items:
        failed, images, prompt = item.broken or "", (), ""
        if not failed:
            try:
                prompt = prompt_of(benchmark, item, style)
                prompt.encode()
                images = tuple(png(image) for image in prepared_images(item, bounds))
            except ValueError as error:
                failed = line_of(error)
        if failed:
            prompt = f"This row cannot be asked: {failed}".replace(IMAGE_TAG, "image")
        texts = (
            item.id,
            prompt,
            item.answer,
            json.dumps(dict(item.options)),
            json.dumps(item.accepted),
            item.task,
            item.scene,
            item.source,
            failed,
        )
        # Half a character, which JSON may hold, becomes an escape: no file can hold it.
        yield HarnessRow(
            *(text.encode("utf-8", "backslashreplace").decode() for text in texts), images=images
        )


def verdict_of(row: Mapping[str, object], response: str) -> Verdict:
    """The verdict of `tpru eval` on a response to this row; always wrong if the row has `failed`."""
    item = Item(
        str(row["id"]),
        "",
        str(row["answer"]),
        (),
        json.loads(str(row["options"])),
        tuple(json.loads(str(row["accepted"]))),
    )
    return Verdict(None, False, False) if row["failed"] else judge(item, response)


def export(
    harness: str, folder: Path, benchmarks: Sequence[tuple[Benchmark, str | None]], style: str, bounds: Bounds
) -> list[Path]:
    """Write the files that a harness reads, and return them. Raises ValueError for an unknown harness."""
    if harness not in HARNESSES:
        known = " or ".join(HARNESSES)
        raise ValueError(f"harness: found {harness!r}, expected {known}; inspect-ai needs no export")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for benchmark, data in benchmarks:
        rows = [*rows_of(benchmark, data, style, bounds)]
        name = task_name(benchmark)
        if harness == "lmms-eval":
            parquet = folder.absolute() / f"{name}.parquet"
            write_parquet(parquet, rows)
            task = folder / f"{name}.yaml"
            write_text(
                task,
                _template("task.yaml").replace("TASK", name).replace("PARQUET", json.dumps(str(parquet))),
            )
            written += [parquet, task]
        else:
            table = folder / f"{vlmevalkit_name(benchmark)}.tsv"
            write_tsv(table, rows)
            written.append(table)
    if harness == "lmms-eval":
        write_text(folder / "utils.py", _template("utils.py.txt"))
        written.append(folder / "utils.py")
    return written


def _template(name: str) -> str:
    return (Path(__file__).parent / "lmms_eval_task" / name).read_text(encoding="utf-8")


def task_name(benchmark: Benchmark) -> str:
    """Such as `tpru_test` or `tpru_muirbench`: lmms-eval has a task `muirbench` of its own."""
    name = benchmark.name.replace("-", "_")
    return name if name.startswith("tpru_") else f"tpru_{name}"


def vlmevalkit_name(benchmark: Benchmark) -> str:
    """Such as `TPRU_Test` or `TPRU_LEGO`: VLMEvalKit has a data set `LEGO` of its own."""
    return benchmark.tsv if benchmark.tsv.startswith("TPRU_") else f"TPRU_{benchmark.tsv}"


def by_vlmevalkit_name() -> dict[str, Benchmark]:
    """All benchmarks by the names of their exported tables."""
    return {vlmevalkit_name(benchmark): benchmark for benchmark in BENCHMARKS.values()}


def write_parquet(path: Path, rows: list[HarnessRow]) -> None:
    """Write text columns and the list of pictures. A crash leaves no half-written file under this name."""
    columns = {name: pa.array([getattr(row, name) for row in rows], pa.string()) for name in TEXTS}
    images = pa.array([list(row.images) for row in rows], pa.list_(pa.binary()))
    with whole(path) as file:
        pq.write_table(pa.table({**columns, "images": images}), file, row_group_size=64)


def write_tsv(path: Path, rows: list[HarnessRow]) -> None:
    """VLMEvalKit's form: index, question (the prompt, with tags), A, B, ..., answer, image as base64."""
    letters = sorted({letter for row in rows for letter in json.loads(row.options)})
    lines = [
        "\t".join(_cell(name) for name in ("index", "question", *letters, *TEXTS[:1], *TEXTS[2:], "image"))
    ]
    for row in rows:
        options = json.loads(row.options)
        # VLMEvalKit wants a picture in each row, one that cannot be asked included.
        pictures = [
            base64.b64encode(image).decode() for image in row.images or [png(Image.new("RGB", (8, 8)))]
        ]
        cells = [
            row.id,
            row.prompt,
            *(options.get(letter, "") for letter in letters),
            row.id,
            *(getattr(row, name) for name in TEXTS[2:]),
            json.dumps(pictures) if len(pictures) != 1 else pictures[0],
        ]
        lines.append("\t".join(map(_cell, cells)))
    write_text(path, "\n".join(lines) + "\n")


def _cell(text: str) -> str:
    return f'"{text.replace(chr(34), chr(34) * 2)}"'
