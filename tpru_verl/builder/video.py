"""Reads frames of a video file with PyAV: at even times, at changes of the picture, or key frames."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
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
SCORED = 0.1  # seconds between frames that are compared to find cuts
ACROSS_A_JUMP = 0.4  # scene score of two frames with unread ones in between that says: there was a cut
WORTH_A_SEEK = 1.0  # a jump to a later key frame has to save decoding this many seconds of video
FRAMES_AIMED_AT = 24  # frames of a short video, where the user sets no distance
SHORTEST, LONGEST = 0.2, 2.0  # seconds between frames, where the user sets none
# What a display matrix (ISO 14496-12, `tkhd`) does, by the signs of a to d: x becomes ax + cy, y bx + dy.
_TURNS = {
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}


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
    cut: float = 0.2  # FFmpeg's scene score, 0 to 1, from which two frames belong to two shots; 0: no cuts
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
    aspect = float(stream.sample_aspect_ratio or 1)
    jumps = _Jumps(container, stream) if sampling.how == "uniform" else None
    # One each: a reformatter makes its tables anew whenever it is asked for another form.
    reformatter, to_grey = VideoReformatter(), VideoReformatter()
    last: np.ndarray | None = None
    shots = _Shots(stream, sampling.cut if sampling.how != "keyframes" else 0)
    for number, frame in _evenly(container, stream, every, start, end, jumps, shots):
        if sampling.how == "scene":
            grey = np.asarray(to_grey.reformat(frame, GREY, GREY, "gray").to_ndarray(), np.uint8)
            if last is not None and change_between(grey, last) < sampling.scene_change:
                continue
            last = grey
        picture = _upright(frame, reformatter, sampling.max_side, aspect)
        index = number if sampling.how != "keyframes" else None  # of which the others are not read
        yield Frame(jpeg(picture), index, frame.time, about=about, shot=shots.number)


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


class _SceneFilter:
    """FFmpeg's filter `select`, which lets frames through whose scene score is over the threshold."""

    def __init__(self, stream: VideoStream, threshold: float) -> None:
        from av.filter import Graph

        self._graph = Graph()  # without it the parts below point to freed memory
        asked = (("scale", "128:72:flags=neighbor"), ("select", f"gt(scene,{threshold})"), ("buffersink", ""))
        line = [self._graph.add_buffer(template=stream), *(self._graph.add(*part) for part in asked)]
        for one, other in pairwise(line):
            one.link_to(other)
        self._graph.configure()
        self._first, self._last = line[0], line[-1]

    def passes(self, frame: VideoFrame) -> bool:
        self._first.push(frame)
        try:
            self._last.pull()
        except (BlockingIOError, EOFError):
            return False
        return True


class _Shots:
    """Counts the cuts between shots, by FFmpeg's scene score.

    The score is the mean difference of two frames, or how much more it is than the one before: steady motion
    scores low. Frames less than SCORED apart are not scored, so this costs little beside decoding.
    """

    def __init__(self, stream: VideoStream, threshold: float) -> None:
        self.number = 0
        self._stream, self._threshold = stream, threshold
        self._filter: _SceneFilter | None = None
        self._last: VideoFrame | None = None

    def see(self, frame: VideoFrame, *, wanted: bool, jumped: bool) -> None:
        """Score the frame if it is `wanted` or far enough from the last one that was scored.

        What lies between two frames with a jump in between is not known, so they have to differ more.
        """
        last = self._last
        if not self._threshold:
            return
        if not (wanted or jumped) and last and (frame.time or 0) - (last.time or 0) < SCORED:
            return
        if jumped and last:
            across = _SceneFilter(self._stream, ACROSS_A_JUMP)
            across.passes(last)
            self.number += across.passes(frame)
            self._filter = None
        self._filter = self._filter or _SceneFilter(self._stream, self._threshold)
        self.number += self._filter.passes(frame)
        self._last = frame


def _evenly(
    container: InputContainer,
    stream: VideoStream,
    every: float,
    start: float,
    end: float | None,
    jumps: _Jumps | None,
    shots: _Shots,
) -> Iterator[tuple[int | None, VideoFrame]]:
    """The first frame from `start` on, and the first at or after each `every` seconds from that one.

    Beside each is its number in the file, None once frames were jumped over.
    """
    first: float | None = None  # many files do not begin at 0
    number: int | None = -1
    due, now = start, 0.0
    while True:
        jumped = bool(jumps and jumps.towards(due, now))
        number = None if jumped else number
        for frame in container.decode(stream):
            number = None if number is None else number + 1
            if frame.time is None:
                continue
            now = frame.time
            if end is not None and now >= end - 1e-6:
                return
            wanted = now + 1e-6 >= due
            shots.see(frame, wanted=wanted, jumped=jumped)
            jumped = False
            if not wanted:
                continue
            first = now if first is None else first
            due = first + every * (int((now + 1e-6 - first) / every) + 1)
            yield number, frame
            if jumps and jumps.towards(due, now):
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
    turn = _turn(frame)
    if turn is not None:
        return picture.transpose(turn)
    return picture.rotate(frame.rotation, expand=True) if frame.rotation else picture


def _turn(frame: VideoFrame) -> Image.Transpose | None:
    """The quarter turn or mirroring that the display matrix asks for; None for none, and for other angles."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return None
    a, b, _, c, d, *_ = np.frombuffer(bytes(matrix), np.int32).tolist()
    least = max(map(abs, (a, b, c, d))) / 50  # a degree: sine and cosine are rounded
    return _TURNS.get(tuple((value > least) - (value < -least) for value in (a, b, c, d)))
