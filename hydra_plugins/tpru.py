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

# tpru_tiny_cpu's default model. An environment variable, because veRL resolves a recipe in a Ray worker,
# which inherits this but would not know an OmegaConf resolver of ours.
CHECKPOINT = Path(tpru_verl.__file__).parent / "demo" / "checkpoint"
os.environ.setdefault("TPRU_DEMO_CHECKPOINT", str(CHECKPOINT))


class TPRUSearchPath(SearchPathPlugin):
    """Appends the recipes' folder, so veRL's own configs win where a name is in both."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        # A file path, not pkg://: Hydra wants an __init__.py there, which would shadow veRL (see recipes).
        search_path.append(provider="tpru-verl", path=f"file://{recipes.VERL}")
