"""What the tests of other harnesses share: rows of two benchmarks, our verdicts on them, what was asked."""

import io
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmark_rows import lego_tsv
from endpoint import Asked, Endpoint
from PIL import Image
from rows import picture, reordering, write_parquet

from tpru_verl.eval.results import read_lines

BENCHES = ("tpru-test", "lego-puzzles")


@dataclass
class Sources:
    """Fixtures of two benchmarks, one row of them with a broken picture."""

    paths: dict[str, Path]

    def options(self) -> list[str]:
        return [f"--data={name}={path}" for name, path in self.paths.items()]


def write_sources(tmp_path: Path) -> Sources:
    rows = [reordering(seed, answer="BADCE"[seed % 5]) for seed in range(8)]
    rows.append(reordering(9, images=[picture(0), b"no picture", picture(2), picture(3)]))
    tpru = write_parquet(tmp_path / "rows" / "test.parquet", rows)
    return Sources({"tpru-test": tpru, "lego-puzzles": lego_tsv(tmp_path / "lego")})


Verdicts = dict[str, tuple[str | None, bool]]  # row -> what was read, whether it is right


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


def ours(server: Endpoint, sources: Sources, out: Path) -> dict[str, Verdicts]:
    code = "import sys; from tpru_verl.cli import main; main()"
    call(
        "-c",
        code,
        "eval",
        "tiny",
        "--base-url",
        server.url,
        "--bench",
        ",".join(BENCHES),
        "--out",
        out,
        *sources.options(),
    )
    found = {
        name: {line["id"]: (line["parsed"], line["score"] == 1) for line in read_lines(out / f"{name}.jsonl")}
        for name in BENCHES
    }
    verdicts = [verdict for lines in found.values() for verdict in lines.values()]
    assert {right for _, right in verdicts} == {True, False}  # or to agree would be easy
    assert None in {parsed for parsed, _ in verdicts}
    return found


def seen(asked: list[Asked]) -> set[tuple[str, tuple[bytes, ...]]]:
    """Prompts with the pixels of their pictures."""
    return {
        (one.text, tuple(Image.open(io.BytesIO(image)).convert("RGB").tobytes() for image in one.images))
        for one in asked
        if one.images
    }
