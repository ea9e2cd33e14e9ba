"""benchmarks/gpu_smoke.py: its command and its table; test_end_to_end.py runs it on a CPU."""

import json
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
    command, environment = smoke.command(recipe, overrides, tmp_path / "metrics.jsonl")
    assert command[1:5] == ["-m", "verl.trainer.main_ppo", "--config-name", recipe]
    assert (environment.get("VERL_PLATFORM") == "cpu") == (recipe == "tpru_tiny_cpu")
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
