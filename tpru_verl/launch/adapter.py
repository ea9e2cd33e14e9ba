"""The adapter that a run starts from (`lora_adapter_path`): whether veRL loads it, and saves all of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from tpru_verl.hub import cached
from tpru_verl.launch.settings import value_at

_MODEL = "actor_rollout_ref.model"
KEY = f"{_MODEL}.lora_adapter_path"
_FILE = "adapter_config.json"
# Options of PEFT's LoraConfig that change what an adapter computes, or train weights beside it.
_UNSAVED = (
    *("use_rslora", "use_dora", "use_qalora", "rank_pattern", "alpha_pattern", "lora_bias"),
    *("modules_to_save", "trainable_token_indices", "layer_replication"),
)


def check(config: Mapping) -> None:
    """Raise for an adapter that veRL 0.9.1 would not load, or whose training could not be exported.

    veRL loads an adapter only where `lora_rank` is set, and gives vLLM room for that rank.

    Raises:
        FileNotFoundError: an adapter to start from that is none.
        ValueError: `lora_rank` is not its rank, or it is of a kind that veRL's checkpoints do not tell.
    """
    path, rank = value_at(config, KEY), value_at(config, f"{_MODEL}.lora_rank")
    if not path:
        return
    adapter = read(str(path))
    found = adapter["r"] if adapter else None
    if not rank or (found is not None and found != rank):
        expected = found if found is not None else "the rank of the adapter"
        raise ValueError(
            f"{_MODEL}.lora_rank: found {rank or 0}, expected {expected}, the rank of {KEY}={path}; "
            "with 0 veRL would train all weights without the adapter"
        )
    if option := unsaved(adapter or {}):
        raise ValueError(
            f"{KEY}={path}: found {option} in {_FILE}, expected plain LoRA: veRL's checkpoints keep rank and "
            "alpha alone, and the trained model could not be exported; merge the adapter into its model "
            "first and train that, or train a new adapter without this option"
        )


def read(path: str) -> Mapping[str, object] | None:
    """The configuration of an adapter; None for one on the Hub that is not in the cache.

    Raises FileNotFoundError for a folder without one, and ValueError for one without a rank.
    """
    from tpru_verl.data.source.parts import is_local

    if is_local(path):
        file = Path(path).expanduser() / _FILE
        if not file.is_file():
            raise FileNotFoundError(f"{KEY}={path}: found no {_FILE} in it, expected an adapter of PEFT")
    elif not (file := cached(path, _FILE)):  # veRL hands the path to PEFT, which also takes Hub ids
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {**found, "r": found["r"]}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: found no rank `r` ({error}), expected an adapter of PEFT") from error


def unsaved(adapter: Mapping[str, object]) -> str:
    """`OPTION=VALUE` of what `lora_train_meta.json` (r, lora_alpha, task_type) does not keep, or ""."""
    kind, alpha = adapter.get("peft_type", "LORA"), adapter.get("lora_alpha", 1)
    if kind != "LORA":
        return f"peft_type={kind}"
    if isinstance(alpha, float) and not alpha.is_integer():
        return f"lora_alpha={alpha}"
    if adapter.get("bias", "none") != "none":
        return f"bias={adapter['bias']}"
    return next((f"{name}={adapter[name]}" for name in _UNSAVED if adapter.get(name)), "")
