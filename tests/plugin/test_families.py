"""The tiny model of each family goes through the data set, the counts, the rollout and the vision tower."""

import io
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("verl")
import torch
from PIL import Image
from qwen_vl_utils import fetch_image
from support.rollouts import Rollouts, same
from support.tiny_models import TinyModels
from support.verls_forward import give_verls_forward
from transformers import AutoModelForImageTextToText, AutoProcessor

from tpru_verl import recipes
from tpru_verl.data.tokens.prompts import PromptCounter
from tpru_verl.demo.scenes import make_rows, write_parquet
from tpru_verl.demo.tiny_families import overrides
from tpru_verl.models import FAMILIES
from tpru_verl.plugin.agent_loop import TPRUAgentLoopWorker, _StockWorker
from tpru_verl.plugin.vision import share_images
from tpru_verl.sample import Sample

ROWS, N = 3, 2
SIDES = ((56, 56), (112, 56), (40, 90))  # of the pictures in turn: grids of patches that differ
pytestmark = pytest.mark.parametrize("model_type", FAMILIES)


def rows(number: int) -> list[Sample]:
    """Rows whose pictures have several sizes."""
    made = []
    for row in make_rows(number, seed=3):
        images = []
        for i, image in enumerate(row.images):
            file = io.BytesIO()
            Image.open(io.BytesIO(image)).resize(SIDES[i % len(SIDES)]).save(file, "PNG")
            images.append(file.getvalue())
        made.append(replace(row, images=tuple(images)))
    return made


@pytest.fixture
def rollout(tmp_path: Path, tiny_model: TinyModels) -> Callable[[type, str], Rollouts]:
    write_parquet(rows(ROWS), tmp_path / "rows.parquet")

    def run(worker_class: type, model_type: str) -> Rollouts:
        files = [f"data.{name}_files={tmp_path / 'rows.parquet'}" for name in ("train", "val")]
        model = overrides(FAMILIES[model_type], tiny_model(model_type))
        config = recipes.compose("tpru_tiny_cpu", [*files, *model, f"actor_rollout_ref.rollout.n={N}"])
        rollouts = Rollouts(config, worker_class, ROWS)
        rollouts.run()
        return rollouts

    return run


def bounds_of(processor: Any) -> dict[str, int]:
    size = processor.image_processor.size
    return {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}


def asked(row: Sample, processor: Any) -> Any:
    """The processor's output for a row, as veRL asks for it."""
    parts: list[dict[str, str]] = []
    for i, text in enumerate(row.problem.split("<image>")):
        parts += [{"type": "image"}] * (i > 0) + [{"type": "text", "text": text}] * bool(text)
    text = processor.apply_chat_template(
        [{"role": "user", "content": parts}], add_generation_prompt=True, tokenize=False
    )
    patch, bounds = processor.image_processor.patch_size, bounds_of(processor)
    elements: list[Any] = [{"image": Image.open(io.BytesIO(image)), **bounds} for image in row.images]
    images = [fetch_image(element, image_patch_size=patch) for element in elements]
    return processor(text=[text], images=images, return_tensors="pt")


def test_prompts_are_counted_from_their_sizes(model_type: str, tiny_model: TinyModels) -> None:
    processor = AutoProcessor.from_pretrained(tiny_model(model_type))
    assert type(processor).__name__ == FAMILIES[model_type].processor
    counter = PromptCounter(processor, "bare", bounds_of(processor))
    assert counter._text._cuts  # its tokenizer's rule for words is known
    assert counter.count(rows(4)) == [asked(row, processor)["input_ids"].shape[1] for row in rows(4)]


def test_the_rollout_writes_what_stock_verl_writes(model_type: str, rollout: Callable) -> None:
    one, other = rollout(TPRUAgentLoopWorker, model_type), rollout(_StockWorker, model_type)
    assert one.worker._groups
    assert one.tags == other.tags
    assert one.fields.keys() == other.fields.keys()
    assert len(one.fields) == ROWS * N
    for key, row in other.fields.items():
        ours = one.fields[key]
        for name in ours.keys() & row.keys() - {"metrics", "raw_prompt"}:
            assert same(ours[name], row[name]), (key, name, ours[name], row[name])
    assert other.server.images == N * one.server.images


def test_positions_are_those_of_the_model(model_type: str, rollout: Callable, tiny_model: TinyModels) -> None:
    model = AutoModelForImageTextToText.from_pretrained(tiny_model(model_type))
    processor = AutoProcessor.from_pretrained(tiny_model(model_type))
    fields = rollout(TPRUAgentLoopWorker, model_type).fields
    for i, row in enumerate(rows(ROWS)):
        found = fields[f"row{i}_0_0"]
        ids = found["input_ids"].unsqueeze(0)
        kinds = torch.zeros_like(ids)
        kinds[ids == processor.image_token_id] = 1
        positions, _ = model.model.get_rope_index(
            ids, mm_token_type_ids=kinds, image_grid_thw=found["multi_modal_inputs"]["image_grid_thw"]
        )
        assert torch.equal(found["position_ids"][1:], positions.squeeze(1))
        assert torch.equal(found["position_ids"][0], torch.arange(ids.shape[1]))
        assert len(found["multi_modal_inputs"]["image_grid_thw"]) == len(row.images)


def test_the_update_encodes_each_image_once(
    model_type: str, tiny_model: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through veRL's forward pass, two samples of a prompt have the logits of one alone."""
    family = FAMILIES[model_type]
    model = AutoModelForImageTextToText.from_pretrained(tiny_model(model_type)).eval()
    processor = AutoProcessor.from_pretrained(tiny_model(model_type))
    one = asked(rows(1)[0], processor)
    kinds, grids = one.pop("mm_token_type_ids"), one["image_grid_thw"]
    positions, _ = model.model.get_rope_index(one["input_ids"], mm_token_type_ids=kinds, image_grid_thw=grids)
    text = torch.arange(kinds.shape[1]).view(1, 1, -1)
    one["position_ids"] = torch.cat([text, positions])
    two = {key: torch.cat([value] * 2, dim=int(key == "position_ids")) for key, value in one.items()}
    give_verls_forward(model, monkeypatch)
    share_images(import_module(family.modeling))
    seen: list[int] = []
    model.model.visual.patch_embed.register_forward_pre_hook(lambda _, pixels: seen.append(len(pixels[0])))
    with torch.no_grad():
        alone, both = (model(**inputs, use_cache=False).logits for inputs in (one, two))
    patches = int(grids.prod(-1).sum())
    assert seen == [patches, patches]
    torch.testing.assert_close(both, torch.cat([alone] * 2), rtol=1e-4, atol=1e-4)
