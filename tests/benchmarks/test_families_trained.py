"""benchmarks/families.py trains a family with veRL's own trainer, and vLLM samples from what is trained."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("verl")


@pytest.mark.e2e
def test_qwen3_vl_trains_two_steps(root: Path, tmp_path: Path) -> None:
    small = ["data.train_batch_size=4", "actor_rollout_ref.actor.ppo_mini_batch_size=4"]
    done = subprocess.run(
        [
            *(sys.executable, str(root / "benchmarks/families.py"), "--only", "qwen3_vl"),
            *("--keep", str(tmp_path), *small),
        ],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (tmp_path / "qwen3_vl/metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["data"] for line in lines]
    assert [step["training/global_step"] for step in steps] == [1, 2], done.stdout
    assert min(step["training/rollout_actor_probs_pearson_corr"] for step in steps) > 0.99
    assert min(step["actor/grad_norm"] for step in steps) > 0
