"""The families of models, and shapes read from the configurations of transformers' own classes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tpru_verl.models import FAMILIES, SHAPES, family_of, processor_of, shape_of, verl_refusal


@pytest.mark.parametrize(
    ("model", "billions"),
    # As the models' pages state them, in parameters of all tensors.
    [("Qwen2.5-VL-3B", 3.75), ("Qwen2.5-VL-7B", 8.29), ("Qwen2.5-VL-32B", 33.5), ("Qwen3-VL-4B", 4.44)],
)
def test_known_models_have_their_size(model: str, billions: float) -> None:
    shape = SHAPES[f"Qwen/{model}-Instruct"]
    assert shape.parameters / 1e9 == pytest.approx(billions, rel=0.01)


def test_the_size_of_a_model_on_disk(checkpoint: Path) -> None:
    from safetensors import safe_open

    shape = shape_of(str(checkpoint))
    assert shape is not None
    with safe_open(checkpoint / "model.safetensors", "np") as file:
        real = sum(file.get_tensor(name).size for name in file.keys())  # noqa: SIM118
    assert shape.parameters == pytest.approx(real, rel=0.03)


def written(folder: Path, config: object) -> str:
    folder.joinpath("config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize("kind", ["Qwen2VLConfig", "Qwen2_5_VLConfig", "Qwen3VLConfig", "Qwen3VLMoeConfig"])
def test_shapes_have_the_parameters_of_transformers_models(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    config = getattr(transformers, kind)()
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(config)
    shape = shape_of(str(tmp_path))
    assert shape is not None
    assert shape.parameters == pytest.approx(model.num_parameters(), rel=0.03)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.model_type)
def test_a_family_is_what_transformers_has(family: Any, tmp_path: Path) -> None:
    from importlib import import_module

    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(family.model_type)
    assert hasattr(transformers, family.processor)
    assert not verl_refusal(family.processor)
    assert not family.vision_tower or hasattr(import_module(family.modeling), family.vision_tower)
    # Some configurations have 14 where the processors of the released models have it, too.
    assert (config.vision_config.patch_size, config.vision_config.spatial_merge_size) == (
        family.patch,
        family.merge,
    )
    config.save_pretrained(tmp_path)
    assert family_of(str(tmp_path)) == family
    assert family_of(f"somebody/{family.name}-7B-Instruct") == family


def test_what_is_no_family_here() -> None:
    assert family_of("google/gemma-3-4b-it") is None
    assert shape_of("someone/else") is None
    assert verl_refusal("InternVLProcessor").startswith(
        "found InternVLProcessor, expected a processor that veRL"
    )


def test_the_processor_of_a_folder_is_the_one_that_its_files_name(checkpoint: Path, tmp_path: Path) -> None:
    assert processor_of(str(checkpoint)) == "Qwen2_5_VLProcessor"
    assert processor_of(str(tmp_path)) == processor_of("Qwen/Qwen3-VL-4B-Instruct") == ""
    (tmp_path / "preprocessor_config.json").write_text('{"processor_class": "InternVLProcessor"}')
    assert processor_of(str(tmp_path)) == "InternVLProcessor"


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


def test_a_config_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    for read in (shape_of, family_of):
        with pytest.raises(ValueError, match=r"config\.json: found no JSON"):
            read(str(tmp_path))


def test_importing_brings_nothing_heavy_and_nothing_of_ours() -> None:
    code = "import sys, tpru_verl.models as m; print([n for n in sys.modules if n.startswith('tpru_verl.')])"
    code += "; assert not {'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['tpru_verl.models']"
