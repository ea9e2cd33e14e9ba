"""docs/recipe-mapping.md says what the recipe files say, key by key."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tpru_verl import recipes
from tpru_verl.recipes import for_easyr1, overlays
from tpru_verl.reward_fns.easyr1 import compute_score


def leaves(config: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Dotted key and value of everything that is no section."""
    if not isinstance(config, Mapping):
        yield prefix[:-1], config
        return
    for key, value in config.items():
        yield from leaves(value, f"{prefix}{key}.")


def settings_in(path: Path) -> dict[str, object]:
    config = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(config, dict)
    return dict(leaves({key: value for key, value in config.items() if key != "defaults"}))


@lru_cache
def composed() -> dict[str, object]:
    return dict(leaves(OmegaConf.to_container(recipes.compose("tpru_7b"), resolve=True)))


def cells(page: Path, header: str) -> list[list[str]]:
    """The cells of the lines below a table's header, without their backticks."""
    below = page.read_text().partition(header)[2].splitlines()[2:]
    rows = []
    for line in below:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().strip("`") for cell in line.strip("|").split(" | ")])
    return rows


def said(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@pytest.fixture
def page(root: Path) -> Path:
    return root / "docs/recipe-mapping.md"


def test_every_published_setting_is_accounted_for(page: Path) -> None:
    rows = cells(page, "| EasyR1 key | published | ours | veRL key | ours | why |")
    published = [key for key, value, *_ in rows if value != "-"]
    assert len(published) == len(set(published)) == 71
    # A value that changed, or went, has its reason.
    for key, value, ours, _, _, why in rows:
        assert value == ours or why, key


def test_easyr1_column_is_the_recipe(page: Path) -> None:
    rows = cells(page, "| EasyR1 key | published | ours | veRL key | ours | why |")
    found = {key: ours for key, _, ours, *_ in rows if ours != "-"}
    recipe = settings_in(recipes.EASYR1 / "tpru_7b.yaml")
    assert found == {key: said(value) for key, value in recipe.items()}


def test_verl_columns_are_the_recipe(page: Path) -> None:
    rows = cells(page, "| EasyR1 key | published | ours | veRL key | ours | why |")
    both = {key: ours for _, _, _, key, ours, _ in rows if key != "-"}
    alone = {key: ours for key, ours, _ in cells(page, "\n| veRL key | ours | why |")}
    recipe = settings_in(recipes.VERL / "tpru_7b.yaml")
    assert set(recipe) <= set(both) | set(alone)
    assert set(alone) <= set(recipe)
    for key, ours in both.items():
        assert ours == said(composed()[key]), key
    for key, ours in alone.items():
        assert ours == said(recipe[key]), key


@pytest.mark.parametrize("name", for_easyr1.VARIANTS)
def test_the_other_easyr1_recipes_are_made_of_tpru_7b(name: str) -> None:
    assert (recipes.EASYR1 / f"{name}.yaml").read_text() == for_easyr1.text_of(name)
    made, source = (settings_in(recipes.EASYR1 / f"{n}.yaml") for n in (name, "tpru_7b"))
    differs = {key for key in made if made[key] != source[key]}
    assert differs == {*for_easyr1.VARIANTS[name].changes, "trainer.experiment_name"}


def test_a_change_of_a_key_that_is_not_there_is_no_change() -> None:
    with pytest.raises(KeyError, match=r"data\.sead"):
        list(for_easyr1._changed("data:\n  seed: 1", {"data.sead": for_easyr1.Change("2")}))


ACTOR = "actor_rollout_ref.actor"
# A key that `tpru train` names for EasyR1 in place of an overlay, and the overlay's own.
SAME = {
    "worker.actor.model.lora.rank": "actor_rollout_ref.model.lora_rank",
    "worker.actor.model.lora.alpha": "actor_rollout_ref.model.lora_alpha",
    "worker.actor.optim.lr": f"{ACTOR}.optim.lr",
    "worker.actor.loss_type": f"{ACTOR}.policy_loss.loss_mode",
    "worker.actor.clip_ratio_low": f"{ACTOR}.clip_ratio_low",
    "worker.actor.clip_ratio_high": f"{ACTOR}.clip_ratio_high",
    "worker.actor.clip_ratio_dual": f"{ACTOR}.clip_ratio_c",
}
AVERAGES = {"token": "token-mean", "seq": "seq-mean-token-mean"}


def named(overlay: str) -> dict[str, object]:
    """The keys of EasyR1 that are named for an overlay, with their values."""
    config = OmegaConf.to_container(OmegaConf.from_dotlist(shlex.split(overlays._EASYR1[overlay][0])))
    return dict(leaves(config))


@pytest.mark.parametrize("overlay", overlays._EASYR1)
def test_keys_for_easyr1_have_the_values_of_the_overlay(overlay: str) -> None:
    theirs, ours = named(overlay), dict(overlays.settings(overlay))
    if overlay == "cispo":  # no bound from below; EasyR1 takes the logarithm of 1 - clip_ratio_low
        assert ours.pop(SAME["worker.actor.clip_ratio_low"]) == 10.0
        assert theirs.pop("worker.actor.clip_ratio_low") == 0.999
    expected = {key: ours[same] for key, same in SAME.items() if same in ours}
    assert {key: theirs[key] for key in SAME if key in theirs} == expected
    assert theirs.get("algorithm.disable_kl", False) is (ours.get(f"{ACTOR}.use_kl_loss") is False)
    mode = theirs.get("worker.actor.loss_avg_mode")
    assert AVERAGES.get(str(mode)) == ours.get(f"{ACTOR}.loss_agg_mode")


def test_adapters_of_easyr1_leave_the_vision_tower_out() -> None:
    pattern = str(named("lora")["worker.actor.model.lora.exclude_modules"])
    for name in ("visual.blocks.0.attn.qkv", "model.visual.merger.mlp.0"):
        assert re.fullmatch(pattern, name)
    assert not re.fullmatch(pattern, "model.language_model.layers.0.self_attn.q_proj")


@pytest.mark.parametrize(("answers", "kept"), [("AAAA", False), ("BBBB", False), ("ABAB", True)])
def test_the_filter_of_easyr1_drops_groups_of_one_reward(answers: str, kept: bool) -> None:
    """EasyR1 0.3.2 and head keep a group whose mean of `filter_key` lies between 0.01 and 0.99."""
    inputs: list[dict[str, object]] = [
        {"response": f"<think>x</think><answer>{answer}</answer>", "ground_truth": "B"} for answer in answers
    ]
    key = str(named("dapo")["algorithm.filter_key"])
    mean = sum(scores[key] for scores in compute_score(inputs)) / len(answers)
    assert (0.01 < mean < 0.99) is kept


def test_the_penalty_for_length_ends_where_a_response_of_easyr1_does() -> None:
    longest = settings_in(recipes.EASYR1 / "tpru_7b.yaml")["data.max_response_length"]
    assert named("dapo")["worker.reward.reward_function_kwargs.max_length"] == longest
