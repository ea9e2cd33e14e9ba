"""Reads frames of a video file with PyAV: at even times, at changes of the picture, or key frames."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from tpru_verl.builder.clips import GREY, Frame
from tpru_verl.builder.pictures import change_between, jpeg
from tpru_verl.data.images import MAX_PIXELS
from tpru_verl.terminal import needs

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.reformatter import VideoReformatter
    from av.video.stream import VideoStream

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".flv")
# Containers that name other files (playlists, concatenations) could lead out of the folder given.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv"
WORTH_A_SEEK = 1.0  # a jump to a later key frame has to save decoding this many seconds of video
FRAMES_AIMED_AT = 24  # frames of a short video, where the user sets no distance
SHORTEST, LONGEST = 0.2, 2.0  # seconds between frames, where the user sets none


@dataclass(frozen=True)
class FrameSampling:
    """Which frames of a video are read, and how they are stored.

    `how` is `uniform`, `scene` (whenever the picture has changed) or `keyframes`; `every` is the least
    distance in seconds, None for one that suits the length; pictures get at most `max_side` pixels a side.
    """

    how: str = "uniform"
    every: float | None = None
    scene_change: float = 0.2  # share of pixels that have to change, for `scene`
    max_side: int = 640
    threads: int = field(default=1, repr=False)  # decides no byte of the result


def frames_of(
    path: Path, sampling: FrameSampling, *, start: float = 0.0, end: float | None = None, about: str = ""
) -> Iterator[Frame]:
    """Sampled frames from `start` to `end` seconds, upright, as JPEG.

    Times come from the file, so a variable frame rate is read correctly. Raises ValueError, in one line, for
    a file that is not a whole video.
    """
    try:
        import av
        import av.error
    except ImportError:
        raise needs("build", "av", "a video") from None
    try:
        options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
        with av.open(str(path), options=options) as container:
            if not container.streams.video:
                raise ValueError(f"{path}: found no video stream, expected one")
            yield from _sampled(container, sampling, start, end, about)
    except av.error.FFmpegError as error:
        size = path.stat().st_size if path.is_file() else 0
        reason = error.strerror or type(error).__name__
        raise ValueError(f"{path}: found {size} bytes that are no whole video ({reason})") from error


def _sampled(
    container: InputContainer, sampling: FrameSampling, start: float, end: float | None, about: str
) -> Iterator[Frame]:
    from av.video.reformatter import VideoReformatter

    stream = container.streams.video[0]
    context = stream.codec_context
    if context is None:  # PyAV's types leave this out
        raise ValueError(f"{container.name}: found a codec that is not known, expected one of FFmpeg's")
    if not 0 < context.width * context.height <= MAX_PIXELS:
        found = f"{context.width} x {context.height} pixels"
        raise ValueError(f"{container.name}: found {found}, expected 1 to {MAX_PIXELS} in all")
    context.thread_count = sampling.threads
    context.thread_type = "AUTO"
    every = sampling.every or _distance(container, stream, start, end)
    if sampling.how == "keyframes":
        context.skip_frame = "NONKEY"
    rate, aspect = float(stream.average_rate or 0), float(stream.sample_aspect_ratio or 1)
    jumps = _Jumps(container, stream) if sampling.how == "uniform" else None
    # One each: a reformatter makes its tables anew whenever it is asked for another form.
    reformatter, to_grey = VideoReformatter(), VideoReformatter()
    last: np.ndarray | None = None
    for frame in _evenly(container, stream, every, start, end, jumps):
        if sampling.how == "scene":
            grey = np.asarray(to_grey.reformat(frame, GREY, GREY, "gray").to_ndarray(), np.uint8)
            if last is not None and change_between(grey, last) < sampling.scene_change:
                continue
            last = grey
        picture = _upright(frame, reformatter, sampling.max_side, aspect)
        yield Frame(jpeg(picture), round((frame.time or 0) * rate), frame.time, about=about)


def _distance(container: InputContainer, stream: VideoStream, start: float, end: float | None) -> float:
    length = (end - start) if end is not None else 0.0
    if not length and stream.duration and stream.time_base:
        length = float(stream.duration * stream.time_base) - start
    elif not length and container.duration:
        length = container.duration / 1e6 - start
    return min(max(length / FRAMES_AIMED_AT, SHORTEST), LONGEST)


class _Jumps:
    """The key frames where decoding may begin. In a file without an index all frames are decoded."""

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        self._container, self._stream = container, stream
        base = float(stream.time_base or 0)
        self._starts = [entry.timestamp * base for entry in stream.index_entries if entry.is_keyframe]

    def towards(self, time: float, now: float) -> bool:
        """Jump to the last key frame before `time` where that saves enough decoding. Return whether."""
        at = bisect_right(self._starts, time) - 1
        if at < 0 or self._starts[at] - now < WORTH_A_SEEK or not self._stream.time_base:
            return False
        self._container.seek(round(self._starts[at] / self._stream.time_base), stream=self._stream)
        return True


def _evenly(
    container: InputContainer,
    stream: VideoStream,
    every: float,
    start: float,
    end: float | None,
    jumps: _Jumps | None,
) -> Iterator[VideoFrame]:
    """The first frame at or after each of `start`, `start + every`, ..."""
    step, now = 0, 0.0
    while True:
        if jumps:
            jumps.towards(start + step * every, now)
        for frame in container.decode(stream):
            if frame.time is None:
                continue
            now = frame.time
            if end is not None and now >= end - 1e-6:
                return
            if now + 1e-6 < start + step * every:
                continue
            step = int((now + 1e-6 - start) / every) + 1
            yield frame
            if jumps and jumps.towards(start + step * every, now):
                break
        else:
            return


def _upright(frame: VideoFrame, reformatter: VideoReformatter, max_side: int, aspect: float) -> Image.Image:
    """The frame as a player shows it: scaled, upright, with square pixels. `aspect` is a pixel's."""
    width, height = frame.width * aspect, float(frame.height)
    scale = min(1.0, max_side / max(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    pixels = reformatter.reformat(frame, *size, "rgb24").to_ndarray()
    picture = Image.fromarray(pixels)
    return picture.rotate(frame.rotation, expand=True) if frame.rotation else picture
