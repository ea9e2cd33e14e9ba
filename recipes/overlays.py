"""Overlays: a few settings for one purpose on top of any recipe, `+tpru=NAME` or `+tpru=[NAME,NAME]`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import combinations
from pathlib import Path

from tpru_verl.trainers import Trainer

FOLDER = Path(__file__).parent / "verl" / "tpru"
# The keys of EasyR1's own that do the same, with the values of the overlay, and a word of its configuration
# by which a version shows that it has them.
_EASYR1 = {
    "lora": (
        "worker.actor.model.lora.rank=64 worker.actor.model.lora.alpha=32 "
        "'worker.actor.model.lora.exclude_modules=.*visual.*' worker.actor.optim.lr=1e-5",
        "class LoraConfig",
    ),
    "gspo": (
        "worker.actor.loss_type=gspo worker.actor.loss_avg_mode=seq worker.actor.clip_ratio_low=3e-4 "
        "worker.actor.clip_ratio_high=4e-4 algorithm.disable_kl=true",
        "loss_type:",
    ),
    # EasyR1 takes the logarithm of 1 - clip_ratio_low: 0.999 is hardly a bound from below.
    "cispo": (
        "worker.actor.loss_type=cispo worker.actor.loss_avg_mode=token worker.actor.clip_ratio_low=0.999 "
        "worker.actor.clip_ratio_high=0.2 algorithm.disable_kl=true",
        "loss_type:",
    ),
    # EasyR1 keeps a group whose mean is neither 0 nor 1. Where all answers are wrong, their reward is 1/8.
    "dapo": (
        "algorithm.online_filtering=true algorithm.filter_key=accuracy worker.actor.clip_ratio_low=0.2 "
        "worker.actor.clip_ratio_high=0.28 worker.actor.clip_ratio_dual=10.0 "
        "worker.actor.loss_avg_mode=token "
        "worker.reward.reward_function_kwargs.max_length=1024 algorithm.disable_kl=true",
        "online_filtering:",
    ),
}


def names() -> list[str]:
    """Names of the overlays for veRL."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def key_of(override: str) -> str:
    """The key of an override: `trainer.logger` of `++trainer.logger=file` and of `~trainer.logger`."""
    return override.lstrip("+~").partition("=")[0]


def taken(overrides: Sequence[str]) -> list[str]:
    """The overlays that the overrides of a command line name, in their order.

    Raises ValueError, in one line, for what Hydra would not read as one list: two overrides with overlays,
    names without brackets, no plus; and for no name, or one twice.
    """
    given = [item for item in overrides if key_of(item) == "tpru"]
    values = [item.partition("=")[2].strip("\"' ") for item in given]
    found = [name.strip() for value in values for name in value.strip("[] ").split(",") if name.strip()]
    if given and not found:
        raise ValueError(f"{given[0]}: found no overlay, expected one or more of {', '.join(names())}")
    if not given:
        return []
    if len(values) > 1:
        raise ValueError(f"+tpru: found {len(values)} times, expected one list: +tpru=[{','.join(found)}]")
    right = f"+tpru=[{','.join(found)}]" if found[1:] or "[" in values[0] else f"+tpru={found[0]}"
    if not given[0].startswith("+tpru="):
        raise ValueError(f"{given[0]}: found no single + before it, expected {right}")
    if found[1:] and not values[0].startswith("["):
        raise ValueError(f"+tpru={values[0]}: found several overlays without brackets, expected {right}")
    if twice := next((name for name in found if found.count(name) > 1), None):
        raise ValueError(f"+tpru={values[0]}: found {twice} twice, expected each overlay once")
    return found


def check(overrides: Sequence[str]) -> None:
    """Raise ValueError, in one line, for overlays that are not there or that contradict each other.

    Two overlays contradict each other where they give one key two values that the command line does not
    settle by a value of its own.
    """
    known, chosen = names(), taken(overrides)
    for name in chosen:
        if name not in known:
            near = get_close_matches(name, known, 1)
            meant = f"; meant {near[0]}?" if near else ""
            raise ValueError(f"+tpru: found {name!r}, expected one of {', '.join(known)}{meant}")
    settled = {key_of(item) for item in overrides} | {"trainer.experiment_name"}
    for one, other in combinations(chosen, 2):
        first, second = dict(settings(one)), dict(settings(other))
        apart = [key for key in first if key in second and first[key] != second[key] and key not in settled]
        if apart:
            key = apart[0]
            more = f" and {len(apart) - 1} more keys that differ" if apart[1:] else ""
            raise ValueError(
                f"+tpru=[{one},{other}]: found {key}={first[key]} in {one} and {second[key]} in {other}"
                f"{more}, expected overlays that agree; take one, or give "
                f"{' '.join(f'{key}=...' for key in apart)}"
            )


def check_easyr1(overrides: Sequence[str], trainer: Trainer) -> None:
    """Raise ValueError, in one line, for an overlay that EasyR1 cannot take: all but `paper`."""
    for name in taken(overrides):
        if name == "paper":
            continue
        if name not in names():
            raise ValueError(f"+tpru: found {name!r}, expected paper, the overlay for {trainer}")
        keys, word = _EASYR1.get(name, ("", ""))
        files = (trainer.folder / "workers/actor/config.py", trainer.folder / "trainer/config.py")
        has = keys and any(word in file.read_text(encoding="utf-8") for file in files if file.is_file())
        instead = f"with {trainer}, set {keys}" if has else f"{trainer} has no keys for it"
        raise ValueError(f"+tpru={name}: found {trainer}, expected veRL, which its keys are for; {instead}")


def settings(name: str) -> Iterator[tuple[str, object]]:
    """Dotted keys and values of an overlay; those of the overlays below it come first."""
    from omegaconf import OmegaConf

    config = OmegaConf.to_container(OmegaConf.load(FOLDER / f"{name}.yaml"))
    assert isinstance(config, dict)
    for below in config.pop("defaults", []):
        if below != "_self_":
            yield from settings(below)
    yield from _leaves(config)


def _leaves(config: Mapping, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
