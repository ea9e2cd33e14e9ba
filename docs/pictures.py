"""Draw docs/pictures/*.webp: pages of the tools as Chromium shows them, for README and docs/.

    python docs/pictures.py                                   # gallery.webp, of rows that `tpru build` makes
    python docs/pictures.py --run outputs/RUN                 # report.webp
    python docs/pictures.py --evaluation outputs/eval/MODEL   # evaluation.webp

`make pictures` calls it, and draws the README's picture (docs/picture.py). Needs Chromium.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from tpru_verl.files import write_bytes

FOLDER = Path(__file__).parent / "pictures"
LARGEST = 150_000  # bytes
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def tpru(*arguments: object) -> None:
    command = [sys.executable, "-c", "from tpru_verl.cli import main; main()", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def shot(page: Path, size: tuple[int, int]) -> Image.Image:
    """The upper part of a page, `size` in CSS pixels."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not browser:
        sys.exit(f"found none of {', '.join(BROWSERS)}, expected Chromium")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "shot.png")
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--window-size={size[0]},{size[1]}", f"--screenshot={file}", page.absolute().as_uri()]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL, timeout=120)
        with Image.open(file) as image:
            return image.convert("RGB")


def write(name: str, image: Image.Image) -> None:
    for quality in (85, 70, 55, 40):
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=quality, method=6)
        if buffer.tell() <= LARGEST:
            break
    FOLDER.mkdir(exist_ok=True)
    write_bytes(FOLDER / f"{name}.webp", buffer.getvalue())
    print(f"{FOLDER / name}.webp: {buffer.tell() // 1000} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run", type=Path, help="the folder of a run")
    parser.add_argument("--evaluation", type=Path, help="the --out of a finished `tpru eval`")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        page = Path(name, "page.html")
        if asked.run:
            tpru("report", asked.run, "--out", page)
            write("report", shot(page, (1100, 1300)))
        if asked.evaluation:
            write("evaluation", shot(asked.evaluation / "page.html", (1100, 900)))
        if not (asked.run or asked.evaluation):
            tpru("build", "sim:bricks", f"{name}/rows", "--episodes", 6, "--no-audit", "--workers", 1)
            tpru("data", "view", f"{name}/rows", "--out", page, "--workers", 1)
            write("gallery", shot(page, (1100, 1900)))


if __name__ == "__main__":
    main()
