"""Recipes to copy and edit: `verl/` for veRL (Hydra configs found by name), `easyr1/` for EasyR1.

The folders below have no `__init__.py` on purpose: `python -m verl...` started inside `recipes/` would
import a package `verl` lying there in place of the real one.
"""

from pathlib import Path

VERL = Path(__file__).parent / "verl"
EASYR1 = Path(__file__).parent / "easyr1"
