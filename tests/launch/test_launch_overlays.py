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
MODEL, ACTOR, ROLLOUT = (f"actor_rollout_ref.{part}" for part in ("model", "actor", "rollout"))
REWARD = "reward.custom_reward_function.reward_kwargs"


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
            "tpru_7b",
            ["+tpru=[gdpo,drgrpo]"],
            "algorithm.norm_adv_by_std_in_grpo: found false, which veRL 0.9.1 ignores with "
            "algorithm.adv_estimator=gdpo, expected grpo or grpo_passk, or true",
        ),
        (
            "tpru_7b",
            ["+tpru=drgrpo", "algorithm.adv_estimator=grpo_vectorized"],
            "which veRL 0.9.1 ignores with algorithm.adv_estimator=grpo_vectorized",
        ),
        *(
            ("tpru_7b", [f"+tpru={overlays}", *more], f"{lost}: found it with algorithm.adv_estimator=gdpo")
            for overlays, more, lost in [
                ("[dapo,gdpo]", [], "reward.reward_kwargs.overlong_buffer_cfg.enable=true"),
                ("[paper,gdpo]", [], f"{REWARD}.preset=paper"),
                ("gdpo", [f"{REWARD}.preset=tpru_partial"], f"{REWARD}.preset=tpru_partial"),
                ("gdpo", [f"+{REWARD}.ngram=4"], f"{REWARD}.ngram=4"),
                ("gdpo", [f"+{REWARD}.max_length=2000"], f"{REWARD}.max_length=2000"),
                ("gdpo", ["algorithm.use_kl_in_reward=true"], "algorithm.use_kl_in_reward=true"),
            ]
        ),
        (
            "tpru_tiny_cpu",
            [f"{ROLLOUT}.tensor_model_parallel_size=2"],
            f"{ROLLOUT}.engine_kwargs.vllm.distributed_executor_backend: "
            f"found one process (UniProcExecutor), expected mp with {ROLLOUT}.tensor_model_parallel_size=2",
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
            ["+tpru=one_gpu_80", "trainer.n_gpus_per_node=4", f"{ACTOR}.fsdp_config.fsdp_size=1"],
            "+tpru=one_gpu_80: found 124 GiB of weights and optimizer",
        ),
        (
            "tpru_7b",
            ["+tpru=lora", f"{MODEL}.lora_adapter_path=./none"],
            f"{MODEL}.lora_adapter_path=./none: found no adapter_config.json in it, expected an adapter",
        ),
        ("tpru_7b", [f"{MODEL}.lora_rank=-3"], f"{MODEL}.lora_rank=-3: found -3, expected 0 or more"),
        ("tpru_7b", [f"{ROLLOUT}.n=0"], f"{ROLLOUT}.n=0: found 0, expected 1 or more"),
        ("tpru_7b", [f"{ROLLOUT}.n=1"], f"{ROLLOUT}.n=1: found one response to a prompt, expected 2 or more"),
        (
            "tpru_7b",
            [f"{ROLLOUT}.gpu_memory_utilization=60"],
            f"{ROLLOUT}.gpu_memory_utilization=60: found 60, expected a share",
        ),
        ("tpru_7b", ["trainer.nnodes=1.5"], "trainer.nnodes=1.5: found 1.5, expected a whole number"),
        (
            "tpru_tiny_cpu",
            ["trainer.n_gpus_per_node=0"],
            "trainer.n_gpus_per_node=0: found 0, expected 1 or more",
        ),
        (
            "tpru_7b",
            ["data.mm_processor_kwargs=[1,2]"],
            "override data.mm_processor_kwargs=[1,2]: expected keys below it, data.mm_processor_kwargs.NAME=",
        ),
        (
            "tpru_7b",
            ["data.train_batch_size=[1,2]"],
            "data.train_batch_size=[1, 2]: found several values, expected a number",
        ),
        (
            "tpru_7b",
            ["++data.train_batch_size=abc"],
            "data.train_batch_size=abc: found text, expected a number",
        ),
        (
            "tpru_7b",
            ["data.train_batch_size=1e2"],
            "=100.0: found 100.0, expected a whole number, such as 256",
        ),
        ("tpru_7b", ["trainer.save_freq=1e1"], "trainer.save_freq=10.0: found 10.0, expected a whole number"),
        (
            "tpru_7b",
            ["trainer.total_training_steps=1e2"],
            "trainer.total_training_steps=100.0: found 100.0, expected a whole number",
        ),
        ("tpru_7b", [f"++{ROLLOUT}.n=1e1"], f"{ROLLOUT}.n=10.0: found 10.0, expected a whole number"),
        (
            "tpru_7b",
            ["data.mm_processor_kwargs=5"],
            "data.mm_processor_kwargs=5: found no names, expected arguments of the processor by name",
        ),
        (
            "tpru_7b",
            ["+tpru=lora,sdpa"],
            "+tpru=lora,sdpa: found several overlays without brackets, expected +tpru=[lora,sdpa]",
        ),
        ("tpru_7b", ["+tpru="], "+tpru=: found no overlay, expected one or more of cispo, dapo"),
        ("tpru_7b", ["tpru=lora"], "tpru=lora: found no single + before it, expected +tpru=lora"),
        ("tpru_7b", ["+tpru=[lora,lora]"], "+tpru=[lora,lora]: found lora twice, expected each overlay once"),
        (
            "tpru_7b",
            ["worker.actor.model.model_path=x"],
            "found no key 'worker.actor.model.model_path', expected actor_rollout_ref.model.path, its name",
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
        ("tpru_7b", "[lora,gdpo,tis]"),
        ("tpru_7b", "[lora,tis,paper]"),
        ("tpru_7b", "one_gpu_80 trainer.n_gpus_per_node=4"),
        (
            "tpru_32b",
            f"[lora,one_gpu_80] {ACTOR}.fsdp_config.model_dtype=bf16 {ROLLOUT}.gpu_memory_utilization=0.8",
        ),
        (
            "tpru_32b",
            f"[lora,one_gpu_48] trainer.n_gpus_per_node=4 {ROLLOUT}.tensor_model_parallel_size=4",
        ),
    ],
)
def test_what_fits(recipe: str, overlay: str) -> None:
    overlay, *more = overlay.split(" ")
    planned = plan.compose(recipe, [*DATA, f"+tpru={overlay}", *more])
    name = "_".join([recipe, *overlay.strip("[]").split(",")])
    assert f"trainer.experiment_name={name}" in planned.command
    assert planned.settings.text("checkpoints") == f"checkpoints/tpru/{name}"


