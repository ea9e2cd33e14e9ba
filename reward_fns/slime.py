"""Reward for slime (read in 0.3.1), for single samples and for groups (`--group-rm`).

    --custom-rm-path tpru_verl.reward_fns.slime.tpru_reward
    --label-key answer --metadata-key extra_info
    ray job submit --runtime-env-json '{"env_vars": {"TPRU_PRESET": "tpru"}}' ...

Slime's arguments have no place for a preset: its workers take it from their environment, and so the
penalties, TPRU_MAX_LENGTH (in tokens) and TPRU_NGRAM.
"""

from typing import Any

from tpru_verl.reward_fns._rows import chosen, grade_answer, without_end


async def tpru_reward(args: object, sample: Any, **kwargs: object) -> Any:
    """The reward of a sample against its `label`, a list of rewards for a list of samples."""
    if isinstance(sample, list):
        return [await tpru_reward(args, one, **kwargs) for one in sample]
    response = without_end(sample.response)
    found = grade_answer(response, sample.label, "label", sample.metadata)
    return found.score(**chosen(), length=getattr(sample, "response_length", None) or None)
