"""A small app of several screens in headless Chromium: a screenshot after each tap or word typed.

What is to be done is in the text alone, not in the pictures. Title, wares, words and colours differ from
episode to episode.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import atexit
import colorsys
import os
import shutil
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from playwright.sync_api import sync_playwright

from tpru_verl.builder.clips import Frame

if TYPE_CHECKING:
    from playwright.sync_api import Browser

SCENE_BY_KIND = True
KINDS = ("shop", "booking", "settings")
WIDTH, HEIGHT = 360, 640  # pixels
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

_TITLES = ("Aurora", "Birch", "Cobalt", "Delta", "Ember", "Fjord", "Grove", "Harbour", "Iris", "Juniper")
_NAMES = ("Ada", "Ben", "Cora", "Dan", "Eva", "Finn", "Gita", "Hugo", "Ines", "Jon")
_PLACES = ("Hill Road 4", "Lake Street 12", "Mill Lane 7", "Oak Avenue 31", "Park Row 9", "Quay 2")
_THINGS = {
    "shop": ("Apples", "Bread", "Coffee", "Dates", "Eggs", "Flour", "Ginger", "Honey", "Jam", "Kale"),
    "booking": ("Attic room", "Cabin", "Double room", "Family flat", "Garden room", "Loft", "Suite", "Tent"),
    "settings": ("Account", "Battery", "Display", "Keyboard", "Network", "Privacy", "Sound", "Storage"),
}
_SWITCHES = ("Automatic", "Dark mode", "Notify me", "Share data", "Save power", "Vibrate", "Backup")
_WORDS = {
    "shop": {"count": "Pieces", "more": "One more", "next": "To the till", "form": "Delivery"},
    "booking": {"count": "Nights", "more": "One night more", "next": "Book", "form": "Your details"},
    "settings": {"note": "Note"},
}
_COMMON = {
    "name": "Name", "place": "Address", "check": "Check", "confirm": "Confirm", "done": "All done",
}  # fmt: skip


def play(kind: str, rng: np.random.Generator) -> Iterator[Frame]:
    """One errand, from the list to its end. Raises ValueError without a browser."""

    def pick(values: tuple[str, ...], count: int) -> list[str]:
        return [values[i] for i in rng.permutation(len(values))[:count]]

    (title,), (name,), (place,) = pick(_TITLES, 1), pick(_NAMES, 1), pick(_PLACES, 1)
    things, switches = pick(_THINGS[kind], 6), pick(_SWITCHES, 4)
    chosen, count = int(rng.integers(6)), int(rng.integers(1, 4))
    values = [f"{int(rng.integers(2, 90))}.{int(rng.integers(100)):02d}" for _ in things]
    hue = float(rng.uniform())
    plan = {
        "flow": kind,
        "title": f"{title} {kind}",
        "things": list(zip(things, [""] * 6 if kind == "settings" else values, strict=True)),
        "switches": switches,
        "words": {**_COMMON, **_WORDS[kind]},
        "colours": {
            "ink": _hex(hue, 0.38, 0.55),
            "soft": _hex(hue, 0.86, 0.5),
            "ground": _hex(hue, 0.95, 0.4),
        },
    }
    steps: list[tuple[str, str, str]] = [("tap", f"thing{chosen}", f"tap {things[chosen]}")]
    if kind == "settings":
        turned = sorted(int(i) for i in rng.permutation(4)[: 1 + count])
        steps += [("tap", f"switch{i}", f"turn on {switches[i]}") for i in turned]
        steps += [("type", "note", f"type {name} as the note"), ("tap", "save", "tap Confirm")]
        about = f"how {', '.join(switches[i] for i in turned)} are turned on in {things[chosen]}"
    else:
        words = plan["words"]
        steps += [("tap", "more", f"tap {words['more']}")] * (count - 1)
        steps += [("tap", "next", f"tap {words['next']}"), ("type", "name", f"type {name} as the name")]
        steps += [("type", "place", f"type {place} as the address"), ("tap", "send", "tap Check")]
        steps += [("tap", "confirm", "tap Confirm")]
        unit = "of" if kind == "shop" else "nights in"
        about = f"how {name} orders {count} {unit} {things[chosen]} in {title} {kind}"
    yield from _shots(plan, steps, {"name": name, "place": place, "note": name}, about)


def _shots(
    plan: dict, steps: list[tuple[str, str, str]], typed: dict[str, str], about: str
) -> Iterator[Frame]:
    page = _browser().new_page(viewport={"width": WIDTH, "height": HEIGHT})
    try:
        page.goto(Path(__file__).with_name("gui.html").as_uri())
        page.evaluate("plan => window.start(plan)", plan)
        yield Frame(page.screenshot(), 0, text="the list is open", about=about)
        for number, (action, target, text) in enumerate(steps, start=1):
            if action == "tap":
                page.click(f"#{target}")
            else:
                page.fill(f"#{target}", typed[target])
            yield Frame(page.screenshot(), number, text=text, about=about)
    finally:
        page.close()


@lru_cache(maxsize=1)
def _browser() -> Browser:
    """One browser a process: it takes longer to start than an episode to play."""
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        raise ValueError(f"sim:gui: found no browser, expected one of {', '.join(BROWSERS)} to be installed")
    playwright = sync_playwright().start()
    atexit.register(playwright.stop)
    # Chromium refuses to start its sandbox for root; the only page that it is shown is our own.
    sandbox = hasattr(os, "geteuid") and os.geteuid() != 0
    return playwright.chromium.launch(executable_path=path, args=["--disable-gpu"], chromium_sandbox=sandbox)


def _hex(hue: float, light: float, saturation: float) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in colorsys.hls_to_rgb(hue, light, saturation))
