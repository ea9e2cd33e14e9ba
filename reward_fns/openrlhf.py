"""Reward for OpenRLHF (read in 0.11), whose workers take the preset from their environment.

    export TPRU_PRESET=tpru  # before `ray start`
    python -m openrlhf.cli.train_ppo_ray ... --data.label_key answer --reward.remote_url \\
      "$(python -c 'import tpru_verl.reward_fns.openrlhf as m; print(m.__file__)')"

Penalties: TPRU_MAX_LENGTH (in characters) and TPRU_NGRAM. OpenRLHF catches what a reward raises and only
logs it: look for "Failed to fetch reward". A prompt that ends with `<think>` tells that the chat template has
opened the reasoning.

Example:
    >>> prompt = "Which comes next?"
    >>> response = "<think>The onion is cut last.</think><answer>B</answer>"
    >>> reward_func([prompt + response], [prompt], ["B"])["rewards"].tolist()
    [1.0]
"""

from collections.abc import Sequence
from typing import Any

from tpru_verl.reward_fns._rows import after_prompt, chosen, grade_answer, has_opened_think, without_end


def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[str]) -> dict[str, Any]:
    """`rewards` and `scores` of what follows the prompts; accuracy, format and partial in `extra_logs`."""
    from torch import tensor

    grades = [
        grade_answer(
            without_end(after_prompt(query, prompt)),
            label,
            f"row {i} of the batch, labels",
            question=prompt,
            opened=has_opened_think(prompt=prompt),
        )
        for i, (query, prompt, label) in enumerate(zip(queries, prompts, labels, strict=True))
    ]
    rewards = tensor([g.score(**chosen()) for g in grades])
    names = ("accuracy", "format", "partial")
    logs = {name: tensor([getattr(g, name) for g in grades]) for name in names}
    return {"rewards": rewards, "scores": rewards, "extra_logs": logs}
