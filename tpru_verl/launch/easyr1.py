"""The configuration of an EasyR1 run, as EasyR1 merges file and overrides. Nothing is started.

EasyR1 merges in a process of its own, because importing it imports torch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, cast

from tpru_verl.launch.apart import ask
from tpru_verl.recipes import leaves, unknown_key


def compose(arguments: Sequence[str]) -> dict[str, object]:
    """What `python -m verl.trainer.main ARGUMENTS` would train with, after EasyR1's own checks and defaults.

    Raises:
        ValueError: an unknown key or a value of the wrong type, in one line.
        RuntimeError: EasyR1 cannot be imported.
    """
    try:
        return ask(merged, list(arguments), seconds=300)
    except RuntimeError as error:
        raise RuntimeError(f"EasyR1 cannot be imported: {error}") from error


def merged(arguments: list[str]) -> dict[str, object]:
    """As `verl.trainer.main.main` begins; tests hold it to that."""
    # Settings alone are wanted: without this stand-in, vLLM would be imported with them, or missed.
    sampler = ModuleType("verl.workers.rollout.vllm_rollout_spmd")
    sampler.__dict__["vLLMRollout"] = object
    sys.modules[sampler.__name__] = sampler
    from omegaconf import OmegaConf
    from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
    from verl.trainer.config import PPOConfig  # pyright: ignore  # EasyR1's

    given = OmegaConf.from_cli(list(arguments))
    file = given.pop("config")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(PPOConfig()), OmegaConf.load(file), given)
        config = cast(Any, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        first = str(error).splitlines()[0]
        if isinstance(error, ConfigKeyError) and error.full_key:
            known = leaves(OmegaConf.to_container(OmegaConf.structured(PPOConfig())))
            raise ValueError(f"{first}: {unknown_key(error.full_key, list(known))}") from error
        where = f" ({error.full_key})" if error.full_key and error.full_key not in first else ""
        raise ValueError(f"{first}{where}") from error
    config.deep_post_init()
    return config.to_dict()
