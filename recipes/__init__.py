"""Recipes to copy and edit: `verl/` for veRL (Hydra configs found by name), `easyr1/` for EasyR1.

The folders below have no `__init__.py` on purpose: `python -m verl...` started inside `recipes/` would
import a package `verl` lying there in place of the real one.
"""

from pathlib import Path

VERL = Path(__file__).parent / "verl"
EASYR1 = Path(__file__).parent / "easyr1"


def register_resolvers() -> None:
    """Make `${tpru.demo_checkpoint:}` known to OmegaConf: the folder of the tiny model that ships with us.

    Every process that reads a recipe needs it: Hydra's driver (through our Hydra plugin) and the Ray
    workers to which veRL sends the recipe unresolved (through our veRL plugin).
    """
    from omegaconf import OmegaConf

    import tpru_verl

    checkpoint = Path(tpru_verl.__file__).parent / "demo" / "checkpoint"
    OmegaConf.register_new_resolver("tpru.demo_checkpoint", lambda: str(checkpoint), replace=True)
