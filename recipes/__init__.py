"""Recipes to copy and edit: `verl/` for veRL (Hydra configs found by name), `easyr1/` for EasyR1.

The folders below have no `__init__.py` on purpose: `python -m verl...` started inside `recipes/` would
import a package `verl` lying there in place of the real one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher, get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from tpru_verl import trainers
from tpru_verl.models import family_of
from tpru_verl.recipes import overlays

if TYPE_CHECKING:
    from omegaconf import DictConfig

VERL = Path(__file__).parent / "verl"
EASYR1 = Path(__file__).parent / "easyr1"


def names(trainer: str = trainers.VERL) -> list[str]:
    """Names of the recipes for a trainer; `--config-name` of veRL takes them."""
    return sorted(path.stem for path in (VERL if trainer == trainers.VERL else EASYR1).glob("*.yaml"))


def check_name(recipe: str, trainer: trainers.Trainer) -> None:
    """Raise ValueError for a recipe that this trainer does not have; the message lists the nearest first."""
    known = names(trainer.name)
    if recipe in known:
        return
    nearest = sorted(known, key=lambda name: -SequenceMatcher(None, recipe, name).ratio())
    other = trainers.EASYR1 if trainer.name == trainers.VERL else trainers.VERL
    found = f"found {recipe!r}"
    if recipe in names(other):
        found += f", a recipe for {other} alone, beside {trainer}"
    raise ValueError(f"recipe: {found}, expected one of {', '.join(nearest)}")


def compose(recipe: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The complete configuration that `main_ppo --config-name RECIPE OVERRIDES` would train with.

    Hydra's own compose over veRL's own files, without importing veRL (which imports torch).

    Raises:
        ValueError: no such recipe or overlay, overlays that contradict each other, an override that Hydra
            refuses, or a path left to fill in; the message is one line.
        RuntimeError: veRL is not installed, or the `verl` that is installed is EasyR1.
    """
    trainer = trainers.find()
    if trainer.name != trainers.VERL:
        raise RuntimeError(
            f"found {trainer} in {trainer.folder}, expected veRL 0.9: use recipes/easyr1 there"
        )
    check_name(recipe, trainer)
    overlays.check(overrides)
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    with initialize_config_dir(config_dir=str(trainer.folder / "trainer/config"), version_base=None):
        try:
            config = compose(recipe, overrides=[quoted(item) for item in overrides])
        except HydraException as error:
            said = " ".join(str(error).split())
            if unknown := re.search(r"Could not override '([^']+)'", said):
                known = leaves(OmegaConf.to_container(compose(recipe)))
                said = unknown_key(unknown[1], list(known))
            elif section := re.search(r"Error merging override \+*([^=]+)=", said):
                said = f"{said}: expected keys below it, {section[1]}.NAME=VALUE"
            raise ValueError(f"{recipe}: {said}") from error
    try:
        OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        said = str(error).partition("\n")[0]
        escaped = "name a setting or ${oc.env:NAME}; a text that holds ${ is written with \\${"
        raise ValueError(f"{error.full_key or recipe}: {said}; {escaped}") from error
    _check_types(config, overrides, recipe)
    # Null in a recipe: OmegaConf lets `???` leave veRL's own default, a path on its author's disk, in force.
    needed = ("data.train_files", "data.val_files", "actor_rollout_ref.model.path", "trainer")
    missing = [key for key in needed if not OmegaConf.select(config, key)]
    if missing:
        raise ValueError(f"{recipe}: no value for {', '.join(missing)}; add {missing[0]}=...")
    return config


_VERL_DEFAULTS = "trainer/config/_generated_ppo_trainer.yaml"


def _known(recipe: str) -> dict[str, object]:
    """Whole keys and default values of veRL and a recipe."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found: dict[str, object] = {}
    for file in (trainers.find().folder / _VERL_DEFAULTS, VERL / f"{recipe}.yaml"):
        found |= leaves(yaml.load(file.read_text(encoding="utf-8"), loader))  # a safe one
    return found


def _check_types(config: DictConfig, overrides: Sequence[str], recipe: str) -> None:
    """Raise ValueError for a value of another kind than veRL's default: Hydra takes text for a number."""
    from omegaconf import OmegaConf

    known = _known(recipe)
    for key in map(overlays.key_of, overrides):
        default, value = known.get(key), OmegaConf.select(config, key)
        wrong = isinstance(value, str) or OmegaConf.is_config(value)
        if isinstance(default, (bool, int, float)) and wrong:
            found = "text" if isinstance(value, str) else "several values"
            expected = "true or false" if isinstance(default, bool) else "a number"
            raise ValueError(f"{key}={value}: found {found}, expected {expected}")
        # A default of 0 or 1 may stand for a decimal number, as that of entropy_coeff.
        whole = isinstance(default, int) and not isinstance(default, bool) and default not in (0, 1)
        if whole and isinstance(value, float):
            raise ValueError(f"{key}={value}: found {value}, expected a whole number, such as {default}")


def leaves(config: object, prefix: str = "") -> dict[str, object]:
    """The values of a nested configuration by their whole keys, `data.train_files`."""
    if not isinstance(config, Mapping):
        return {}
    found: dict[str, object] = {}
    for key, value in config.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def doubtful_keys(recipe: str, overrides: Sequence[str]) -> list[str]:
    """Keys that `+key=value` adds to veRL's, and that are nearly a key of veRL's or ours; a line for each.

    Hydra takes any such key, and nothing reads a misspelt one.
    """
    added = [overlays.key_of(item) for item in overrides if item.startswith("+")]
    added = [key for key in added if key != "tpru"]
    if not added:
        return []
    known = list(_known(recipe))
    chosen = overlays.taken(overrides)
    known += [key for name in chosen for key, _ in overlays.settings(name)]
    return [
        f"+{key}: found no such key in veRL's configuration, expected {near}; it may be read by nothing"
        for key in added
        if (near := _neighbour(key, known))
    ]


