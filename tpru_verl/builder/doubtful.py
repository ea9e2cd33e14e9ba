"""The page of clips whose visible order is near the threshold: a person says which ones to drop."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from tpru_verl.builder.clips import file_of, read_clip, read_images
from tpru_verl.builder.pictures import jpeg
from tpru_verl.data.images import thumbnail
from tpru_verl.data.view import sha256
from tpru_verl.files import write_text

PAGE = "clips.html"
NEAR = 0.1  # a visible order this near to the threshold is for a person to judge
MOST_CLIPS, MOST_FRAMES, SIDE = 200, 8, 160  # on the page, of a clip, pixels of a picture

_STYLE = "body{font-family:sans-serif;margin:2em}img{height:110px;margin:2px}label{font-weight:bold}"
# Nothing in the names can act: they are escaped, and the script reads the boxes' values alone.
_SCRIPT = """document.getElementById("save").onclick = () => {
  const names = [...document.querySelectorAll("input:checked")].map(box => box.value + "\\n");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(names, {type: "text/plain"}));
  link.download = "drop.txt";
  link.click();
};"""
# As on the other pages: no script but ours runs, and nothing is fetched.
_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    f"script-src 'sha256-{sha256(_SCRIPT)}'; base-uri 'none'; form-action 'none'"
)


class Measured(NamedTuple):
    """A clip: how far its order is from the threshold, its id, its place, its visible order."""

    distance: float
    id: str
    place: tuple[int, int]
    order: float


def write_page(path: Path, clips: Path, doubtful: Sequence[Measured], least: float) -> None:
    """Clips nearest to the threshold first, with pictures in their order, and a button that saves a list."""
    shown = sorted(doubtful)[:MOST_CLIPS]
    parts = [
        "<!doctype html><meta charset=utf-8><title>Clips near the threshold</title>",
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        f"<style>{_STYLE}</style><h1>Is the order of these pictures visible?</h1>",
        f"<p>{len(shown)} of {len(doubtful)} clips whose visible order is near {least:g}. Those below gave "
        "no reordering row. Tick the clips whose order nobody can see, save the list, and build again with "
        "<code>--drop drop.txt</code>.</p><button id=save>Save drop.txt</button>",
    ]
    for clip in shown:
        name = escape(clip.id)
        verdict = "kept" if clip.order >= least else "no row"
        parts.append(
            f'<p><label><input type=checkbox value="{name}"> {name}</label>: {clip.order:.2f}, {verdict}<br>'
        )
        parts += [
            f'<img src="data:image/jpeg;base64,{picture}" alt="">' for picture in _pictures(clips, clip)
        ]
        parts.append("</p>")
    write_text(path, "\n".join([*parts, f"<script>{_SCRIPT}</script>"]) + "\n")


def _pictures(clips: Path, clip: Measured) -> list[str]:
    path, number = file_of(clips, clip.place[0]), clip.place[1]
    frames = len(read_clip(path, number))
    places = sorted({round(i * (frames - 1) / (MOST_FRAMES - 1)) for i in range(MOST_FRAMES)})
    small = [thumbnail(data, SIDE) for data in read_images(path, number, places)]
    return [base64.b64encode(jpeg(picture)).decode() for picture in small]


def names_in(path: Path) -> set[str]:
    """The ids in a file of `--drop`, one a line. Raises OSError or ValueError for one that cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"--drop {path}: found no UTF-8 text, expected the id of a clip in each line"
        ) from error
    return {line.strip() for line in lines if line.strip()}
