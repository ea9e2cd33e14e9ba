"""Overlays and settings that do not go together are told in one line, before anything starts."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from support.rows import reordering, write_parquet

from tpru_verl.launch import overlays, plan, reward_trial
from tpru_verl.launch.settings import Settings

pytest.importorskip("verl")
DATA = ["data.train_files=a.parquet", "data.val_files=b.parquet"]
MODEL, ACTOR = "actor_rollout_ref.model", "actor_rollout_ref.actor"


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        (
            "tpru_7b",
            ["+tpru=lora", f"{ACTOR}.freeze_vision_tower=true"],
            f"{ACTOR}.freeze_vision_tower: found true, expected false: veRL 0.9.1 ignores it",
        ),
        (
            "tpru_7b",
            ["algorithm.adv_estimator=gdpo"],
            "algorithm.gdpo_reward_keys: found none, expected what the reward returns",
        ),
        (
            "tpru_7b",
            ["+tpru=gdpo", "algorithm.gdpo_reward_keys=[acc]"],
            "algorithm.gdpo_reward_weights: found 2, expected 1, one for each of algorithm.gdpo_reward_keys",
        ),
        (
            "tpru_tiny_cpu",
            ["+tpru=dapo"],
            "reward.reward_kwargs.overlong_buffer_cfg.len: found 256, expected 1 to 32, the longest response",
        ),
        (
            "tpru_32b",
            ["+tpru=one_gpu_24"],
            "+tpru=one_gpu_24: found 62 GiB of weights for vLLM (Qwen/Qwen2.5-VL-32B-Instruct in bf16), "
            "expected at most 21",
        ),
        (
            "tpru_7b",
            ["+tpru=one_gpu_80"],
            "+tpru=one_gpu_80: found 124 GiB of weights and optimizer to train Qwen/Qwen2.5-VL-7B-Instruct, "
            "expected less than 80; add the overlay lora, or keep them in host memory",
        ),
        (
            "tpru_7b",
            ["+tpru=lora", f"{MODEL}.lora_adapter_path=./none"],
            f"{MODEL}.lora_adapter_path=./none: found no adapter_config.json in it, expected an adapter",
        ),
    ],
)
def test_what_does_not_fit(recipe: str, overrides: list[str], message: str) -> None:
    with pytest.raises((FileNotFoundError, ValueError)) as caught:
        plan.compose(recipe, [*DATA, *overrides])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("recipe", "overlay"),
    [
        ("tpru_qwen3vl_4b", "[lora,one_gpu_24]"),
        ("tpru_qwen3vl_2b", "one_gpu_24"),
        ("tpru_qwen3vl_8b", "[lora,one_gpu_48,sdpa]"),
        ("tpru_qwen35_9b", "[lora,one_gpu_80,dapo]"),
        ("tpru_7b", "[lora,gdpo,tis,paper]"),
    ],
)
def test_what_fits(recipe: str, overlay: str) -> None:
    planned = plan.compose(recipe, [*DATA, f"+tpru={overlay}"])
    name = "_".join([recipe, *overlay.strip("[]").split(",")])
    assert planned.command[-1] == f"trainer.experiment_name={name}"
    assert planned.settings.text("checkpoints") == f"checkpoints/tpru/{name}"


def test_a_name_that_is_given_stays() -> None:
    planned = plan.compose("tpru_7b", [*DATA, "+tpru=lora", "trainer.experiment_name=mine"])
    assert planned.settings.text("checkpoints") == "checkpoints/tpru/mine"


class TestAdapter:
    def config(self, path: object, rank: int) -> Mapping[str, object]:
        return {"actor_rollout_ref": {"model": {"lora_adapter_path": str(path), "lora_rank": rank}}}

    def test_of_the_rank_that_is_set(self, tmp_path: Path) -> None:
        (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 16}))
        overlays.check(self.config(tmp_path, 16))
        for rank in (0, 64):
            with pytest.raises(
                ValueError, match=rf"{MODEL}\.lora_rank: found {rank}, expected 16, the rank of"
            ):
                overlays.check(self.config(tmp_path, rank))

    @pytest.mark.parametrize("text", ["{}", "[1]", "no JSON"])
    def test_without_a_rank(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "adapter_config.json").write_text(text)
        with pytest.raises(
            ValueError, match=r"adapter_config\.json: found no rank `r` .* expected an adapter"
        ):
            overlays.check(self.config(tmp_path, 16))

    def test_on_the_hub_is_left_to_peft(self) -> None:
        overlays.check(self.config("someone/adapter", 16))
        with pytest.raises(ValueError, match="expected the rank of the adapter"):
            overlays.check(self.config("someone/adapter", 0))


@pytest.mark.parametrize(
    "algorithm",
    [
        {"adv_estimator": "gdpo", "gdpo_reward_keys": ["score", "order"]},
        {"filter_groups": {"enable": True, "metric": "order"}},
    ],
)
def test_a_reward_without_what_an_overlay_asks_of_it(tmp_path: Path, algorithm: Mapping[str, object]) -> None:
    rows = write_parquet(tmp_path / "train.parquet", [reordering(i) for i in range(8)])
    reward = {"path": "pkg://tpru_verl.reward_fns.verl", "name": "compute_score", "reward_kwargs": {}}
    data = {"train_files": [str(rows)], "prompt_template": "tpru"}
    config = {"data": data, "reward": {"custom_reward_function": reward}, "algorithm": algorithm}
    message = "found keys score, acc, format, partial, parsed, expected 'order' among them, as algorithm"
    with pytest.raises(ValueError, match=message):
        reward_trial.try_reward(Settings("veRL", config))
