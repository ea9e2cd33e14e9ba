"""`--every` for pictures, `--crop` and `--mask`, episodes of a json file, and data sets of the Hub."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.builds import Run, provenance
from support.frames import encoded, moment, scenes
from support.hub import hub
from support.lerobot import v3
from support.results import read

from tpru_verl.builder.crop import Cover
from tpru_verl.builder.pictures import look_at


def pictures(folder: Path) -> list[Image.Image]:
    return [Image.open(io.BytesIO(cell["bytes"])) for row in read(folder) for cell in row["images"]]


def indices(folder: Path) -> set[int]:
    return {frame["index"] for line in provenance(folder).values() for frame in line["frames"]}


def episode(folder: Path, take: int, frames: int = 8, **more: object) -> dict[str, object]:
    names = [f"{take}-{n}.png" for n in range(frames)]
    for n, name in enumerate(names):
        (folder / name).write_bytes(encoded(moment(take, n / (frames - 1)), "PNG"))
    return {"images": names, **more}


def test_every_nth_picture_of_a_folder(
    build: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = scenes(tmp_path / "in", takes=4, frames=16)
    assert build(source, "out", "--every", 2)["frames"]["read"] == 4 * 8
    assert indices(tmp_path / "out") <= set(range(0, 16, 2))
    with pytest.raises(SystemExit) as stop:
        build(source, "other", "--every", 0.5)
    assert "--every: found 0.5, expected a whole number for pictures" in capsys.readouterr().err
    assert stop.value.code == 2
    with pytest.raises(SystemExit) as stop:
        build("sim:bricks", "other", "--every", 2)
    assert "--every: found 2 for sim:bricks, expected no such option" in capsys.readouterr().err
    assert stop.value.code == 2


@pytest.mark.parametrize("whole", [False, True])
def test_episodes_of_a_json_file(build: Run, tmp_path: Path, whole: bool) -> None:
    path = tmp_path / "episodes.json"
    texts = [f"step {n}" for n in range(8)]
    found = [episode(tmp_path, take, id=f"e{take}", texts=texts) for take in range(1 if whole else 4)]
    path.write_text(json.dumps(found[0] if whole else found))
    manifest = build(path, "out", "--negatives", 0)
    assert manifest["clips"] == len(found)
    lines = provenance(tmp_path / "out").values()
    assert {frame["text"] for line in lines for frame in line["frames"]} <= {*texts}


def test_the_texts_of_steps_do_not_tell_their_order(build: Run, tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    said = ["open the lid", "pour water", "stir twice", "close it", "wipe", "put away", "wash", "rest"]
    lines = [episode(tmp_path, take, texts=said) for take in range(4)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    build(path)
    for row in read(tmp_path / "out"):
        assert not [text for text in said if text in row["problem"]]


def test_bad_episodes_of_a_json_file_are_told(build: Run, tmp_path: Path) -> None:
    path = tmp_path / "episodes.json"
    for text, message in (("[", "not readable as json"), ("[]", "found an empty file"), ("", "not readable")):
        path.write_text(text)
        with pytest.raises(SystemExit) as stop:
            build(path)
        assert message in str(stop.value.code)
    path.write_text(json.dumps([episode(tmp_path, 0), 3]))
    assert build(path)["left_out"] == {"unreadable": 1}
    assert "episodes.json:1 (episode 2): found int" in (tmp_path / "out/dropped.json").read_text()


def test_edges_are_cut_and_boxes_are_covered(build: Run, tmp_path: Path) -> None:
    source = scenes(tmp_path / "in", takes=4)
    build(source, "out", "--crop", "0,0.25,8,0", "--mask", "0,0.5,0.1,1")
    for picture in pictures(tmp_path / "out"):
        assert picture.size == (120, 72)
        box = np.asarray(picture.convert("RGB"), int)[26:, :10]  # from half of 96, less the 24 that were cut
        assert np.abs(box - 128).max() < 20
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["settings"]["cover"] == {"crop": [0, 0.25, 8, 0], "masks": [[0, 0.5, 0.1, 1]]}
    with pytest.raises(SystemExit) as stop:
        build(source, "none", "--crop", "0.5,0,0.5,0")
    assert "found 0.5,0,0.5,0 for a picture of 128 x 96, expected to leave 28 pixels" in str(stop.value.code)


@pytest.mark.parametrize("cover", [(), ("--crop", "0,0,2,0")])
def test_transparent_ground_becomes_white(build: Run, tmp_path: Path, cover: tuple[str, ...]) -> None:
    source = scenes(tmp_path / "in", takes=2)
    for path in source.rglob("*.jpg"):
        picture = Image.open(path).convert("RGBA")
        picture.paste((0, 0, 0, 0), (0, 80, 128, 96))
        path.unlink()
        path.with_suffix(".png").write_bytes(encoded(picture, "PNG"))
    assert build(source, "out", *cover)["left_out"] == {}
    for picture in pictures(tmp_path / "out"):
        assert np.asarray(picture.convert("L"))[84:].min() > 245
    (path, *_) = source.rglob("*.png")
    assert look_at(path.read_bytes()).grey[-6:].min() == 255


UNFIT = {
    "an animation": (
        encoded(moment(0, 0.2), "GIF", save_all=True, append_images=[moment(1, 0.5)]),
        "3.gif",
        "found an animation",
    ),
    "print colours": (encoded(moment(0, 0.2).convert("CMYK")), "3.jpg", "found print colours"),
    "16 bits": (encoded(moment(0, 0.2).convert("I;16"), "PNG"), "3.png", "found 16-bit grey"),
    "16 bits of a TIFF": (encoded(moment(0, 0.2).convert("I;16"), "TIFF"), "3.tif", "found 16-bit grey"),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_a_picture_that_is_unfit_is_refused_with_and_without_a_crop(
    build: Run, tmp_path: Path, kind: str
) -> None:
    data, name, said = UNFIT[kind]
    source = scenes(tmp_path / "in", takes=2)
    (source / "scene0/take0/3.jpg").unlink()
    (source / "scene0/take0" / name).write_bytes(data)
    for cover in ((), ("--crop", "0,0,2,0"), ("--mask", "0,0,0.1,0.1")):
        assert build(source, "out", *cover)["left_out"] == {"unreadable": 1}
        assert said in (tmp_path / "out/dropped.json").read_text()


@pytest.mark.parametrize(
    ("crop", "masks", "message"),
    [
        ("1,2,3", (), "--crop: found '1,2,3', expected four numbers"),
        ("a,0,0,0", (), "expected four numbers"),
        ("-1,0,0,0", (), "from 0"),
        ("nan,0,0,0", (), "from 0"),
        (None, ["10,0,5,5"], "--mask: found '10,0,5,5', expected RIGHT over LEFT"),
    ],
)
def test_boxes_that_are_none(crop: str | None, masks: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Cover.read(crop, masks)


def test_a_lerobot_data_set_of_the_hub(tmp_path: Path) -> None:
    """The real `huggingface_hub`, asking a Hub of this machine; what other cameras saw is not loaded."""
    root = v3(tmp_path / "robot")
    (root / "videos/observation.images.wrist").mkdir(parents=True)
    (root / "videos/observation.images.wrist/other.mp4").write_bytes(b"other")
    home = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0", "NO_PROXY": "*", "no_proxy": "*"}

    def tpru(address: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from tpru_verl.cli import main; main()", "build"]
        command += [*map(str, arguments), "--no-audit", "--workers", "1"]
        environment = {**os.environ, **home, "HF_ENDPOINT": address, **environment}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    with hub("org/robot", {"main": root}) as address:
        done = tpru(address, "org/robot", tmp_path / "out")
        other = tpru(address, "org/other", tmp_path / "other")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert (manifest["clips"], sum(manifest["rows"]["scenes"]["train"].values())) == (2, 6)
    assert not [*(tmp_path / "home").rglob("other.mp4")]
    assert other.stderr.splitlines()[-1].startswith("tpru: org/other: no file or folder of this name")
    again = tpru(address, "org/robot", tmp_path / "out", HF_HUB_OFFLINE="1")  # from the cache
    assert again.returncode == 0, again.stderr
    none = tpru(address, "org/other", tmp_path / "other", HF_HUB_OFFLINE="1")
    said = (
        "tpru: org/other: found no such folder, and HF_HUB_OFFLINE is set; download it, and give its folder"
    )
    assert none.stderr.splitlines()[-1] == said
