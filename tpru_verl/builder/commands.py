"""The command `tpru build`: its options and their help."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from tpru_verl.sample import Task

PARTLY = 3  # exit code: the result is written, but a part of the source could not be read
FROM, CLEAN, ASKING, MODEL, RESULT = "Frames", "Filters (0 turns one off)", "Rows", "Model", "Result"


class SamplingMode(str, Enum):
    uniform = "uniform"
    scene = "scene"
    keyframes = "keyframes"


class BuildEngine(str, Enum):
    processes = "processes"
    ray = "ray"


def _panel(panel: str, help_: str, name: str | None = None, **more) -> typer.models.OptionInfo:
    return typer.Option(*filter(None, [name]), help=help_, rich_help_panel=panel, **more)


def build(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A folder of videos or of picture folders, a video, a json or jsonl file of episodes, a "
            "LeRobot data set (a folder or ORG/NAME of the Hub), or a simulator: sim:bricks, sim:gui, "
            "sim:minigrid, sim:metaworld.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="Folder for the result. An earlier result in it is replaced."),
    ],
    sampling: Annotated[
        SamplingMode,
        _panel(FROM, "How to choose frames of a video: at even times, when the picture changes, key frames."),
    ] = SamplingMode.uniform,
    every: Annotated[
        float | None,
        _panel(
            FROM,
            "Seconds between frames of a video. Default: about 24 frames a video, 0.2 to 2 s. Of pictures, "
            "each Nth is read.",
        ),
    ] = None,
    crop: Annotated[
        str | None,
        _panel(
            FROM,
            "Cut off the edges of each frame: LEFT,TOP,RIGHT,BOTTOM in pixels, or in shares below 1. "
            "0,0.05,0,0 removes a status bar at the top.",
        ),
    ] = None,
    mask: Annotated[
        list[str] | None,
        _panel(
            FROM,
            "Cover a box of each frame with grey, such as a burnt-in clock: LEFT,TOP,RIGHT,BOTTOM from the "
            "left and the top, in pixels or shares up to 1. Repeat it for more.",
        ),
    ] = None,
    scene_change: Annotated[
        float, _panel(FROM, "With --sampling scene: the share of pixels that has to change for a new frame.")
    ] = 0.2,
    cut: Annotated[
        float,
        _panel(
            FROM,
            "A video is cut into shots where FFmpeg's scene score, 0 to 1, is over this. 0 turns it off.",
            min=0,
            max=1,
        ),
    ] = 0.2,
    max_side: Annotated[
        int, _panel(FROM, "The longer side of a video's frames, in pixels. Larger frames shrink.", min=16)
    ] = 640,
    clip_frames: Annotated[
        int, _panel(FROM, "The most frames in a clip. A longer sequence becomes several clips.")
    ] = 24,
    episodes: Annotated[int, _panel(FROM, "How many episodes a simulator plays.", min=1)] = 100,
    min_contrast: Annotated[
        float,
        _panel(CLEAN, "A frame is blank when its grey levels deviate by less than this (of 255).", min=0),
    ] = 4.0,
    min_sharpness: Annotated[
        float,
        _panel(CLEAN, "A frame is blurred when the variance of its Laplacian is below this.", min=0),
    ] = 12.0,
    min_bits: Annotated[
        int,
        _panel(
            CLEAN,
            "A frame is a duplicate when its 256-bit perceptual hash differs from the hash of the frame "
            "before it in fewer bits than this.",
            min=0,
        ),
    ] = 4,
    min_change: Annotated[
        float,
        _panel(
            CLEAN,
            "A frame is left out when a smaller share of its pixels than this differs from the frame before: "
            "nobody could see the order of the two.",
            min=0,
        ),
    ] = 0.005,
    max_foreign: Annotated[
        float,
        _panel(
            CLEAN,
            "A frame of another clip is used as a wrong option only when it is no farther from the right "
            "frame than this many times the largest distance within the clip. Others would be too easy. "
            "0 allows all.",
            min=0,
        ),
    ] = 1.25,
    min_order: Annotated[
        float | None,
        _panel(
            CLEAN,
            "A clip gives no row when its order is not visible. Measure: of any three frames, how often the "
            "outer two differ most, by chance 0.33. Default for videos: 0.45 (reordering) and 0.42; for "
            "pictures: 0.",
            min=0,
            max=1,
        ),
    ] = None,
    task: Annotated[
        list[Task] | None, _panel(ASKING, "Make rows of this task. Repeat it for more. Default: all three.")
    ] = None,
    steps: Annotated[
        str, _panel(ASKING, "How many steps a row has. With several numbers, such as 3,4,5, one is drawn.")
    ] = "4",
    rows_per_clip: Annotated[int, _panel(ASKING, "Rows of each task from one clip.", min=1)] = 1,
    order_distances: Annotated[
        str | None,
        _panel(
            ASKING,
            "Shares of the wrong orders by their Kendall distance (swaps of neighbours) to the right one, "
            "as in 1=0.34,2=0.33,3=0.33. Default: 1 in a third, the others equally often.",
        ),
    ] = None,
    gaps: Annotated[int, _panel(ASKING, "How many steps are missing in a next-frame row.", min=1, max=3)] = 1,
    free_form: Annotated[
        bool, _panel(ASKING, "Ask for orders without options, for rewards that give partial credit.")
    ] = False,
    negatives: Annotated[
        float, _panel(ASKING, "The share of rows whose answer is None of the choices provided.")
    ] = 0.2,
    mismatches: Annotated[
        float,
        _panel(
            ASKING,
            "The share of these whose text does not fit the pictures. The others lack the right option.",
        ),
    ] = 0.5,
    endpoint: Annotated[
        str | None,
        _panel(
            MODEL,
            "A model that judges and describes clips, at an OpenAI-compatible address such as "
            "http://localhost:8000/v1. OPENAI_API_KEY holds the key.",
        ),
    ] = None,
    model: Annotated[str | None, _panel(MODEL, "The model's name at --endpoint.")] = None,
    ask: Annotated[
        str, _panel(MODEL, "What the model does: one or more of judge, describe, contradict.")
    ] = "judge,describe,contradict",
    concurrency: Annotated[int, _panel(MODEL, "Requests at the same time.", min=1)] = 8,
    timeout: Annotated[float, _panel(MODEL, "Seconds to wait for an answer.", min=0.1)] = 120.0,
    retries: Annotated[
        int, _panel(MODEL, "Tries after errors 429 and 5xx, with longer and longer waits.", min=0)
    ] = 6,
    answers: Annotated[
        Path | None, _panel(MODEL, "Folder that keeps the model's answers. Default: OUT.answers")
    ] = None,
    split: Annotated[
        str | None,
        _panel(
            RESULT,
            "Divide the rows, as in train=0.95,test=0.05. Rows of one source group stay in one split.",
        ),
    ] = None,
    against: Annotated[
        str | None, _panel(RESULT, "Test rows. Clips that show one of their pictures are left out.")
    ] = None,
    drop: Annotated[
        Path | None, _panel(RESULT, "A file with ids of clips that give no rows, one a line.")
    ] = None,
    seed: Annotated[int, _panel(RESULT, "Seed of everything that is drawn at random.")] = 0,
    template: Annotated[str, _panel(RESULT, "Prompt template for the column `prompt`.")] = "tpru",
    audit: Annotated[
        bool, _panel(RESULT, "Look for shortcuts in the rows, and write the verdict into README.md.")
    ] = True,
    json_file: Annotated[
        Path | None, _panel(RESULT, "Write the manifest, with all counts, to this file, too.", name="--json")
    ] = None,
    engine: Annotated[
        BuildEngine, _panel(RESULT, "Work in processes of this machine, or with Ray Data on a cluster.")
    ] = BuildEngine.processes,
    workers: Annotated[int | None, _panel(RESULT, "Processes. Default: one a core.", min=1)] = None,
) -> None:
    """Make rows of the three tasks from sequences of frames.

    SOURCE is one of these:

    - videos, in a folder or one: `tpru build videos rows --every 1`

    - picture folders, each a sequence, ordered by the numbers in the names: `tpru build frames rows`

    - episodes, each a line of a jsonl file or an object of a json file: `tpru build episodes.jsonl rows`

    - a LeRobot data set, version 2 or 3, on disk or of the Hub: `tpru build robot rows`

    - a simulator: `tpru build sim:bricks rows --episodes 500 --split train=0.9,test=0.1`

    OUT gets shards for veRL and EasyR1, provenance.jsonl, manifest.json and README.md. What cannot be used is
    left out and listed in OUT/dropped.json. The exit code is 3 when something could not be read.

    A command that was interrupted continues when you run it again. The same source, options and seed give the
    same bytes.
    """
    from tpru_verl.builder.card import summary_of
    from tpru_verl.builder.crop import Cover
    from tpru_verl.builder.doubtful import names_in
    from tpru_verl.builder.filters import Filters
    from tpru_verl.builder.pipeline import build as work
    from tpru_verl.builder.stages import BuildOptions
    from tpru_verl.builder.tasks import TaskOptions
    from tpru_verl.builder.video import FrameSampling
    from tpru_verl.cores import available_cores
    from tpru_verl.data.commands import open_source, shares_of
    from tpru_verl.data.layout import DROPPED
    from tpru_verl.data.source.parts import files_of
    from tpru_verl.files import check_output, write_json
    from tpru_verl.terminal import OptionError, results

    check_output("--json", json_file, [Path(source), *files_of(against)])
    processes = workers or available_cores()
    settings = BuildOptions(
        FrameSampling(
            sampling.value, every, scene_change, max_side, cut, max(1, available_cores() // processes)
        ),
        Filters(min_contrast, min_sharpness, min_bits, min_change, max_foreign),
        TaskOptions(
            tuple(task or Task),
            _numbers(steps),
            rows_per_clip,
            gaps,
            free_form,
            negatives,
            mismatches,
            _distances(order_distances),
            min_order,
        ),
        clip_frames,
        shares_of(split),
        seed,
        template,
        episodes,
        Cover.read(crop, mask or ()),
        drop=tuple(sorted(names_in(drop))) if drop else (),
    )
    describer = None
    if endpoint:
        from tpru_verl.builder.describe import Describer

        if not model:
            raise OptionError("--model: found none, expected the model's name at --endpoint")
        describer = Describer(
            endpoint,
            model,
            cache=answers or out.absolute().with_name(f"{out.name}.answers"),
            asked=[name.strip() for name in ask.split(",")],
            concurrency=concurrency,
            timeout=timeout,
            retries=retries,
            key=os.environ.get("OPENAI_API_KEY", ""),
        )
    manifest = work(
        source,
        out,
        settings,
        describer=describer,
        against=open_source(against, answered=False) if against else None,
        audit=audit,
        with_engine=engine.value,
        workers=workers,
    )
    if json_file is not None:
        write_json(json_file, manifest)
    console = results()
    for part in summary_of(manifest, out):
        console.print(part, highlight=False, markup=False, soft_wrap=isinstance(part, str))
    if lost := manifest["left_out"].get("unreadable", 0):
        told = f"{source}: {lost} could not be read, listed in {out / DROPPED}; the rows are of the rest"
        typer.echo(told, err=True)
        raise typer.Exit(PARTLY)


def _distances(text: str | None) -> tuple[tuple[int, float], ...]:
    from tpru_verl.builder.wrong_orders import checked_shares
    from tpru_verl.terminal import OptionError

    if text is None:
        return ()
    try:
        pairs = [(int(distance), float(share)) for distance, share in (p.split("=") for p in text.split(","))]
    except ValueError:
        raise OptionError(
            f"--order-distances: found {text!r}, expected the form 1=0.34,2=0.33,3=0.33"
        ) from None
    shares = dict(pairs)
    if len(shares) < len(pairs):
        raise OptionError(f"--order-distances: found {text!r}, expected each distance once")
    return tuple(sorted(checked_shares(shares).items()))


def _numbers(text: str) -> tuple[int, ...]:
    from tpru_verl.terminal import OptionError

    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise OptionError(f"--steps: found {text!r}, expected numbers such as 4 or 3,4,5") from None
