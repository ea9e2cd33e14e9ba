"""Speed and memory of `tpru build`: videos beside decoding alone, folders of pictures, many videos.

    python benchmarks/build.py                       # videos and pictures that this script makes
    python benchmarks/build.py --video FILE          # a video of yours

A video is repeated until there are LEAST_FRAMES of it. "Decoding alone" decodes all frames of the same files
with PyAV and one thread a core, as `tpru build --workers 1` does. The time of a build of three seconds of
64 x 64 pixels, mostly start-up, is subtracted. Frames a second count all frames of the file. Uniform sampling
may skip some of them without decoding; `--sampling scene` decodes all.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import av
import measure
import numpy as np
from data_tools import pictures
from PIL import Image

from tpru_verl.cores import available_cores

TPRU = "from tpru_verl.cli import main; main()"
LEAST_FRAMES = 1500


def made_video(path: Path, seconds: int = 60, size: tuple[int, int] = (1280, 720)) -> Path:
    """H.264, 25 frames a second: squares that travel before a noisy ground that moves the other way."""
    rng = np.random.default_rng(0)
    ground = np.asarray(Image.fromarray(rng.integers(0, 255, (9, 16, 3), np.uint8)).resize(size), np.int16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", rate=25, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for number in range(25 * seconds):
            moved = np.roll(ground, -number, axis=1)
            frame = (moved + rng.normal(0, 3, (size[1], 1, 3))).clip(0, 255).astype(np.uint8)
            for square in range(3):
                left = (number * (square + 2) * 2 + 300 * square) % (size[0] - 120)
                frame[100 + 200 * square :][:120, left : left + 120] = (250, 80 * square, 40)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode(None))
    return path


def decode(paths: list[Path], threads: int) -> tuple[int, float]:
    """Frames, and seconds to decode them all."""
    began, frames = time.perf_counter(), 0
    for path in paths:
        with av.open(str(path)) as container:
            context = container.streams.video[0].codec_context
            context.thread_count, context.thread_type = threads, "AUTO"
            frames += sum(1 for _ in container.decode(video=0))
    return frames, time.perf_counter() - began


def build(*arguments: object) -> tuple[float, float]:
    """Seconds and peak memory (GiB) of `tpru build` without its audit, of videos with any visible order."""
    quick = ("--no-audit", "--min-order", 0)
    return measure.watched([sys.executable, "-c", TPRU, "build", *arguments, *quick])


def videos(table: measure.Rows, folder: Path, path: Path, repeats: int) -> None:
    """Builds of a video, each between two measurements of decoding alone."""
    frames, _ = decode([path], 1)
    copies = max(1, -(-LEAST_FRAMES // frames))
    source = folder / "videos"
    source.mkdir()
    short = made_video(folder / "short.mp4", 3, (64, 64))
    paths = [Path(shutil.copy(path, source / f"{i}{path.suffix}")) for i in range(copies)]
    threads = available_cores()
    frames, alone = decode(paths, threads)
    name = f"PyAV alone, {path.name} x {copies}"
    table.append([name, f"{frames:,} frames", f"{frames / alone:,.0f}", "", "", "1.00", ""])
    for how in (("--every", 1), ("--sampling", "scene", "--every", 0.2)):
        rounds: list[tuple[float, float, float]] = []  # share of decoding alone, frames/s, GiB
        for _ in range(repeats):
            before = decode(paths, threads)[1]
            began, _ = build(short, folder / "rows", "--workers", 1, "--every", 0.2)
            seconds, peak = build(source, folder / "rows", "--workers", 1, *how)
            alone = (before + decode(paths, threads)[1]) / 2
            rounds.append((alone / (seconds - began), frames / (seconds - began), peak))
        shares, rates, peaks = zip(*rounds, strict=True)
        middle, lowest, highest = measure.spread(shares, ".2f")
        share = f"{middle} ({lowest} to {highest})"
        cells = (f"{frames:,} frames", *measure.spread(rates), share, f"{max(peaks):.2f}")
        table.append([" ".join(map(str, how)), *cells])


def stills(table: measure.Rows, folder: Path, sequences: int, repeats: int) -> None:
    """Folders of four 640 x 480 JPEGs: one row of each task from each."""
    pool = pictures(400)
    rng = np.random.default_rng(0)
    for take in range(sequences):
        target = folder / "stills" / f"scene{take % 5}" / f"{take:06d}"
        target.mkdir(parents=True)
        for place, i in enumerate(rng.permutation(len(pool))[:4]):
            (target / f"{place}.jpg").write_bytes(pool[i])
    for title, each, how in (
        ("folders of 4 JPEGs", 3, ("--max-foreign", 0)),
        ("the same, one row each", 1, ("--task", "temporal_reordering")),
    ):
        runs = [build(folder / "stills", folder / "rows", *how) for _ in range(repeats)]
        rates = [each * sequences / seconds for seconds, _ in runs]
        peak = max(memory for _, memory in runs)
        table.append([title, f"{each * sequences:,} rows", *measure.spread(rates), "", f"{peak:.2f}"])


def memory(table: measure.Rows, folder: Path, path: Path, counts: list[int]) -> None:
    for count in counts:
        source = folder / f"{count}"
        source.mkdir()
        for i in range(count):
            os.link(path, source / f"{i}{path.suffix}")
        seconds, peak = build(source, folder / "rows", "--every", 1)
        cells = (f"{count} videos", f"{count / seconds:,.1f}", "", "", "", f"{peak:.2f}")
        table.append(["memory by videos", *cells])


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--video", type=Path, nargs="*", default=[])
    parser.add_argument("--sequences", type=int, default=1000, help="folders of pictures")
    parser.add_argument("--videos", type=int, nargs="+", default=[8, 64], help="for the memory")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    table = [["", "size", "a second", *measure.SPREAD, "of decoding alone", "peak GiB"]]
    with tempfile.TemporaryDirectory() as name:
        for number, path in enumerate(options.video or [made_video(Path(name) / "made.mp4")]):
            (folder := Path(name) / f"v{number}").mkdir()
            videos(table, folder, path, options.repeats)
        stills(table, Path(name), options.sequences, options.repeats)
        short = made_video(Path(name) / "short.mp4", 10)
        (folder := Path(name) / "memory").mkdir()
        memory(table, folder, short, options.videos)
    print(measure.markdown(table, f"{available_cores()} cores, medians of {options.repeats} runs"))


if __name__ == "__main__":
    main()
