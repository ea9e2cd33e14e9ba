"""Lets Hydra find our veRL recipes by name from any folder.

`hydra_plugins` is a namespace package shared by all distributions: it must not have an `__init__.py`.
Hydra imports every module in it whenever it starts, so this one imports nothing heavy.
"""

import os
import sys
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

import tpru_verl
from tpru_verl import recipes, trainers

# The default model of tpru_tiny_cpu. It is an environment variable, because veRL resolves a recipe in a Ray
# worker, which inherits the variable but would not know a resolver that we add to OmegaConf.
CHECKPOINT = Path(tpru_verl.__file__).parent / "demo" / "checkpoint"
os.environ.setdefault("TPRU_DEMO_CHECKPOINT", str(CHECKPOINT))


class TPRUSearchPath(SearchPathPlugin):
    """Appends the folder of the recipes, so that a name in both is veRL's own configuration."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        _refuse_old_verl()
        # pkg:// would need an __init__.py in the folder, which would shadow veRL (see `tpru_verl.recipes`).
        search_path.append(provider="tpru-verl", path=f"file://{recipes.VERL}")


def _refuse_old_verl() -> None:
    """End `python -m verl.trainer.main_ppo --config-name RECIPE` in a veRL that does not load our plugin.

    It would start Ray, and end in a worker or wait there for ever. Other programs that use Hydra go on.
    """
    started = getattr(sys.modules["__main__"], "__spec__", None)
    asked = {argument.rpartition("=")[2] for argument in sys.argv}
    if getattr(started, "name", "") == "verl.trainer.main_ppo" and asked & set(recipes.names()):
        found = trainers.find()
        if found.name == trainers.VERL and (reason := trainers.too_old(found.version)):
            sys.exit(f"tpru: {reason}")
