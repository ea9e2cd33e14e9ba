"""Made machines and recipes, which `tpru doctor` looks at."""

from __future__ import annotations

from typing import Any

from tpru_verl.doctor.probe import Device, Probe
from tpru_verl.launch.settings import KEYS, Settings

GIB = 1024**3
H100 = Device(name="H100", bytes=80 * GIB)


def probed(**changes: Any) -> Probe:
    nothing = Probe(errors={}, cuda="", driver="", devices=[], plugin="loaded", trainer_error="")
    return Probe(**{**nothing, **changes})


def settings(trainer: str = "veRL", **changes: Any) -> Settings:
    """tpru_7b's numbers; `changes` by our own names."""
    values = {
        "model": "Qwen/Qwen2.5-VL-7B-Instruct", "train_files": ["a/b"], "val_files": ["a/c"],
        "prompt_length": 7000, "response_length": 1024, "filter": True, "max_pixels": 36864,
        "batch": 256, "mini_batch": 128, "micro_batch": 4, "micro_log_prob": 16, "n": 5,
        "remove_padding": True, "gradient_checkpointing": True, "kl_loss": True,
        "params_offload": False, "optimizer_offload": False,
        "tensor_parallel": 2, "gpu_memory": 0.6, "max_model_len": 8192, "batched_tokens": 8192,
        "limit_images": 7, "nodes": 1, "gpus": 8, "device": "cuda", "save_freq": 35, **changes,
    }  # fmt: skip
    config: dict[str, Any] = {}
    for name, value in values.items():
        key = KEYS[name][trainer != "veRL"]
        *sections, last = key.split(".")
        place = config
        for section in sections:
            place = place.setdefault(section, {})
        if key:
            place[last] = value
    return Settings(trainer, config)
