"""`tpru build`: its options, in words."""

from __future__ import annotations

import json
import os
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from tpru_verl.sample import Task

PARTLY = 3  # exit code: the result is written, and something of the source could not be read
FROM, CLEAN, ASKING, MODEL, RESULT = "Frames", "Filters (0 turns one off)", "Rows", "Model", "Result"


class SamplingMode(str, Enum):
    uniform = "uniform"
    scene = "scene"
    keyframes = "keyframes"


class BuildEngine(str, Enum):
    processes = "processes"
    ray = "ray"


def _panel(name: str, help_: str, **more) -> typer.models.OptionInfo:
    return typer.Option(help=help_, rich_help_panel=name, **more)


def build(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Folder of videos or of folders of pictures, a video, a jsonl of episodes, a LeRobot data "
            "set, or a simulator: sim:bricks, sim:gui, sim:minigrid, sim:metaworld.",
        ),
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder to make; an earlier result in it is replaced.")
    ],
    sampling: Annotated[
        SamplingMode, _panel(FROM, "Of videos: at even times, at changes of the picture, key frames.")
    ] = SamplingMode.uniform,
    every: Annotated[
        float | None, _panel(FROM, "Seconds between frames. Default: 24 a video, 0.2 to 2 s.")
    ] = None,
    scene_change: Annotated[float, _panel(FROM, "Share of pixels that change, for --sampling scene.")] = 0.2,
    max_side: Annotated[int, _panel(FROM, "Pixels of a video's frames.", min=16)] = 640,
    clip_frames: Annotated[int, _panel(FROM, "Most frames of a clip; longer sequences become several.")] = 24,
    episodes: Annotated[int, _panel(FROM, "Of a simulator.", min=1)] = 100,
    min_contrast: Annotated[float, _panel(CLEAN, "Grey levels of spread; below: blank.", min=0)] = 4.0,
    min_sharpness: Annotated[
        float, _panel(CLEAN, "Variance of the Laplacian; below: blurred.", min=0)
    ] = 12.0,
    min_bits: Annotated[
        int, _panel(CLEAN, "Of 256 of the hash, to the frame before; below: duplicate.", min=0)
    ] = 4,
    min_change: Annotated[
        float, _panel(CLEAN, "Share of pixels that change; below: order not visible.", min=0)
    ] = 0.005,
    max_bits: Annotated[
        int, _panel(CLEAN, "Of 256: wrong frames of other clips are at most as far from the right one.")
    ] = 120,
    task: Annotated[list[Task] | None, _panel(ASKING, "A task, once or more. Default: all three.")] = None,
    steps: Annotated[str, _panel(ASKING, "Steps of a row; several numbers are drawn from: 3,4,5.")] = "4",
    rows_per_clip: Annotated[int, _panel(ASKING, "Of each task.", min=1)] = 1,
    gaps: Annotated[int, _panel(ASKING, "Missing steps of next-frame rows.", min=1, max=3)] = 1,
    free_form: Annotated[
        bool, _panel(ASKING, "Orders without options, for rewards that pay in part.")
    ] = False,
    negatives: Annotated[
        float, _panel(ASKING, "Share of rows whose answer is None of the choices provided.")
    ] = 0.2,
    mismatches: Annotated[
        float, _panel(ASKING, "Of these, with a text that does not fit; the rest miss the answer.")
    ] = 0.5,
    endpoint: Annotated[
        str | None, _panel(MODEL, "OpenAI-compatible, as http://localhost:8000/v1. The key: OPENAI_API_KEY.")
    ] = None,
    model: Annotated[str | None, _panel(MODEL, "Its name there.")] = None,
    ask: Annotated[
        str, _panel(MODEL, "What of it: some of judge, describe, contradict.")
    ] = "judge,describe,contradict",
    concurrency: Annotated[int, _panel(MODEL, "Requests at a time.", min=1)] = 8,
    timeout: Annotated[float, _panel(MODEL, "Seconds for an answer.", min=0.1)] = 120.0,
    retries: Annotated[int, _panel(MODEL, "After errors 429 and 5xx, waiting longer each time.", min=0)] = 6,
    answers: Annotated[
        Path | None, _panel(MODEL, "Folder that keeps its answers. Default: beside OUT.")
    ] = None,
    split: Annotated[
        str | None, _panel(RESULT, "As train=0.95,test=0.05; a source group is in one of them.")
    ] = None,
    against: Annotated[str | None, _panel(RESULT, "Test rows whose pictures must not occur.")] = None,
    seed: Annotated[int, _panel(RESULT, "Of all that is drawn.")] = 0,
    template: Annotated[str, _panel(RESULT, "Prompt template of the column `prompt`.")] = "tpru",
    audit: Annotated[bool, _panel(RESULT, "Look for shortcuts; the verdict goes into the card.")] = True,
    engine: Annotated[
        BuildEngine, _panel(RESULT, "Processes of this machine, or Ray Data on a cluster.")
    ] = BuildEngine.processes,
    workers: Annotated[int | None, _panel(RESULT, "Processes. Default: one a core.", min=1)] = None,
) -> None:
    """Turn videos, pictures, episodes or simulators into rows of the three tasks, with hard wrong candidates.

    What is unusable is left out, counted and listed; where something could not be read, the exit code is 3
    beside a whole result of the rest. A run that was ended goes on where it was. The same source, options
    and seed give the same bytes.
    """
    from tpru_verl.builder.filters import Filters
    from tpru_verl.builder.pipeline import build as work
    from tpru_verl.builder.stages import BuildOptions
    from tpru_verl.builder.tasks import TaskOptions
    from tpru_verl.builder.video import FrameSampling
    from tpru_verl.cores import available_cores
    from tpru_verl.data.commands import open_source, shares_of
    from tpru_verl.data.layout import DROPPED

    processes = workers or available_cores()
    settings = BuildOptions(
        FrameSampling(sampling.value, every, scene_change, max_side, max(1, available_cores() // processes)),
        Filters(min_contrast, min_sharpness, min_bits, min_change, max_bits),
        TaskOptions(
            tuple(task or Task), _numbers(steps), rows_per_clip, gaps, free_form, negatives, mismatches
        ),
        clip_frames,
        shares_of(split),
        seed,
        template,
        episodes,
    )
    describer = None
    if endpoint:
        from tpru_verl.builder.describe import Describer

        if not model:
            raise ValueError("--model: found none, expected the model's name at --endpoint")
        describer = Describer(
            endpoint,
            model,
            cache=answers or out.absolute().with_name(f"{out.name}.answers"),
            asked=[name.strip() for name in ask.split(",")],
            concurrency=concurrency,
            timeout=timeout,
            retries=retries,
            key=os.environ.get("OPENAI_API_KEY", "EMPTY"),
        )
    manifest = work(
        source,
        out,
        settings,
        describer=describer,
        against=open_source(against) if against else None,
        audit=audit,
        with_engine=engine.value,
        workers=workers,
    )
    shown = ("frames", "clips", "left_out", "failed_rows", "rows", "audit")
    typer.echo(json.dumps({name: manifest[name] for name in shown}, indent=1))
    typer.echo(f"{out}: written; next: tpru data view {out}")
    left_out = manifest["left_out"]
    assert isinstance(left_out, dict)
    if lost := left_out.get("unreadable", 0):
        told = f"{source}: {lost} could not be read, listed in {out / DROPPED}; the rows are of the rest"
        typer.echo(told, err=True)
        raise typer.Exit(PARTLY)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"--steps: found {text!r}, expected numbers such as 4 or 3,4,5") from None
