"""Reward for EasyR1: `worker.reward.reward_function=<this file>:compute_score`."""

from tpru_verl.grading import grade

REWARD_NAME = "tpru"
REWARD_TYPE = "batch"


def compute_score(reward_inputs: list[dict[str, str]], preset: str = "tpru") -> list[dict[str, float]]:
    """`overall` (the reward), `accuracy`, `format` and `partial` of each `response` and `ground_truth`."""
    grades = [grade(item["response"], item["ground_truth"]) for item in reward_inputs]
    return [
        {"overall": g.score(preset), "accuracy": g.accuracy, "format": g.format, "partial": g.partial}
        for g in grades
    ]
