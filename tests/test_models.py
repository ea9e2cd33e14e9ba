"""The families of models, against transformers' own classes."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tpru_verl.models import FAMILIES, family_of, model_refusal, processor_of, verl_refusal


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.model_type)
def test_a_family_is_what_transformers_has(family: Any, tmp_path: Path) -> None:
    from importlib import import_module

    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(family.model_type)
    assert hasattr(transformers, family.processor)
    assert not verl_refusal(family.processor)
    assert hasattr(import_module(family.modeling), family.vision_tower)
    # Some configurations have 14 where the processors of the released models have it, too.
    assert (config.vision_config.patch_size, config.vision_config.spatial_merge_size) == (
        family.patch,
        family.merge,
    )
    config.save_pretrained(tmp_path)
    assert family_of(str(tmp_path)) == family
    assert family_of(f"somebody/{family.name}-7B-Instruct") == family


@pytest.mark.parametrize(
    ("model", "model_type"),
    [
        ("Qwen/Qwen2-VL-7B-Instruct", "qwen2_vl"),
        ("Qwen/Qwen3-VL-30B-A3B-Instruct", "qwen3_vl_moe"),
        ("Qwen/Qwen3-VL-235B-A22B-Thinking", "qwen3_vl_moe"),
        ("Qwen/Qwen3-VL-32B-Instruct", "qwen3_vl"),
        ("Qwen/Qwen3.5-9B", "qwen3_5"),
        ("Qwen/Qwen3.5-4B-Base", "qwen3_5"),
        ("Qwen/Qwen3.5-35B-A3B", "qwen3_5_moe"),
        ("Stephengzk/TPRU-32B", "qwen2_5_vl"),
    ],
)
def test_the_family_of_a_hub_id(model: str, model_type: str) -> None:
    assert family_of(model) == FAMILIES[model_type]


def test_what_is_no_family_here() -> None:
    assert family_of("google/gemma-3-4b-it") is None
    assert verl_refusal("InternVLProcessor").startswith(
        "found InternVLProcessor, expected a processor that veRL"
    )


def test_the_processor_of_a_folder_is_the_one_that_its_files_name(checkpoint: Path, tmp_path: Path) -> None:
    assert processor_of(str(checkpoint)) == "Qwen2_5_VLProcessor"
    assert processor_of(str(tmp_path)) == processor_of("Qwen/Qwen3-VL-4B-Instruct") == ""
    (tmp_path / "preprocessor_config.json").write_text('{"processor_class": "InternVLProcessor"}')
    assert processor_of(str(tmp_path)) == "InternVLProcessor"


@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json", "config.json"])
def test_a_processor_that_comes_with_its_model_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "kimi_vl", "vision_config": {}}')
    code = '{"auto_map": {"AutoProcessor": "org/x--processing_kimi_vl.KimiVLProcessor"}, "vision_config": {}}'
    (tmp_path / name).write_text(code)
    assert processor_of(str(tmp_path)) == "KimiVLProcessor"
    refusal = model_refusal(str(tmp_path))
    assert refusal.startswith("found KimiVLProcessor, expected a processor that veRL 0.9.1 knows")
    assert refusal.endswith("docs/models.md lists models to take")


@pytest.mark.parametrize(
    ("config", "refusal"),
    [
        ('{"model_type": "internvl_chat", "vision_config": {}}', "found no processor in the files of"),
        ('{"model_type": "qwen2"}', "found a model of text alone (qwen2), expected one for images"),
        ('{"model_type": "qwen3_vl", "vision_config": {}}', ""),
    ],
)
def test_a_model_without_a_processor(tmp_path: Path, config: str, refusal: str) -> None:
    (tmp_path / "config.json").write_text(config)
    found = model_refusal(str(tmp_path))
    assert found.startswith(refusal)
    assert bool(found) == bool(refusal)
    assert not refusal or "docs/models.md lists" in found


def test_a_config_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: found no JSON"):
        family_of(str(tmp_path))


def test_importing_brings_nothing_heavy_and_nothing_of_ours() -> None:
    code = "import sys, tpru_verl.models as m; print([n for n in sys.modules if n.startswith('tpru_verl.')])"
    code += "; assert not {'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['tpru_verl.models']"
