"""veRL 0.9.0: it loads our plugin, and its own agent loop rolls out the rows of our data set."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.rollouts import Rollouts

from tpru_verl import recipes, trainers
from tpru_verl.demo.scenes import make_rows, write_parquet


def test_a_version_that_was_not_tested_is_said_once() -> None:
    assert trainers.unfit(trainers.find()) == []
    fresh = {name: value for name, value in os.environ.items() if name != "TPRU_PLUGIN_ANNOUNCED"}
    command = [sys.executable, "-c", "import verl"]
    done = subprocess.run(command, env=fresh, capture_output=True, text=True, check=True)
    warning = "tpru plugin: found veRL 0.9.0, tested with 0.9.1; what differs is in docs/versions.md"
    assert done.stderr.count(warning) == 1
    assert "could not be loaded" not in done.stderr


def test_the_agent_loop_is_verls_own(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import logging

    from verl.experimental.agent_loop import AgentLoopManager
    from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopWorkerTQ

    from tpru_verl.plugin.agent_loop import TPRUAgentLoopManager

    monkeypatch.setattr(AgentLoopManager, "__init__", lambda self: None)
    monkeypatch.setattr(logging.getLogger("tpru_verl"), "propagate", True)
    manager: Any = TPRUAgentLoopManager()
    assert manager.agent_loop_workers_class is AgentLoopWorkerTQ
    assert "veRL 0.9.0 has no hf_model_type, mm_inputs_out in its agent loop" in caplog.text


def test_rows_of_our_data_set_keep_their_images(checkpoint: Path, tmp_path: Path) -> None:
    from tpru_verl.plugin.agent_loop import _StockWorker

    write_parquet(make_rows(2, seed=3), tmp_path / "rows.parquet")
    files = [f"data.{name}_files={tmp_path / 'rows.parquet'}" for name in ("train", "val")]
    config = recipes.compose("tpru_tiny_cpu", [*files, f"actor_rollout_ref.model.path={checkpoint}"])
    rollouts = Rollouts(config, _StockWorker)
    rollouts.run()
    n = config.actor_rollout_ref.rollout.n
    assert len(rollouts.fields) == 2 * n
    for row in rollouts.fields.values():
        shown = row["multi_modal_inputs"]
        assert len(shown["pixel_values"]) == shown["image_grid_thw"].prod(-1).sum() > 0
    assert rollouts.server.images == sum(
        len(row["multi_modal_inputs"]["image_grid_thw"]) for row in rollouts.fields.values()
    )