@pytest.mark.parametrize(
    ("recipe", "override", "doubt"),
    [
        ("tpru_7b", "+data.trian_files=x", "+data.trian_files: found no such key in veRL's configuration, "
         "expected data.train_files; it may be read by nothing"),
        ("tpru_7b", "++actor_rollot_ref.rollout.n=5", "expected actor_rollout_ref.rollout.n"),
        ("tpru_tiny_cpu", "+tpru=one_gpu_24", "found trainer.device=cpu, expected a recipe for a GPU"),
        ("tpru_7b", "+tpru=[reproducible,dapo]", "filter_groups.enable=true, with which the prompts"),
        ("tpru_7b", "+tpru=reproducible", ""),
        ("tpru_7b", "+tpru=one_gpu_80", ""),
        ("tpru_7b", "+data.mm_processor_kwargs.min_pixels=16384", ""),
        ("tpru_7b", "+trainer.checkpoint_callback_class=a.B", ""),
        ("tpru_7b", f"+{ACTOR}.checkpoint.save_lora_only=true", ""),
        ("tpru_7b", f"+{ACTOR}.megatron.router_replay.mode=R2", ""),
        ("tpru_7b", f"++{MODEL}.override_config.attn_implementation=sdpa", ""),
        ("tpru_7b", f"++{ROLLOUT}.n=6", ""),
    ],
)  # fmt: skip
def test_what_is_hardly_meant(recipe: str, override: str, doubt: str) -> None:
    offload = [f"{ACTOR}.fsdp_config.offload_policy=true"] if "one_gpu_80" in override else []
    found = plan.compose(recipe, [*DATA, override, *offload]).doubts
    assert len(found) == bool(doubt)
    assert doubt in "".join(found)


@pytest.mark.parametrize(
    "overrides",
    [
        ["+tpru=[dapo,gdpo]", "reward.reward_kwargs.overlong_buffer_cfg.enable=false"],
        ["+tpru=gdpo", "algorithm.gdpo_reward_keys=[partial,format]", f"{REWARD}.preset=tpru_partial"],
        ["+tpru=gdpo", "algorithm.gdpo_reward_keys=[score,format]", f"+{REWARD}.ngram=4"],
    ],
)
def test_what_gdpo_takes(overrides: list[str]) -> None:
    plan.compose("tpru_7b", [*DATA, *overrides])


def test_the_size_of_a_model_that_is_refused_is_not_read(tmp_path: Path) -> None:
    config = {"model_type": "gemma3", "text_config": {"hidden_size": 8}, "vision_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "processor_config.json").write_text('{"processor_class": "Gemma3Processor"}')
    given = [*DATA, f"{MODEL}.path={tmp_path}"]
    plan.compose("tpru_7b", given)
    with pytest.raises(ValueError, match=rf"{MODEL}\.path=.*: found Gemma3Processor, expected a processor"):
        plan.compose("tpru_7b", [*given, "+tpru=one_gpu_24"])


@pytest.mark.parametrize(
    "named",
    ["trainer.experiment_name=mine", "++trainer.experiment_name=mine", "trainer={experiment_name:mine}"],
)
def test_a_name_that_is_given_stays(named: str) -> None:
    planned = plan.compose("tpru_7b", [*DATA, "+tpru=lora", named])
    assert planned.settings.text("checkpoints") == "checkpoints/tpru/mine"


def test_decimal_numbers_stay_where_verls_default_is_a_whole_one() -> None:
    given = [f"{ACTOR}.entropy_coeff=0.01", f"{ROLLOUT}.top_p=0.9", "++algorithm.kl_ctrl.kl_coef=1"]
    plan.compose("tpru_7b", [*DATA, *given])


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
