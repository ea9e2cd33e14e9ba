"""Reward for slime (read in 0.3.1), for single samples and for groups (`--group-rm`).

    --custom-rm-path tpru_verl.reward_fns.slime.tpru_reward
    --label-key answer --metadata-key extra_info
    ray job submit --runtime-env-json '{"env_vars": {"TPRU_PRESET": "tpru"}}' ...

Slime's arguments have no place for a preset: its workers take it from their environment, and so the
penalties, TPRU_MAX_LENGTH (in tokens) and TPRU_NGRAM. A prompt that ends with `<think>` tells that the chat
template has opened the reasoning; TPRU_OPENED_THINK=1 tells it where a sample keeps its prompt as messages.

Example:
    >>> import asyncio
    >>> from types import SimpleNamespace
    >>> response = "<think>The onion is cut last.</think><answer>B</answer>"
    >>> asyncio.run(tpru_reward(None, SimpleNamespace(response=response, label="B", metadata={})))
    1.0
"""

from typing import Any

from tpru_verl.reward_fns._rows import chosen, grade_answer, has_opened_think, without_end


async def tpru_reward(args: object, sample: Any, **kwargs: object) -> Any:
    """The reward of a sample against its `label`, a list of rewards for a list of samples."""
    if isinstance(sample, list):
        return [await tpru_reward(args, one, **kwargs) for one in sample]
    response = without_end(sample.response)
    prompt = getattr(sample, "prompt", None)
    opened = has_opened_think(prompt=prompt)
    place = "label" if getattr(sample, "index", None) is None else f"sample {sample.index}, label"
    found = grade_answer(response, sample.label, place, sample.metadata, question=prompt, opened=opened)
    return found.score(**chosen(), length=getattr(sample, "response_length", None) or None)
