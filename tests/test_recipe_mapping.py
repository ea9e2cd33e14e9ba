"""docs/recipe-mapping.md says what the recipe files say, key by key."""

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tpru_verl import recipes
from tpru_verl.recipes import for_easyr1


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