def _neighbour(key: str, known: Sequence[str]) -> str:
    """`key` with its first part that is not known replaced by a known one that is nearly it, "" without."""
    parts = key.split(".")
    for depth, part in enumerate(parts):
        before = ".".join([*parts[:depth], ""])
        names = {one.removeprefix(before).partition(".")[0] for one in known if one.startswith(before)}
        if part not in names:
            near = get_close_matches(part, sorted(names), 1, 0.85)
            return ".".join([*parts[:depth], near[0], *parts[depth + 1 :]]) if near else ""
    return ""


def unknown_key(key: str, known: Sequence[str]) -> str:
    """What is wrong with a key that a trainer has not, and the nearest that it has."""
    from tpru_verl.launch.settings import KEYS

    for pair in KEYS.values():
        other = pair[1 - pair.index(key)] if key in pair else ""
        if other in known:
            return f"found no key {key!r}, expected {other}, its name in this trainer"
    last = key.rpartition(".")[2]
    same = [one for one in known if one.rpartition(".")[2] == last]
    near = get_close_matches(key, same, 3, 0.0) or get_close_matches(key, known, 1, 0.7)
    meant = f", expected {' or '.join(near)}" if near else ", and none like it"
    return f"found no key {key!r}{meant}"


def quoted(override: str) -> str:
    """`KEY=VALUE` as Hydra reads it: a value that its grammar refuses, such as a path with `=`, in quotes.

    So is a text with white space around it, which Hydra would cut off.

    Raises ValueError in one line for an override that quotes do not help.
    """
    key, equals, value = override.partition("=")
    if _is_read(override):
        cut_off = value != value.strip() and _is_bare_text(override, value.strip())
        return f"{key}={in_quotes(value)}" if cut_off else override
    if value.startswith("[") and value.endswith("]"):
        items = [item.strip() for item in value[1:-1].split(",")]
        value = ",".join(item if _is_read(f"{key}={item}") else in_quotes(item) for item in items)
        made = f"{key}=[{value}]"
    else:
        made = f"{key}={in_quotes(value)}"
    if not equals or not _is_read(made):
        raise ValueError(f"found {override!r}, expected KEY=VALUE in Hydra's syntax, such as {_EXAMPLE}")
    return made


_EXAMPLE = "'data.train_files=\"my rows.parquet\"'"


def _is_read(override: str) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        # A list of values that Hydra would try one after another (a,b) is no value of one run.
        return not OverridesParser.create().parse_override(override).is_sweep_override()
    except HydraException:
        return False


def _is_bare_text(override: str, value: str) -> bool:
    """Whether the value is text without quotes, and no number, switch, list, null or reference."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    read = OverridesParser.create().parse_override(override).value()
    return isinstance(read, str) and not value.startswith(("'", '"')) and "${" not in value


def in_quotes(value: str) -> str:
    """A value that Hydra reads as this text, whatever it looks like."""
    # A backslash counts only before a quotation mark.
    escaped = re.sub(r'(\\*)("|$)', lambda match: match[1] * 2 + match[2].replace('"', '\\"'), value)
    return f'"{escaped}"'


def easyr1_arguments(recipe: str, overrides: Sequence[str] = ()) -> list[str]:
    """What follows `python -m verl.trainer.main` to train with EasyR1, from any folder.

    The recipe names its template and its reward relative to a clone. The arguments have whole paths, because
    EasyR1 goes on without a file that it does not find. `+tpru=paper` becomes the two keys that it changes.

    Raises:
        ValueError: no such recipe, one that this EasyR1 is too old for, or an overlay that is for veRL.
        RuntimeError: what is installed is not EasyR1.
    """
    from tpru_verl.recipes.for_easyr1 import PAPER as PAPER_CHANGES

    trainer = trainers.find()
    if trainer.name != trainers.EASYR1:
        raise RuntimeError(f"found {trainer} in {trainer.folder}, expected EasyR1")
    check_name(recipe, trainer)
    overlays.check_easyr1(overrides, trainer)
    family = family_of(_easyr1_model(recipe, overrides))
    if family and not trainer.knows(family):
        known_by = f"EasyR1 {family.easyr1}" if family.easyr1 else "veRL"
        raise ValueError(f"{recipe}: found {trainer}, expected {known_by}, which knows {family.name}")
    package = Path(trainers.__file__).parent
    paper = bool(overlays.taken(overrides))
    settings = {
        "data.format_prompt": f"{package}/prompts/{'paper' if paper or 'paper' in recipe else 'tpru'}.jinja",
        "worker.reward.reward_function": f"{package}/reward_fns/easyr1.py:compute_score",
    }
    if paper:
        settings |= {key: change.value for key, change in PAPER_CHANGES.items() if key not in settings}
        settings["trainer.experiment_name"] = "paper"
    given = [item for item in overrides if overlays.key_of(item) != "tpru"]
    taken = {overlays.key_of(item) for item in given}
    ours = [f"{key}={value}" for key, value in settings.items() if key not in taken]
    return [f"config={EASYR1 / f'{recipe}.yaml'}", *ours, *given]


def _easyr1_model(recipe: str, overrides: Sequence[str]) -> str:
    """The model's path or Hub id: the last override of it, or what the recipe has."""
    from omegaconf import OmegaConf

    key = "worker.actor.model.model_path"
    given = [item.partition("=")[2] for item in overrides if overlays.key_of(item) == key]
    return given[-1] if given else str(OmegaConf.select(OmegaConf.load(EASYR1 / f"{recipe}.yaml"), key))
