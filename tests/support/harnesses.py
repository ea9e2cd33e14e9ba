"""What the tests of other harnesses share: rows of two benchmarks, our verdicts on them, what was asked."""

import io
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from support.benchmark_rows import lego_tsv
from support.endpoint import Asked, Endpoint
from support.rows import picture, reordering, write_parquet

from tpru_verl.data.tokens.pixels import Bounds
from tpru_verl.eval.benchmarks import BENCHMARKS
from tpru_verl.eval.harnesses import rows as harness_rows
from tpru_verl.eval.results import read_results

Sources = dict[str, Path]  # benchmark -> its fixture
Verdicts = dict[str, tuple[str | None, bool]]  # row -> what was read, whether it is right
Question = tuple[str, tuple[bytes, ...]]  # a prompt and the pixels of its pictures


@dataclass
class OwnRun:
    """What `tpru eval` made of `sources`, and what it asked to get there."""

    server: Endpoint
    sources: Sources
    verdicts: dict[str, Verdicts]
    asked: set[Question]

    def asked_since(self) -> set[Question]:
        return seen(self.server.asked)


def write_sources(folder: Path) -> Sources:
    """Fixtures of two benchmarks, one row of them with a broken picture."""
    rows = [reordering(seed, answer="BADCE"[seed % 5]) for seed in range(8)]
    rows.append(reordering(9, images=[picture(0), b"no picture", picture(2), picture(3)]))
    tpru = write_parquet(folder / "rows" / "test.parquet", rows)
    return {"tpru-test": tpru, "lego-puzzles": lego_tsv(folder / "lego")}


def export(harness: str, out: Path, sources: Sources) -> None:
    chosen = [(BENCHMARKS[name], str(path)) for name, path in sources.items()]
    harness_rows.export(harness, out, chosen, "tpru", Bounds())


def call(*args: object, **environment: str) -> str:
    """Standard output of a program that succeeds; not run here, where our metadata is that of no install."""
    env = {**os.environ, "OPENAI_API_KEY": "none", "HF_HUB_OFFLINE": "1", **environment}
    done = subprocess.run(
        [sys.executable, *map(str, args)],
        env=env,
        cwd=sys.prefix,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def own_run(server: Endpoint, sources: Sources, out: Path) -> OwnRun:
    """Runs `tpru eval`, and empties what the server was asked: what comes then is the harness's."""
    code = "from tpru_verl.cli import main; main()"
    args = ["eval", "tiny", "--base-url", server.url, "--bench", ",".join(sources), "--out", out]
    call("-c", code, *args, *(f"--data={name}={path}" for name, path in sources.items()))
    found = {
        name: {
            line["id"]: (line["parsed"], line["score"] == 1) for line in read_results(out / f"{name}.jsonl")
        }
        for name in sources
    }
    verdicts = [verdict for lines in found.values() for verdict in lines.values()]
    assert {right for _, right in verdicts} == {True, False}  # or to agree would be easy
    assert None in {parsed for parsed, _ in verdicts}
    asked = seen(server.asked)
    server.asked.clear()
    return OwnRun(server, sources, found, asked)


def seen(asked: list[Asked]) -> set[Question]:
    return {
        (one.text, tuple(Image.open(io.BytesIO(image)).convert("RGB").tobytes() for image in one.images))
        for one in asked
        if one.images
    }
