"""What a run needs of packages and of Ray: what stops it (`launch.needs`), and what only makes it worse."""

from __future__ import annotations

from collections.abc import Iterator

from tpru_verl import trainers
from tpru_verl.doctor.check import OK, WARN, Check, judged
from tpru_verl.doctor.room import known_shape
from tpru_verl.launch import needs
from tpru_verl.launch.plan import Plan
from tpru_verl.launch.settings import Settings

# Both, or transformers computes linear attention in PyTorch (5.10, `modeling_qwen3_5.py`). veRL 0.9.1 pins
# the first.
LINEAR_ATTENTION = {
    "flash-linear-attention": "flash-linear-attention==0.5.2",
    "causal-conv1d": "causal-conv1d",
}


def package_lines(plan: Plan) -> Iterator[Check]:
    settings = plan.settings
    if plan.trainer.name == trainers.EASYR1:
        yield from _encoder_cache(plan.trainer)
    elif not needs.joins_a_cluster(settings.config):
        yield judged("attention", lambda: needs.flash_attn(settings), needs.FLASH_ATTN)
        yield judged("Ray's CPUs", lambda: needs.ray_cpus(settings), "fewer workers, or more CPUs")
    yield from _linear_attention(settings)


def _linear_attention(settings: Settings) -> Iterator[Check]:
    shape = known_shape(settings)
    if settings["device"] == "cpu" or shape is None or shape.delta_net is None:
        return
    missing = [name for name in LINEAR_ATTENTION if trainers.version_of(name) is None]
    if missing:
        text = f"{' and '.join(missing)} not installed: transformers computes it in plain PyTorch, slowly"
        fix = f"pip install --no-build-isolation {' '.join(LINEAR_ATTENTION[name] for name in missing)}"
        yield Check("linear attention", WARN, text, fix)
    else:
        yield Check("linear attention", OK, " and ".join(LINEAR_ATTENTION))


def _encoder_cache(easyr1: trainers.Trainer) -> Iterator[Check]:
    """Up to July 2026 EasyR1 never emptied the features of images that vLLM keeps on the GPU."""
    file = easyr1.folder / "workers/sharding_manager/fsdp_vllm.py"
    if file.is_file() and "encoder_cache" not in file.read_text(encoding="utf-8"):
        text = f"{easyr1} keeps the features of all images of past steps on the GPU, until it is full"
        fix = "install EasyR1's head (its PR 11002 empties them), or resume the run when it ends"
        yield Check("image features", WARN, text, fix)
