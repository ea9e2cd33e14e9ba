"""An adapter to start from is plain LoRA: of others, veRL's checkpoints do not tell how they are computed."""

import json
from pathlib import Path

import pytest

from tpru_verl.launch import adapter

PLAIN = {
    "peft_type": "LORA",
    "r": 16,
    "lora_alpha": 32,
    "bias": "none",
    "use_rslora": False,
    "alpha_pattern": {},
}


def config(path: object) -> dict[str, object]:
    return {"actor_rollout_ref": {"model": {"lora_adapter_path": str(path), "lora_rank": 16}}}


@pytest.mark.parametrize("alpha", [32, 32.0])
def test_plain_lora_is_taken(alpha: float, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({**PLAIN, "lora_alpha": alpha}))
    adapter.check(config(tmp_path))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("use_rslora", True),
        ("use_dora", True),
        ("rank_pattern", {"q_proj": 4}),
        ("alpha_pattern", {"up_proj": 256}),
        ("modules_to_save", ["lm_head"]),
        ("bias", "lora_only"),
        ("lora_bias", True),
        ("lora_alpha", 0.5),
        ("peft_type", "ADALORA"),
    ],
)
def test_what_a_checkpoint_does_not_keep_is_refused(option: str, value: object, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({**PLAIN, option: value}))
    with pytest.raises(ValueError, match=r"found .* in adapter_config\.json, expected plain LoRA") as told:
        adapter.check(config(tmp_path))
    assert f"lora_adapter_path={tmp_path}: found {option}={value} in" in str(told.value)
    assert "merge the adapter into its model first" in str(told.value)


def test_one_of_the_hub_is_read_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({**PLAIN, "use_dora": True}))
    monkeypatch.setattr(adapter, "cached", lambda model, name: tmp_path / name)
    with pytest.raises(ValueError, match=r"lora_adapter_path=someone/adapter: found use_dora=True"):
        adapter.check(config("someone/adapter"))
