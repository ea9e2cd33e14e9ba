"""Files of a run as veRL writes them: metrics by its own logger, responses in the form of its dumps."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from unittest.mock import patch

HEALTHY = {
    "critic/score/mean": 0.5,
    "critic/score/max": 1.0,
    "critic/score/min": 0.0,
    "rollouts/accuracy": 0.5,
    "rollouts/format": 1.0,
    "rollouts/groups_without_variance": 0.3,
    "rollouts/commonest_answer": 0.3,
    "rollouts/commonest_right_answer": 0.25,
    "response_length/mean": 100.0,
    "response_length/max": 300.0,
    "response_length/clip_ratio": 0.01,
    "actor/kl_loss": 0.01,
    "actor/ppo_kl": 0.001,
    "actor/entropy": 0.5,
    "actor/grad_norm": 0.4,
    "training/rollout_actor_probs_pearson_corr": 0.999,
    "timing_s/gen": 5.0,
    "timing_s/update_actor": 4.0,
    "timing_s/step": 10.0,
    "perf/throughput": 2500.0,
    "actor/perf/cpu_memory_used_gb": 9.0,
}


def log_with_verl(path: Path, lines: Sequence[tuple[int, Mapping[str, float]]]) -> Path:
    """Metrics by veRL's own `file` logger."""
    from verl.utils.tracking import Tracking

    with patch.dict(os.environ, {"VERL_FILE_LOGGER_PATH": str(path)}):
        tracking = Tracking("tpru", "test", ["file"])
        for step, data in lines:
            tracking.log(data, step)
        tracking.finish()
    return path


def metrics_line(step: int, **changed: float) -> str:
    data = HEALTHY | {key.replace("__", "/"): value for key, value in changed.items()}
    told = {key: None if math.isnan(value) else value for key, value in data.items()}
    return json.dumps({"step": step, "data": told}) + "\n"


QUESTION = (
    "user\nReorder the frames of {}. "
    "Options: A. 1 2 3 4 B. 3 1 4 2 E. None of the choices provided\nassistant\n"
)


def dump(
    path: Path,
    step: int,
    *,
    groups: int = 4,
    each: int = 4,
    right: float = 0.5,
    seed: int = 0,
    said: str = "",
) -> Path:
    """Responses to a step, in groups; about `right` of them right; `said` stands in each of them."""
    rng = random.Random(f"{seed} {step}")
    path.parent.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    for group in range(groups):
        for sample in range(each):
            letter = "B" if rng.random() < right else "A"
            record = {
                "input": QUESTION.format(f"row {group}"),
                "output": f"<think>so {said}</think><answer>{letter}</answer>",
                "gts": "B",
                "score": 1.0 if letter == "B" else 0.125,
                "step": step,
                "uid": f"{step}-{group}_{sample}_0",
            }
            lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    path.write_text("".join(lines))
    return path
