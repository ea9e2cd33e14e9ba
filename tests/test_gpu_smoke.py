"""benchmarks/gpu_smoke.py: its command composes for every recipe, and its CPU path runs to the table."""

import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("verl")
from tpru_verl.demo.scenes import make_rows, write_parquet


@pytest.fixture
def smoke(root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    return import_module("gpu_smoke")


@pytest.mark.parametrize("recipe", ["tpru_7b", "tpru_3b", "tpru_tiny_cpu"])
def test_the_command_passes_verls_own_checks(smoke: ModuleType, tmp_path: Path, recipe: str) -> None:
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    from tpru_verl import recipes

    for name in ("train", "test"):
        write_parquet(make_rows(3, seed=1), tmp_path / f"{name}.parquet")
    command, environment = smoke.command(recipe, tmp_path, steps=2)
    assert command[1:5] == ["-m", "verl.trainer.main_ppo", "--config-name", recipe]
    assert ("VERL_PLATFORM" in environment) == (recipe == "tpru_tiny_cpu")
    config = recipes.compose(recipe, command[5:])
    validate_config(config, need_reference_policy(config), need_critic(config))
    assert config["actor_rollout_ref"]["actor"]["ppo_mini_batch_size"] == 16


def test_the_table_shows_what_was_logged_and_no_run_is_an_error(smoke: ModuleType, tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    steps = [{"timing_s/step": value, "timing_s/gen": 1.0} for value in (9.0, 2.0, 3.0)]
    metrics.write_text("".join(json.dumps({"data": step}) + "\n" for step in [{"val": 1}, *steps]))
    table = smoke.report(metrics)
    cells = dict(
        zip(table.columns[0].cells, zip(*(c.cells for c in table.columns[1:]), strict=True), strict=True)
    )
    assert cells == {"timing_s/gen": ("1.0000", "1.0000"), "timing_s/step": ("9.0000", "2.5000")}
    metrics.write_text("")
    with pytest.raises(ValueError, match="no training step"):
        smoke.report(metrics)


@pytest.mark.e2e
def test_its_cpu_path_runs_on_two_ranks(root: Path) -> None:
    command = [sys.executable, str(root / "benchmarks/gpu_smoke.py"), "--recipe", "tpru_tiny_cpu"]
    ranks = ["trainer.n_gpus_per_node=2", "ray_kwargs.ray_init.num_gpus=2"]
    done = subprocess.run(
        [*command, "--steps", "1", *ranks], capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "timing_s/update_actor" in done.stdout
    correlation = re.search(r"rollout_actor_probs_pearson_corr\D+([\d.]+)", done.stdout)
    assert correlation is not None
    assert float(correlation[1]) > 0.99
