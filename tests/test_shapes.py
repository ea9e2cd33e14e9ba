"""Shapes of models, against the parameters of transformers' own classes."""

import json
from pathlib import Path
from typing import Any

import pytest

from tpru_verl.models import FAMILIES, family_of
from tpru_verl.shapes import SHAPES, DeltaNet, Shape, shape_of


def config_of(model: str) -> dict[str, Any]:
    """The released model's config.json, as far as it says sizes."""
    shape, family = SHAPES[model], family_of(model)
    assert family is not None
    text = {
        "model_type": f"{family.model_type}_text",
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocabulary,
        "moe_intermediate_size" if shape.experts else "intermediate_size": shape.intermediate,
    }
    if shape.experts:
        text |= {"num_experts": shape.experts, "num_experts_per_tok": shape.experts_a_token}
    if net := shape.delta_net:
        text |= {
            "full_attention_interval": 4,
            "linear_num_key_heads": net.key_heads,
            "linear_num_value_heads": net.value_heads,
            "linear_key_head_dim": net.key_dim,
            "linear_value_head_dim": net.value_dim,
            "linear_conv_kernel_dim": net.kernel,
            "shared_expert_intermediate_size": shape.shared_intermediate,
        }
    vision = {
        "depth": shape.vision_layers,
        "hidden_size": shape.vision_hidden,
        "intermediate_size": shape.vision_intermediate,
        "hidden_act": "silu" if shape.vision_gated else "gelu_pytorch_tanh",
        "patch_size": shape.patch,
        "spatial_merge_size": shape.merge,
        "num_position_embeddings": shape.vision_positions,
        "deepstack_visual_indexes": [*range(shape.deepstack)],
        "out_hidden_size": shape.hidden,
    }
    return {
        "model_type": family.model_type,
        "text_config": text,
        "vision_config": vision,
        "tie_word_embeddings": shape.tied,
    }


def built(folder: Path) -> Any:
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    with torch.device("meta"):
        config = transformers.AutoConfig.from_pretrained(folder)
        return transformers.AutoModelForImageTextToText.from_config(config)


@pytest.mark.parametrize("model", SHAPES)
def test_a_known_shape_has_the_parameters_of_transformers_model(model: str, tmp_path: Path) -> None:
    written(tmp_path, config_of(model))
    assert shape_of(str(tmp_path)) == SHAPES[model]
    assert SHAPES[model].parameters == pytest.approx(built(tmp_path).num_parameters(), rel=0.01)


@pytest.mark.parametrize(
    ("model", "billions", "active"),
    # All tensors of the checkpoints, as the models' pages state them. An active token passes the tower, too.
    [
        ("Qwen/Qwen2.5-VL-3B-Instruct", 3.75, 3.75),
        ("Qwen/Qwen2.5-VL-7B-Instruct", 8.29, 8.29),
        ("Qwen/Qwen2.5-VL-32B-Instruct", 33.5, 33.5),
        ("Stephengzk/TPRU-7B", 8.29, 8.29),
        ("Qwen/Qwen3-VL-2B-Instruct", 2.13, 2.13),
        ("Qwen/Qwen3-VL-4B-Instruct", 4.44, 4.44),
        ("Qwen/Qwen3-VL-8B-Thinking", 8.77, 8.77),
        ("Qwen/Qwen3-VL-30B-A3B-Instruct", 31.1, 3.89),
    ],
)
def test_known_models_have_their_size(model: str, billions: float, active: float) -> None:
    shape = shape_of(model)
    assert shape is not None
    assert shape.parameters / 1e9 == pytest.approx(billions, rel=0.01)
    assert shape.active / 1e9 == pytest.approx(active, rel=0.01)


def test_what_the_layers_of_hybrid_attention_keep_of_a_sequence() -> None:
    torch = pytest.importorskip("torch")
    from transformers import Qwen3_5TextConfig
    from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5TextModel

    config = Qwen3_5TextConfig(
        vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, linear_num_key_heads=2, linear_num_value_heads=4,
        linear_key_head_dim=8, linear_value_head_dim=16, pad_token_id=0,
    )  # fmt: skip
    model = Qwen3_5TextModel(config)
    cache = model(torch.ones(1, 7, dtype=torch.long), use_cache=True).past_key_values
    net = DeltaNet(3, 2, 4, 8, 16, 4)
    kept = cache.layers[0]
    # transformers keeps the inputs of the whole kernel, vLLM all but the newest.
    assert kept.recurrent_states.numel() == net.state - 3 * net.channels
    assert kept.conv_states.numel() == 4 * net.channels
    assert [hasattr(layer, "keys") for layer in cache.layers] == [False, False, False, True]


@pytest.mark.parametrize("model", ["Qwen/Qwen3-VL-2B-Instruct", "Qwen/Qwen3.5-0.8B", "Qwen/Qwen3.5-35B-A3B"])
def test_the_matrices_are_the_linear_modules_of_the_layers(model: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    written(tmp_path, config_of(model))
    found: dict[tuple[int, int], int] = {}
    for module in built(tmp_path).model.language_model.layers.modules():
        if isinstance(module, torch.nn.Linear):
            size = (module.in_features, module.out_features)
            found[size] = found.get(size, 0) + 1
    ours: dict[tuple[int, int], int] = {}
    for rows, columns, number in SHAPES[model].matrices:
        ours[rows, columns] = ours.get((rows, columns), 0) + number
    assert ours == found


def test_the_size_of_a_model_on_disk(checkpoint: Path) -> None:
    from safetensors import safe_open

    shape = shape_of(str(checkpoint))
    assert shape is not None
    with safe_open(checkpoint / "model.safetensors", "np") as file:
        real = sum(file.get_tensor(name).size for name in file.keys())  # noqa: SIM118
    assert shape.parameters == pytest.approx(real, rel=0.03)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_config_that_transformers_saves_is_read(model_type: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.AutoConfig.for_model(model_type).save_pretrained(tmp_path)
    shape = shape_of(str(tmp_path))
    assert isinstance(shape, Shape)
    assert shape.parameters == pytest.approx(built(tmp_path).num_parameters(), rel=0.01)


def test_the_page_of_models_has_these_shapes(root: Path) -> None:
    page = (root / "docs/models.md").read_text()
    lines = [line for line in page.partition("Sizes that are known")[2].splitlines() if line.startswith("|")]
    assert lines[2:] == [
        f"| {model} | {shape.parameters / 1e9:.2f} | {shape.active / 1e9:.2f} "
        f"| {shape.kv_layers} of {shape.layers} |"
        for model, shape in SHAPES.items()
    ]


def test_a_model_that_is_not_known() -> None:
    assert shape_of("someone/else") is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "hidden_size: found nothing, expected a whole number"),
        ({"hidden_size": "64"}, "hidden_size: found '64', expected a whole number"),
        ({"text_config": {"hidden_size": 64, "num_attention_heads": -1}}, "num_attention_heads: found -1"),
        ([], "found list, expected a JSON object"),
    ],
)
def test_a_config_that_lacks_a_size_is_one_line(config: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        shape_of(written(tmp_path, config))
    assert "config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def written(folder: Path, config: object) -> str:
    folder.joinpath("config.json").write_text(json.dumps(config))
    return str(folder)
