"""benchmarks/gpu_smoke.py and gpu_update.py: commands, tables; test_end_to_end.py runs the first on a CPU."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("verl")
from tpru_verl.demo.scenes import make_rows, write_parquet
from tpru_verl.sample import problems_of


@pytest.fixture
def smoke(root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    return import_module("gpu_smoke")


@pytest.mark.parametrize("recipe", ["tpru_7b", "tpru_3b", "tpru_tiny_cpu"])
def test_the_command_passes_verls_own_checks(
    smoke: ModuleType, tmp_path: Path, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    from tpru_verl import recipes

    monkeypatch.delenv("VERL_PLATFORM", raising=False)  # what the recipe itself needs
    for name in ("train", "test"):
        write_parquet(make_rows(3, seed=1), tmp_path / f"{name}.parquet")
    overrides = smoke.overrides_of(tmp_path, steps=2)
    plan = smoke.planned(recipe, overrides, tmp_path / "metrics.jsonl")
    command, environment = plan.command, plan.environment
    assert command[1:5] == ["-m", "verl.trainer.main_ppo", "--config-name", recipe]
    assert (environment.get("VERL_PLATFORM") == "cpu") == (recipe == "tpru_tiny_cpu")
    config = recipes.compose(recipe, command[5:])
    validate_config(config, need_reference_policy(config), need_critic(config))
    assert config["actor_rollout_ref"]["actor"]["ppo_mini_batch_size"] == 16


def test_without_flash_attn_a_gpu_recipe_pads_its_sequences(
    smoke: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tpru_verl import trainers

    versions = {"flash-attn": "2.8.3"}
    monkeypatch.setattr(trainers, "version_of", versions.get)
    overrides = smoke.overrides_of(tmp_path, steps=2)
    assert smoke.planned("tpru_7b", overrides, tmp_path).settings["remove_padding"] is True
    assert not capsys.readouterr().err
    versions.clear()
    settings = smoke.planned("tpru_7b", overrides, tmp_path).settings
    assert (settings["remove_padding"], settings["attention"]) == (False, "sdpa")
    assert "flash-attn is not installed" in capsys.readouterr().err
    tiny = smoke.planned("tpru_tiny_cpu", overrides, tmp_path).settings
    assert (tiny["attention"], capsys.readouterr().err) == ("eager", "")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_tiny_recipe_on_each_device_passes_verls_own_checks(device: str, tmp_path: Path) -> None:
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    from tpru_verl import recipes
    from tpru_verl.demo.run import moved_to
    from tpru_verl.launch.plan import compose

    overrides = ["data.train_files=x", "data.val_files=x", *moved_to(device)]
    config = recipes.compose("tpru_tiny_cpu", overrides)
    validate_config(config, need_reference_policy(config), need_critic(config))
    rollout = config.actor_rollout_ref.rollout
    assert rollout.free_cache_engine == rollout.enable_sleep_mode == (device == "cuda")
    assert ("VERL_PLATFORM" in compose("tpru_tiny_cpu", overrides).environment) == (device == "cpu")


@pytest.mark.parametrize("name", ["gpu_smoke", "gpu_update", "step", "tuning", "learning"])
def test_every_benchmark_that_trains_can_be_sent_to_a_device(
    name: str, smoke: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--device", "tpu"])
    with pytest.raises(SystemExit):
        import_module(name).main()
    assert "argument --device: invalid choice: 'tpu' (choose from" in capsys.readouterr().err


def test_the_table_shows_what_was_logged_and_no_run_is_an_error(smoke: ModuleType, tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    steps = [{"timing_s/step": value, "timing_s/gen": 1.0} for value in (9.0, 2.0, 3.0)]
    metrics.write_text("".join(json.dumps({"data": step}) + "\n" for step in [{"val": 1}, *steps]))
    header, *rows = smoke.report(metrics)
    assert header == ["metric", "first step", "median of 2 more"]
    assert rows == [["timing_s/gen", "1.0000", "1.0000"], ["timing_s/step", "9.0000", "2.5000"]]
    metrics.write_text("")
    with pytest.raises(ValueError, match="no training step"):
        smoke.report(metrics)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder as benchmarks/gpu_update.py makes one for its smallest model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        update = import_module("gpu_update")
        folder = tmp_path_factory.mktemp("update")
        update.write_model(update.SMALL, folder / "model")
        picture = update.picture(np.random.default_rng(0))
        update.write(folder / "train.parquet", [update.sample(i, [picture] * 5) for i in range(2)])
        yield folder


def test_the_random_model_has_the_shape_and_answers_to_pictures(small: Path) -> None:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from tpru_verl.shapes import shape_of

    update = import_module("gpu_update")
    assert shape_of(str(small / "model")) == update.SMALL
    model = AutoModelForImageTextToText.from_pretrained(small / "model")
    processor = AutoProcessor.from_pretrained(small / "model")
    picture = Image.new("RGB", (640, 480))
    text = "<|vision_start|><|image_pad|><|vision_end|> what?"
    inputs = processor(text=[text], images=[picture], return_tensors="pt")
    patches = int(inputs["image_grid_thw"].prod())
    assert 16384 <= patches * 14 * 14 <= 36864
    with torch.no_grad():
        logits = model(**inputs).logits
    assert logits.shape[-1] == update.SMALL.vocabulary
    assert bool(logits.isfinite().all())


def test_an_update_is_shown_beside_its_estimate(small: Path, tmp_path: Path) -> None:
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    from tpru_verl import recipes
    from tpru_verl.shapes import SHAPES

    update = import_module("gpu_update")
    for gpus in (1, 8):
        overrides = update.overrides_of(small, 3, gpus)
        config = recipes.compose("tpru_3b", overrides)
        validate_config(config, need_reference_policy(config), need_critic(config))
        assert config.actor_rollout_ref.actor.fsdp_config.param_offload == (gpus == 1)
        assert config.actor_rollout_ref.rollout.ignore_eos  # else random weights end their answers early
    settings = update.settings_of(update.planned("tpru_3b", overrides, tmp_path).settings, 8, grown=False)
    step = {
        "timing_s/step": 9.0,
        "timing_s/gen": 5.0,
        "timing_s/update_actor": 4.0,
        "timing_s/update_weights": 0.5,
        "prompt_length/mean": 535.0,
        "response_length/mean": 400.0,
        "perf/total_num_tokens": 8 * 32 * 5 * 935,
        "perf/mfu/actor": 0.25,
        "actor/perf/max_memory_allocated_gb": 60.0,
    }
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps({"data": step}) + "\n" for _ in range(3)))
    shape = SHAPES["Qwen/Qwen2.5-VL-3B-Instruct"]
    rows = {name: (one, other) for name, one, other in update.report(metrics, settings, shape)}
    assert rows["tokens a second and GPU"][0] == f"{32 * 5 * 935 / 4:,.0f}"
    # 6 operations for each weight and token are the most of it: 3 x 2 x 3.09e9 without the embedding.
    utilization = float(rows["model FLOPs utilization"][0])
    assert 1.0 < utilization / (6 * 3.09e9 * 32 * 5 * 935 / 4 / update.PEAK) < 1.2
    assert rows["peak of a GPU's memory, GiB"][0] == "60.0"
    metrics.write_text(json.dumps({"data": step}))
    with pytest.raises(ValueError, match="found no step after the first"):
        update.report(metrics, settings, shape)


def test_its_rows_are_read_and_a_gpu_stays_a_gpu(small: Path, root: Path) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(root / "benchmarks")!r})
from pathlib import Path
import gpu_update
overrides = gpu_update.overrides_of(Path({str(small)!r}), 2, 1)
plan = gpu_update.planned("tpru_3b", overrides, Path("metrics.jsonl"))
assert not {{"VERL_PLATFORM", "OMP_NUM_THREADS"}} & set(plan.environment), plan.environment
from transformers import AutoProcessor
from verl.trainer.ppo.utils import create_rl_dataset
from omegaconf import OmegaConf
config = OmegaConf.create(plan.settings.config)
processor = AutoProcessor.from_pretrained(config.actor_rollout_ref.model.path)
rows = create_rl_dataset(config.data.train_files, config.data, processor.tokenizer, processor)
assert len(rows) == 2
assert len(rows[0]["raw_prompt"][0]["content"]) > 5
print("read")
"""
    hidden = {"VERL_PLATFORM", "OMP_NUM_THREADS"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1:] == ["read"], done.stderr[-3000:]


def test_made_rows_are_good_rows(smoke: ModuleType) -> None:
    """Three of 96 offered an order twice, and the data set refused them: a run on a GPU ended there."""
    made = import_module("made_rows")
    image = made.picture(np.random.default_rng(0))
    for i in range(300):
        row = made.sample(i, [image] * 5)
        assert problems_of(row.problem, row.answer, len(row.images)) == []
