"""`--model` alone counts as the recipe of that model does, so that a run uses what `prepare` stores."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.commands import Tpru
from support.rows import reordering, write_parquet

pytest.importorskip("verl")
from omegaconf import DictConfig
from transformers import (
    AutoProcessor,
    ProcessorMixin,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from tpru_verl import recipes
from tpru_verl.data.tokens.recipes import bounds_of, counter_of
from tpru_verl.plugin import prompt_lengths
from tpru_verl.plugin.dataset import TPRUDataset

Model = Callable[[str], Path]
RECIPES = {"tpru_7b": "qwen2_5_vl", "tpru_qwen3vl_4b": "qwen3_vl", "tpru_qwen35_9b": "qwen3_5"}
ROWS = [reordering(seed) for seed in range(3)]


@pytest.fixture
def model(checkpoint: Path, tmp_path: Path) -> Model:
    """A folder with the processor of a family, with the sizes of its released models, and no weights."""

    def model(model_type: str) -> Path:
        tiny = AutoProcessor.from_pretrained(checkpoint)
        new = model_type != "qwen2_5_vl"
        size = {"shortest_edge": 65536, "longest_edge": 2**24} if new else {"shortest_edge": 3136}
        images = Qwen2VLImageProcessor(patch_size=16 if new else 14, size={"longest_edge": 12845056, **size})
        kind: type[ProcessorMixin] = Qwen3VLProcessor if new else Qwen2_5_VLProcessor
        parts = {"tokenizer": tiny.tokenizer, "chat_template": tiny.chat_template}
        videos = Qwen3VLVideoProcessor() if new else tiny.video_processor
        folder = tmp_path / model_type
        kind(image_processor=images, video_processor=videos, **parts).save_pretrained(folder)
        (folder / "config.json").write_text(json.dumps({"model_type": model_type, "vision_config": {}}))
        return folder

    return model


def data_of(recipe: str) -> DictConfig:
    return recipes.compose(recipe, ["data.train_files=train.parquet", "data.val_files=test.parquet"]).data


@pytest.mark.parametrize("recipe", [name for name in recipes.names() if name != "tpru_tiny_cpu"])
def test_bounds_are_those_of_the_recipe(recipe: str) -> None:
    data = data_of(recipe)
    bounds = bounds_of(2 * data.image_patch_size)
    assert (bounds.least, bounds.most) == (data.min_pixels, data.max_pixels)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_uses_the_counts_of_prepare(
    recipe: str, model: Model, tpru: Tpru, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model(RECIPES[recipe])
    rows = write_parquet(tmp_path / "rows.parquet", ROWS)
    assert tpru("prepare", rows, tmp_path / "out", "--model", folder)[0] == 0
    monkeypatch.setattr(prompt_lengths, "_asked", lambda *_: pytest.fail("counted anew"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    processor = AutoProcessor.from_pretrained(folder)
    data = TPRUDataset([str(tmp_path / "out")], processor.tokenizer, data_of(recipe), processor)
    assert len(data) == 3


@pytest.mark.parametrize("model_type", RECIPES.values())
def test_visual_tokens_are_a_part_of_the_whole_prompt(
    model_type: str, model: Model, tpru: Tpru, tmp_path: Path
) -> None:
    folder, out = model(model_type), tmp_path / "stats.json"
    rows = write_parquet(tmp_path / "rows.parquet", ROWS)
    assert tpru("stats", rows, "--model", folder, "--json", out)[0] == 0
    found: dict[str, Any] = json.loads(out.read_text())
    counter, _ = counter_of(str(folder), "tpru")
    assert found["visual_tokens_a_row"]["max"] == 4 * counter.image_tokens(40, 30)
    assert found["visual_tokens_a_row"]["max"] < found["tokens_a_row"]["max"]
    code, _, error = tpru("stats", rows, "--model", folder, "--patch", 14)
    assert (code, "--patch: found 14 beside --model" in error) == (2, True)
