"""Frames of videos and of LeRobot data: at their times, upright, and one line for what is broken."""

import io
import json
import struct
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageOps
from support.builds import Run, provenance
from support.frames import SIZE, Given, moment, stills, video
from support.lerobot import in_columns, v2, v3

from tpru_verl.builder import lerobot
from tpru_verl.builder.clips import Counts, Frame
from tpru_verl.builder.filters import Filters, clips_of
from tpru_verl.builder.video import FrameSampling, frames_of

EVEN = [i / 25 for i in range(150)]  # six seconds


def shown(frame: Frame) -> Image.Image:
    return Image.open(io.BytesIO(frame.data))


def apart(one: Image.Image, other: Image.Image) -> float:
    return float(
        np.abs(np.asarray(one.convert("L"), np.int16) - np.asarray(other.convert("L"), np.int16)).mean()
    )


def test_a_cut_ends_a_clip(tmp_path: Path) -> None:
    """Also where frames between key frames are not decoded."""
    shots = []
    for seed in range(3):
        path = video(tmp_path / f"{seed}.mp4", [i / 25 for i in range(100)], seed, key_every=25)
        with av.open(str(path)) as container:
            shots += [frame.to_image() for frame in container.decode(video=0)]
    with av.open(str(tmp_path / "all.mp4"), "w") as container:
        stream = container.add_stream("h264", rate=25, options={"g": "25", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = *shots[0].size, "yuv420p"
        for picture in shots:
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode(None))
    for every in (0.2, 1.6):
        found = [*frames_of(tmp_path / "all.mp4", FrameSampling(every=every))]
        assert {(frame.shot, int((frame.time or 0) / 4)) for frame in found} == {(0, 0), (1, 1), (2, 2)}
    assert {f.shot for f in frames_of(tmp_path / "all.mp4", FrameSampling(every=0.2, cut=0))} == {0}
    counts = Counts()
    item = Given([*frames_of(tmp_path / "all.mp4", FrameSampling(every=0.2))])
    clips = [clip for clip, _ in clips_of(item, Filters(), counts, shortest=4, longest=24)]
    assert [int((clip.time[0] or 0) / 4) for clip in clips] == [0, 1, 2]
    assert counts.cuts == 2


def test_even_times_and_what_is_seen_then(tmp_path: Path) -> None:
    frames = [*frames_of(video(tmp_path / "a.mp4", EVEN), FrameSampling(every=0.5))]
    assert [frame.time for frame in frames] == pytest.approx([i / 2 for i in range(12)], abs=0.03)
    for frame in frames:
        assert frame.time is not None
        assert apart(shown(frame), moment(0, frame.time / EVEN[-1])) < 6


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_jumping_to_key_frames_finds_the_same_frames(tmp_path: Path, suffix: str) -> None:
    path = video(tmp_path / f"a.{suffix}", [i / 25 for i in range(400)], key_every=10)
    jumping = [*frames_of(path, FrameSampling(every=2.5))]
    every = {frame.time: frame.data for frame in frames_of(path, FrameSampling(every=0.02))}
    assert len(jumping) == 7
    assert all(every[frame.time] == frame.data for frame in jumping)


def test_a_variable_frame_rate_is_read_by_its_times(tmp_path: Path) -> None:
    times = [0, 0.04, 0.08, 1.0, 1.04, 2.5, 2.54, 2.58, 4.0]
    frames = [*frames_of(video(tmp_path / "a.mp4", times), FrameSampling(every=0.5))]
    assert [frame.time for frame in frames] == pytest.approx([0, 1.0, 2.5, 4.0], abs=0.01)
    for frame in frames:
        assert frame.time is not None
        assert apart(shown(frame), moment(0, frame.time / 4.0)) < 6


def test_a_frame_s_index_counts_frames_where_the_rate_varies(tmp_path: Path) -> None:
    times = [0, 0.04, 0.08, 1.0, 1.04, 2.5, 2.54, 2.58, 4.0]
    path = video(tmp_path / "a.mp4", times)
    for sampling in (FrameSampling(every=0.5), FrameSampling("scene", every=0.5, scene_change=0.001)):
        assert [frame.index for frame in frames_of(path, sampling)] == [0, 3, 5, 8]


def test_a_frame_has_no_index_where_frames_before_it_were_not_read(tmp_path: Path) -> None:
    path = video(tmp_path / "a.mp4", [i / 25 for i in range(200)], key_every=25)
    indices = [frame.index for frame in frames_of(path, FrameSampling(every=3))]
    assert indices == [0, None, None]
    assert {frame.index for frame in frames_of(path, FrameSampling("keyframes", every=1))} == {None}


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_even_times_count_from_the_first_frame(tmp_path: Path, suffix: str) -> None:
    begin = 50.0
    path = video(tmp_path / f"a.{suffix}", [begin + i / 25 for i in range(150)], length=begin + 6)
    frames = [*frames_of(path, FrameSampling(every=2.3))]
    times = [frame.time or 0 for frame in frames]
    assert np.diff(times).tolist() == pytest.approx([2.3, 2.3], abs=0.041)
    assert frames[0].index == 0


ONE = 1 << 16
# The display matrix (a, b, c, d), and what it makes of a picture that is stored upright.
MATRICES = {
    "a quarter turn": ((0, ONE, -ONE, 0), lambda image: image.rotate(-90, expand=True)),
    "a quarter turn back": ((0, -ONE, ONE, 0), lambda image: image.rotate(90, expand=True)),
    "a half turn": ((-ONE, 0, 0, -ONE), lambda image: image.rotate(180)),
    "a mirror": ((-ONE, 0, 0, ONE), ImageOps.mirror),
    "upside down": ((ONE, 0, 0, -ONE), ImageOps.flip),
    "a mirror and a turn": ((0, ONE, ONE, 0), lambda image: ImageOps.mirror(image.rotate(-90, expand=True))),
    "a flip and a turn": ((0, -ONE, -ONE, 0), lambda image: ImageOps.mirror(image.rotate(90, expand=True))),
}


def turned(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """The same mp4 with a display matrix in its track header (ISO 14496-12, `tkhd`)."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    a, b, c, d = matrix
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("kind", MATRICES)
def test_a_display_matrix_turns_and_mirrors_the_picture(tmp_path: Path, kind: str) -> None:
    matrix, change = MATRICES[kind]
    (first, *_) = frames_of(turned(video(tmp_path / "a.mp4", EVEN[:20]), matrix), FrameSampling(every=0.5))
    expected = change(moment(0, 0))
    assert shown(first).size == expected.size
    assert apart(shown(first), expected) < 6
    assert all(apart(shown(first), other(expected)) > 6 for other in (ImageOps.mirror, ImageOps.flip))


def test_frames_are_scaled_to_the_longest_side(tmp_path: Path) -> None:
    (first, *_) = frames_of(video(tmp_path / "a.mp4", EVEN[:5]), FrameSampling(max_side=64))
    assert shown(first).size == (64, 48)


def test_scene_sampling_takes_what_has_changed(tmp_path: Path) -> None:
    import av

    path = tmp_path / "slides.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", rate=10)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for number in range(40):
            frame = av.VideoFrame.from_image(moment(number // 10, 0.3))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    frames = [*frames_of(path, FrameSampling("scene", every=0.2))]
    assert [round(frame.time or 0) for frame in frames] == [0, 1, 2, 3]
    keys = [*frames_of(path, FrameSampling("keyframes", every=0.1))]
    assert 1 <= len(keys) < 40


def test_broken_videos_are_listed_and_the_rest_is_kept(
    build: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "in" / "kitchen"
    folder.mkdir(parents=True)
    sound = video(folder / "sound.mp4", EVEN)
    data = sound.read_bytes()
    (folder / "empty.mp4").touch()
    (folder / "noise.mp4").write_bytes(bytes(range(256)) * 40)
    (folder / "cut.mp4").write_bytes(data[: len(data) // 2])
    (folder / "unknown.mp4").write_bytes(data.replace(b"avc1", b"zzzz"))
    (folder / "playlist.mp4").write_text("ffconcat version 1.0\nfile 'sound.mp4'\n")
    video(folder / "short.mp4", EVEN[:3])
    manifest = build(tmp_path / "in", "out", "--every", "0.25")
    assert manifest["clips"] == 1
    assert manifest["rows"]["written"] == 3
    assert manifest["left_out"] == {"too few frames": 1, "unreadable": 5}
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("left out")]
    assert len(lines) == 6
    assert "1 more" in lines[-1]
    details = {
        entry["id"]: entry["detail"] for entry in json.loads((tmp_path / "out/dropped.json").read_text())
    }
    names = ("empty", "noise", "cut", "playlist", "short", "unknown")
    assert {*details} == {f"kitchen/{name}.mp4" for name in names}
    assert "expected at least 4" in details["kitchen/short.mp4"]
    assert "found a codec that is not known" in details["kitchen/unknown.mp4"]
    frames = [frame for line in provenance(tmp_path / "out").values() for frame in line["frames"]]
    assert all(frame["index"] == pytest.approx(25 * frame["time"], abs=1) for frame in frames)


def test_long_videos_become_several_clips_of_one_group(build: Run, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    video(tmp_path / "in/a.mp4", [i / 10 for i in range(300)])
    manifest = build(tmp_path / "in", "out", "--every", "0.5", "--clip-frames", "20")
    assert manifest["clips"] == 3
    lines = provenance(tmp_path / "out").values()
    assert {line["clip"] for line in lines} == {"a.mp4", "a.mp4#1", "a.mp4#2"}
    assert {line["group"] for line in lines} == {"a.mp4"}


def test_folders_whose_names_look_like_clips_are_items_of_their_own(build: Run, tmp_path: Path) -> None:
    for mark in "_#":
        for take in range(8):
            stills(tmp_path / f"in{mark}/s/take{mark}{take}", take, frames=4)
        rows = build(tmp_path / f"in{mark}", f"out{mark}", "--max-foreign", 0)["rows"]["written"]
        assert rows == 24  # each borrows wrong frames of the others


def test_no_folder_has_the_id_of_a_clip_of_another_one(build: Run, tmp_path: Path) -> None:
    for take, frames in (("take", 30), ("take#1", 8), ("take#2", 8)):
        stills(tmp_path / "in/s" / take, len(take), frames)
    manifest = build(tmp_path / "in", "out", "--clip-frames", 12, "--min-change", 0, "--min-bits", 0)
    assert (manifest["clips"], manifest["left_out"]) == (5, {})
    clips = {line["clip"] for line in provenance(tmp_path / "out").values()}
    assert clips >= {"s/take", "s/take#1", "s/take#1#0", "s/take#2#0"}
    (tmp_path / "drop.txt").write_text("s/take#1#0\ns/take#1\n")
    manifest = build(tmp_path / "in", "new", "--clip-frames", 12, "--drop", tmp_path / "drop.txt")
    assert manifest["left_out"] == {"--drop": 2}


@pytest.mark.parametrize("make", [v2, v3, in_columns])
def test_lerobot_data_sets_are_read_by_episode(make, build: Run, tmp_path: Path) -> None:
    root = make(tmp_path / "robot")
    first, second = lerobot.episodes_of(root, FrameSampling(every=0.2))
    times = [round(frame.time or 0, 2) for frame in second.frames()]
    begin = 3.0 if make is v3 else 0.0
    assert times == pytest.approx([begin + i / 5 for i in range(15)], abs=0.03)
    assert isinstance(first, lerobot.Recorded)
    assert isinstance(second, lerobot.Recorded)
    assert (first.about, second.about) == ("do 0", "do 1")
    manifest = build(root, "out", "--every", "0.2")
    assert manifest["clips"] == 2


def test_lerobot_data_that_is_broken_is_one_line(build: Run, tmp_path: Path) -> None:
    root = v2(tmp_path / "robot")
    (root / "videos/chunk-000/observation.images.top/episode_000001.mp4").unlink()
    manifest = build(root, "out", "--every", "0.2")
    assert (manifest["clips"], manifest["left_out"]) == (1, {"unreadable": 1})
    assert "found no file videos/chunk-000" in (tmp_path / "out/dropped.json").read_text()
    (root / "meta/info.json").write_text("{}")
    with pytest.raises(SystemExit) as stop:
        build(root)
    assert "not readable as a LeRobot data set" in str(stop.value.code)
