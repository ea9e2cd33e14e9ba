"""Filters frames: leaves out blank and blurred ones, and those that hardly differ from the frame before.

Good thresholds depend on the source: a robot arm before a fixed camera changes few pixels, a cut changes all
of them. The manifest has the quantiles of both measures, which help to choose the thresholds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from tpru_verl.builder.clips import MAX_COMPARED, Clip, Counts, Frame, SourceItem, check_text, clip_id
from tpru_verl.builder.pictures import (
    FrameLook,
    alike,
    bits_between,
    change_between,
    in_common_format,
    look_at,
)
from tpru_verl.data.images import problem_of


@dataclass(frozen=True)
class Filters:
    """The thresholds. A threshold of 0 turns its filter off; the very same frame is never kept twice."""

    min_contrast: float = 4.0  # standard deviation of grey levels; below it a frame is blank
    min_sharpness: float = 12.0  # variance of the Laplacian of 128 pixels; below it a frame is blurred
    min_bits: int = 4  # of 256 of the perceptual hash; below it a frame is a duplicate of the one before
    min_change: float = 0.005  # share of pixels that change; below it the order of two frames is not visible
    # Frames of other clips are too easy beyond so many times the largest distance within the row's own clip.
    max_foreign: float = 1.25


@dataclass
class _Passed:
    """Frames that passed the filters and will become a clip."""

    frames: list[Frame]
    looks: list[FrameLook]


def clips_of(
    item: SourceItem,
    filters: Filters,
    counts: Counts,
    *,
    shortest: int,
    longest: int,
    leak_hash: bool = False,
) -> Iterator[tuple[Clip, list[bytes]]]:
    """Clips of `shortest` to `longest` frames that pass the filters, with their pictures.

    `counts` counts the frames that do not pass, and lists an item that gives no clip. Raises the errors of
    `item.frames`, and ValueError for a frame that cannot be read.
    """
    run, number, found = _Passed([], []), 0, 0
    before = dict(counts.dropped_frames)
    for frame in item.frames():
        counts.frames += 1
        found += 1
        frame, look = _look(item, frame, leak_hash)
        if reason := _reason(look, run, filters, counts):
            counts.dropped_frames[reason] = counts.dropped_frames.get(reason, 0) + 1
            continue
        if run.frames and frame.shot != run.frames[-1].shot:
            counts.cuts += 1
            if len(run.frames) >= shortest:
                yield _clip(item, number, run, counts)
                number += 1
            else:
                _leave(run, counts, "in short shots")
            run = _Passed([], [])
        if len(run.frames) == longest:
            yield _clip(item, number, run, counts)
            run, number = _Passed([], []), number + 1
        run.frames.append(frame)
        run.looks.append(look)
    if len(run.frames) >= shortest:
        yield _clip(item, number, run, counts)
    elif number == 0:
        lost = {name: n - before.get(name, 0) for name, n in counts.dropped_frames.items()}
        listed = ", ".join(f"{n} {name}" for name, n in sorted(lost.items()) if n)
        reason = "too few frames" if found < shortest else max(lost, key=lambda name: lost[name])
        detail = f"found {len(run.frames)} usable of {found} frames{f' ({listed})' * bool(listed)}"
        counts.dropped.append(
            {"id": item.id, "reason": reason, "detail": f"{detail}, expected at least {shortest}"}
        )
    else:
        _leave(run, counts, "left over")


def _leave(run: _Passed, counts: Counts, reason: str) -> None:
    counts.dropped_frames[reason] = counts.dropped_frames.get(reason, 0) + len(run.frames)


def _look(item: SourceItem, frame: Frame, leak_hash: bool) -> tuple[Frame, FrameLook]:
    """The frame in a format that trainers read, and its measures."""
    try:
        check_text(about=frame.about, text=frame.text)
        data = in_common_format(frame.data)
        if problem := problem_of(data):
            raise ValueError(problem)
        compared = [data, frame.uncovered] if frame.uncovered else [data]
        return replace(frame, data=data, uncovered=b""), look_at(data, compared if leak_hash else ())
    except ValueError as error:
        raise ValueError(f"{item.id}: {frame.place}: {error}") from error


def _reason(look: FrameLook, run: _Passed, filters: Filters, counts: Counts) -> str | None:
    """Why a frame is left out."""
    if look.contrast < filters.min_contrast:
        return "blank"
    if look.sharpness < filters.min_sharpness:
        return "blurred"
    if not run.looks:
        return None
    last = run.looks[-1]
    bits = int(bits_between(look.hash, last.hash))
    change = float(change_between(look.grey, last.grey))
    if len(counts.bits) < MAX_COMPARED:
        counts.bits.append(bits)
        counts.change.append(round(change, 5))
    if change == 0:
        return "frozen"
    if change < filters.min_change:
        return "too small a change"
    return "duplicate" if bits < filters.min_bits else None


def _clip(item: SourceItem, number: int, run: _Passed, counts: Counts) -> tuple[Clip, list[bytes]]:
    frames, looks = run.frames, run.looks
    form, images = alike([frame.data for frame in frames], item.id)
    counts.clips += 1
    counts.kept_frames += len(frames)
    clip = Clip(
        id=clip_id(item.id, number),
        item=item.id,
        scene=item.scene,
        group=item.group,
        about=frames[0].about,
        form=form,
        index=[frame.index for frame in frames],
        time=[frame.time for frame in frames],
        text=[frame.text for frame in frames],
        hash=np.stack([look.hash for look in looks]),
        grey=np.stack([look.grey for look in looks]),
        leak_hash=np.concatenate([look.leak_hash for look in looks]),
        size=[len(image) for image in images],
    )
    return clip, images
