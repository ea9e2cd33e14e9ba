"""Whether the Hub can be asked at all, found out once: huggingface_hub tries each file for minutes."""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.request
from functools import cache
from pathlib import Path

SECONDS = 3.0  # for one answer of the Hub; it is asked once a process


def offline() -> str:
    """Why the Hub is not asked: HF_HUB_OFFLINE is set, or it gave no answer; "" where it answers."""
    if os.environ.get("HF_HUB_OFFLINE", "").strip().upper() in ("1", "ON", "YES", "TRUE"):
        return "HF_HUB_OFFLINE is set"
    address = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    return "" if _answers(address) else f"the Hub ({address}) could not be reached"


def missing(model: str) -> str:
    """Why a model can be had from nowhere: no folder, not in the cache, and the Hub is out of reach.

    "" where it is a folder or may be had, which shows when it is.
    """
    if Path(model).expanduser().is_dir() or not (why := offline()):
        return ""
    there = cached(model, "config.json")
    return "" if there else f"found no such folder and no copy in the cache, and {why}"


def cached(model: str, name: str) -> Path | None:
    """The copy of a model's file in the cache; None where there is none."""
    try:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(model, name)
    except (ImportError, ValueError):  # no such package, or a name that no model of the Hub can have
        return None
    return Path(found) if isinstance(found, str) else None


def data_cached(name: str) -> bool:
    """Whether the cache has something of a data set of the Hub."""
    try:
        from huggingface_hub import constants
    except ImportError:  # whoever reads it says what is missing
        return True
    return (Path(constants.HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}").is_dir()


@cache
def _answers(address: str) -> bool:
    """Whether anything answers there, by the proxies of the environment; any status is an answer."""
    found: list[bool] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(address, method="HEAD")
            urllib.request.urlopen(request, timeout=SECONDS).close()
        except urllib.error.HTTPError:
            pass
        except (OSError, ValueError):
            return
        found.append(True)

    # A thread, because looking up a name knows no time limit.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(SECONDS + 1)
    return bool(found)
