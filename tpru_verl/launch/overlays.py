"""Settings that veRL would ignore, or end with after minutes, told before the start; most are of overlays."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from tpru_verl import trainers
from tpru_verl.launch import adapter
from tpru_verl.launch.settings import Settings, value_at
from tpru_verl.models import model_refusal
from tpru_verl.shapes import shape_of

GIB = 1024**3


def check(config: Mapping) -> None:
    """Raise, in one line, for settings of veRL that contradict each other.

    Raises:
        FileNotFoundError: an adapter to start from that is none.
        ValueError: a key that veRL 0.9.1 would ignore, one that needs another, a number out of its range, or
            an adapter that could not be exported.
    """
    settings = Settings(trainers.VERL, config)
    check_numbers(settings)
    _groups(settings)
    _processor_kwargs(config)
    _one_process(config)
    _frozen(config)
    adapter.check(config)
    _deviation(config)
    _decoupled_rewards(config)
    _overlong(config)


def _one_process(config: Mapping) -> None:
    """vLLM would start one rank of several, which waits for the others for ever."""
    key = "actor_rollout_ref.rollout"
    rollout = value_at(config, key) or {}
    backend = "engine_kwargs.vllm.distributed_executor_backend"
    name = str(value_at(rollout, backend)).rpartition(".")[2]
    for size in ("tensor_model_parallel_size", "pipeline_model_parallel_size"):
        if rollout.get(size, 1) > 1 and name in ("UniProcExecutor", "uni"):
            found = f"found one process ({name}), expected mp with {key}.{size}={rollout[size]}"
            raise ValueError(f"{key}.{backend}: {found}")


# Settings with the least value that a run can have; null, where a trainer takes it, stands for its default.
_LEAST = {
    **dict.fromkeys(("batch", "mini_batch", "micro_batch", "micro_log_prob", "n", "gpus", "nodes"), 1),
    **dict.fromkeys(("tensor_parallel", "prompt_length", "response_length", "epochs"), 1),
    **dict.fromkeys(("min_pixels", "max_pixels"), 1),
    "lora_rank": 0,
}
_WHOLE = (*_LEAST, "total_steps", "most_rows", "keep", "max_model_len", "batched_tokens", "limit_images")


def check_numbers(settings: Settings) -> None:
    """Raise ValueError, in one line, for a number that no run can have, such as a batch of none or of 1e2."""
    for name, least in _LEAST.items():
        value = settings[name] if settings.key(name) else None
        if isinstance(value, (int, float)) and value < least:
            raise ValueError(f"{settings.said(name)}: found {value}, expected {least} or more")
    for name in _WHOLE:
        value = settings[name] if settings.key(name) else None
        if isinstance(value, float):  # 1e2 is one, too, and torch takes no batch of 100.0
            raise ValueError(f"{settings.said(name)}: found {value}, expected a whole number")
    share = settings["gpu_memory"]
    if isinstance(share, (int, float)) and not 0 < share <= 1:
        raise ValueError(
            f"{settings.said('gpu_memory')}: found {share}, expected a share of the GPU's memory, such as 0.6"
        )


def doubts(settings: Settings, names: Sequence[str]) -> Iterator[str]:
    """Settings that run and are hardly meant, each as a line. `names`: the overlays of the run."""
    sized = [name for name in names if name.startswith("one_gpu_")]
    if sized and settings["device"] == "cpu":
        yield (
            f"+tpru={sized[-1]}: found {settings.said('device')}, expected a recipe for a GPU, which this "
            "overlay is for; leave it out"
        )
    key = "algorithm.filter_groups.enable"
    if "reproducible" in names and value_at(settings.config, key):
        yield (
            f"+tpru=reproducible: found {key}=true, with which the prompts of a step depend on time, so that "
            "two runs may differ; leave one of the two out"
        )


def check_size(settings: Settings, names: Sequence[str]) -> None:
    """Raise ValueError, in one line, for a model that cannot fit the GPU which an overlay `one_gpu_N` names.

    By the bytes of weights and optimizer on one GPU alone; `tpru doctor` estimates the rest.
    """
    from tpru_verl.doctor import memory  # the doctor's package asks this one

    sizes = [int(found[1]) for name in names if (found := re.fullmatch(r"one_gpu_(\d+)", name))]
    if not sizes:
        return
    size, model = sizes[-1], settings.text("model")
    if refusal := model_refusal(model):  # of such a model the shape may not be readable
        raise ValueError(f"{settings.said('model')}: {refusal}")
    shape = shape_of(model)
    if shape is None:
        return
    share = float(str(settings["gpu_memory"]))
    found = memory.estimate(settings, shape)
    engine = found.vllm_weights / GIB
    if engine > share * size:
        raise ValueError(
            f"+tpru=one_gpu_{size}: found {engine:.0f} GiB of weights for vLLM ({model} in bf16), expected "
            f"at most {share * size:.0f}, {settings.said('gpu_memory')} of {size}; take a smaller model or "
            "a larger GPU"
        )
    adapters = settings.integer("lora_rank") > 0
    states = found.states / GIB  # 0 where they are in host memory
    key = settings.key("offload_policy")
    if states > size:
        instead = "" if adapters else "add the overlay lora, or "
        raise ValueError(
            f"+tpru=one_gpu_{size}: found {states:.0f} GiB of weights{'' if adapters else ' and optimizer'} "
            f"to train {model}, expected less than {size}; {instead}keep them in host memory with {key}=true"
        )


def reward_keys(config: Mapping) -> dict[str, str]:
    """What the reward of a run has to return beside its score, with the key of veRL that asks for it."""
    asked: dict[str, str] = {}
    if value_at(config, "algorithm.adv_estimator") == "gdpo":
        key = "algorithm.gdpo_reward_keys"
        asked |= {str(name): key for name in value_at(config, key) or ()}
    metric = value_at(config, "algorithm.filter_groups.metric")
    if value_at(config, "algorithm.filter_groups.enable") and metric != "reward":
        asked[str(metric)] = "algorithm.filter_groups.metric"
    return asked


# Estimators of veRL that compare the responses to one prompt with each other.
_GROUPED = ("grpo", "grpo_passk", "grpo_vectorized", "gdpo", "rloo", "rloo_vectorized", "opo")


def _groups(settings: Settings) -> None:
    """Of a group of one, veRL takes the reward itself for the advantage."""
    estimator = value_at(settings.config, "algorithm.adv_estimator")
    if settings["n"] == 1 and estimator in _GROUPED:
        raise ValueError(
            f"{settings.said('n')}: found one response to a prompt, expected 2 or more: "
            f"algorithm.adv_estimator={estimator} compares them with each other"
        )


def _processor_kwargs(config: Mapping) -> None:
    """veRL hands them to the processor as `**kwargs`."""
    key = "data.mm_processor_kwargs"
    value = value_at(config, key)
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(
            f"{key}={value}: found no names, expected arguments of the processor by name, "
            f"such as +{key}.min_pixels=16384"
        )


def _frozen(config: Mapping) -> None:
    """veRL 0.9.1 has the key in its configuration and reads it nowhere."""
    key = "actor_rollout_ref.actor.freeze_vision_tower"
    if value_at(config, key):
        raise ValueError(
            f"{key}: found true, expected false: veRL 0.9.1 ignores it and would train the vision tower; "
            "+tpru=lora leaves the tower as it is"
        )


def _deviation(config: Mapping) -> None:
    """veRL 0.9.1 hands the key to `grpo`, `grpo_passk` reads it, and its other estimators ignore it."""
    key, estimator = "algorithm.norm_adv_by_std_in_grpo", value_at(config, "algorithm.adv_estimator")
    if value_at(config, key) is False and estimator not in (None, "grpo", "grpo_passk"):
        raise ValueError(
            f"{key}: found false, which veRL 0.9.1 ignores with algorithm.adv_estimator={estimator}, "
            "expected grpo or grpo_passk, or true; +tpru=drgrpo sets it"
        )


def _decoupled_rewards(config: Mapping) -> None:
    """GDPO takes what the reward returns beside score, so that nothing that changes the score counts."""
    if value_at(config, "algorithm.adv_estimator") != "gdpo":
        return
    key = "algorithm.gdpo_reward_keys"
    rewards, weights = value_at(config, key), value_at(config, "algorithm.gdpo_reward_weights")
    if not rewards:
        raise ValueError(
            f"{key}: found none, expected what the reward returns beside score, as +tpru=gdpo has it"
        )
    if weights is not None and len(weights) != len(rewards):
        raise ValueError(
            f"algorithm.gdpo_reward_weights: found {len(weights)}, expected {len(rewards)}, "
            f"one for each of {key}"
        )
    if lost := next(_of_the_score(config, rewards), ""):
        raise ValueError(
            f"{lost}: found it with algorithm.adv_estimator=gdpo, which takes {', '.join(map(str, rewards))} "
            f"({key}) in place of the score that it changes, expected one of the two; leave one out"
        )


def _of_the_score(config: Mapping, rewards: Sequence[object]) -> Iterator[str]:
    """Settings, `KEY=VALUE`, that change the score alone, which GDPO does not take."""
    for key in ("reward.reward_kwargs.overlong_buffer_cfg.enable", "algorithm.use_kl_in_reward"):
        if value_at(config, key):
            yield f"{key}=true"
    key = "reward.custom_reward_function"
    ours = "tpru_verl" in str(value_at(config, f"{key}.path"))
    if not ours or "score" in rewards:
        return
    kwargs = value_at(config, f"{key}.reward_kwargs") or {}
    told = ("tpru", "tpru_partial") if "partial" in rewards else ("tpru",)
    for name, plain in {"preset": told, "max_length": (), "ngram": ()}.items():
        if kwargs.get(name) not in (None, *plain):
            yield f"{key}.reward_kwargs.{name}={kwargs[name]}"


def _overlong(config: Mapping) -> None:
    """veRL's DAPO reward manager asserts this in each of its workers, after the first responses."""
    key = "reward.reward_kwargs.overlong_buffer_cfg"
    longest = value_at(config, "reward.reward_kwargs.max_resp_len")
    length = value_at(config, f"{key}.len")
    if value_at(config, f"{key}.enable") and not 0 < int(length or 0) <= int(longest or 0):
        raise ValueError(
            f"{key}.len: found {length}, expected 1 to {longest}, the longest response; give {key}.len=..., "
            "such as a quarter of it"
        )
