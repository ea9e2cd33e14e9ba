"""Recipes to copy and edit: `verl/` for veRL (Hydra configs found by name), `easyr1/` for EasyR1.

The folders below have no `__init__.py` on purpose: `python -m verl...` started inside `recipes/` would
import a package `verl` lying there in place of the real one.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

VERL = Path(__file__).parent / "verl"
EASYR1 = Path(__file__).parent / "easyr1"


def names() -> list[str]:
    """Names of the veRL recipes, as `--config-name` takes them."""
    return sorted(path.stem for path in VERL.glob("*.yaml"))


def compose(recipe: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The complete configuration that `main_ppo --config-name RECIPE OVERRIDES` would train with.

    Hydra's own compose over veRL's own files, without importing veRL (which imports torch).

    Raises:
        ValueError: no such recipe, an override that Hydra refuses, or a path left to fill in;
            the message is one line.
        RuntimeError: veRL is not installed, or the `verl` that is installed is EasyR1.
    """
    configs = _verl_folder() / "trainer" / "config"
    if recipe not in names():
        raise ValueError(f"recipe: found {recipe!r}, expected one of {', '.join(names())}")
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    try:
        with initialize_config_dir(config_dir=str(configs), version_base=None):
            config = compose(recipe, overrides=list(overrides))
    except HydraException as error:
        raise ValueError(f"{recipe}: {' '.join(str(error).split())}") from error
    # Null in a recipe: OmegaConf lets `???` leave veRL's own default, a path on its author's disk, in force.
    needed = ("data.train_files", "data.val_files", "actor_rollout_ref.model.path")
    missing = [key for key in needed if not OmegaConf.select(config, key)]
    if missing:
        raise ValueError(f"{recipe}: no value for {', '.join(missing)}; add {missing[0]}=...")
    return config


def _verl_folder() -> Path:
    spec = importlib.util.find_spec("verl")
    if spec is None or spec.origin is None:
        raise RuntimeError(
            "veRL is not installed: pip install 'tpru-verl[verl]' on a GPU, 'tpru-verl[cpu]' without"
        )
    folder = Path(spec.origin).parent
    if not (folder / "trainer" / "main_ppo.py").exists():
        raise RuntimeError(
            f"found EasyR1 or an old veRL in {folder}, expected veRL 0.9: use recipes/easyr1 there"
        )
    return folder
