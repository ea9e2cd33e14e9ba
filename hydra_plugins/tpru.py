"""Lets Hydra find our veRL recipes by name from any folder.

`hydra_plugins` is a namespace package shared by all distributions: it must not have an `__init__.py`.
Hydra imports every module in it whenever it starts, so this one imports nothing heavy.
"""

import os
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

import tpru_verl
from tpru_verl import recipes

# The default model of tpru_tiny_cpu. It is an environment variable, because veRL resolves a recipe in a Ray
# worker, which inherits the variable but would not know a resolver that we add to OmegaConf.
CHECKPOINT = Path(tpru_verl.__file__).parent / "demo" / "checkpoint"
os.environ.setdefault("TPRU_DEMO_CHECKPOINT", str(CHECKPOINT))


class TPRUSearchPath(SearchPathPlugin):
    """Appends the folder of the recipes, so that a name in both is veRL's own configuration."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        # pkg:// would need an __init__.py in the folder, which would shadow veRL (see `tpru_verl.recipes`).
        search_path.append(provider="tpru-verl", path=f"file://{recipes.VERL}")
