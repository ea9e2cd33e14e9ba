"""Pictures, videos and clips for tests of the builder: a square that travels before a ground of its own."""

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import ClassVar

import av
import numpy as np
from PIL import Image, ImageDraw

from tpru_verl.builder.clips import Clip, Frame

SIZE = (128, 96)


def moment(seed: int, progress: float, size: tuple[int, int] = SIZE) -> Image.Image:
    """The square at `progress` (0 to 1) of its way; ground and colours depend on the seed."""
    rng = np.random.default_rng(seed)
    ground = Image.fromarray(rng.integers(0, 200, (4, 5, 3), dtype=np.uint8))
    image = ground.resize(size, Image.Resampling.BICUBIC)
    left, top = progress * (size[0] - 30), size[1] * 0.3 + 20 * progress
    colour = (250, int(rng.integers(150, 250)), int(rng.integers(0, 100)))
    canvas = ImageDraw.Draw(image)
    canvas.rectangle((left, top, left + 28, top + 28), colour, outline=(0, 0, 0))
    canvas.line((left, top, left + 28, top + 28), (0, 0, 0), 2)
    return image


def encoded(image: Image.Image, format: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def stills(folder: Path, seed: int, frames: int = 10) -> Path:
    """A folder of JPEGs named 1.jpg to N.jpg."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(frames):
        data = encoded(moment(seed, number / (frames - 1)), quality=90)
        (folder / f"{number + 1}.jpg").write_bytes(data)
    return folder


def scenes(root: Path, takes: int = 8, frames: int = 10) -> Path:
    """Two scenes with folders of stills."""
    for take in range(takes):
        stills(root / f"scene{take % 2}" / f"take{take}", take, frames)
    return root


def video(
    path: Path, times: Sequence[float], seed: int = 0, length: float = 0.0, key_every: int = 12
) -> Path:
    """An H.264 file with a frame at each of `times` (seconds); progress is the time's share of `length`."""
    length = length or times[-1]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", rate=25, options={"g": str(key_every), "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for time in times:
            frame = av.VideoFrame.from_image(moment(seed, time / length))
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


class Given:
    """An item whose frames are at hand."""

    usual_frames: ClassVar[int] = 4

    def __init__(self, frames: Sequence[Frame], name: str = "item") -> None:
        self.id, self.scene, self.group = name, "scene", name
        self._frames = frames

    def files(self) -> list[Path]:
        return []

    def frames(self):
        return iter(self._frames)


def clip(frames: int, seed: int = 0, about: str = "", name: str = "") -> Clip:
    """A clip whose frames differ clearly; nothing is encoded."""
    rng = np.random.default_rng(seed)
    return Clip(
        id=name or f"clip-{seed}",
        item=name.partition("#")[0] or f"clip-{seed}",
        scene="scene",
        group=name or f"clip-{seed}",
        about=about,
        form="JPEG",
        index=list(range(frames)),
        time=[None] * frames,
        text=[""] * frames,
        hash=rng.integers(0, 256, (frames, 32), dtype=np.uint8) & np.uint8(0x33),
        grey=rng.integers(0, 256, (frames, 64, 64), dtype=np.uint8),
        leak_hash=np.zeros(0, np.uint64),
        size=[int(size) for size in rng.integers(1000, 2000, frames)],
    )


def screens(tasks: int = 12, seed: int = 0) -> list[tuple[list[str], list[Image.Image]]]:
    """Phone screens of tasks that share screens; a clock and a battery in each status bar run on.

    Each task is the names of what its screens show, and the pictures.
    """
    rng = np.random.default_rng(seed)
    made: list[tuple[list[str], list[Image.Image]]] = []
    for task in range(tasks):
        names = ["home", f"app {task % 3}", f"list {task % 4}", f"item {task}", f"done {task}", "home"]
        minute = int(rng.integers(600))
        pictures: list[Image.Image] = []
        for name in names:
            minute += int(rng.integers(1, 3))
            pictures.append(screen(name, minute))
        made.append((names, pictures))
    return made


def screen(name: str, minute: int) -> Image.Image:
    look = np.random.default_rng([*name.encode()])
    image = Image.new("RGB", (216, 432), (245, 245, 245))
    canvas = ImageDraw.Draw(image)
    canvas.rectangle((0, 0, 216, 22), (20, 20, 20))
    canvas.text((6, 5), f"{9 + minute // 60:02d}:{minute % 60:02d}", "white")
    canvas.rectangle((170, 6, 174 + minute * 7 % 36, 16), (120, 220, 120))
    for _ in range(8):
        left, top = int(look.integers(10, 120)), int(look.integers(40, 330))
        canvas.rectangle((left, top, left + 70, top + 60), tuple(int(c) for c in look.integers(0, 200, 3)))
    return image
