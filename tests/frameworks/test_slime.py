"""slime's own reward hub, with our reward. It is no package: run with a checkout in PYTHONPATH."""

import asyncio
from types import SimpleNamespace

from support.responses import SCORES


def test_reward_hub() -> None:
    """The two functions through which slime's rollouts ask for rewards."""
    from slime.rollout.rm_hub import async_rm, batched_async_rm  # pyright: ignore[reportMissingImports]
    from slime.utils.types import Sample  # pyright: ignore[reportMissingImports]

    args = SimpleNamespace(custom_rm_path="tpru_verl.reward_fns.slime.tpru_reward")
    samples = [Sample(response=text + "<|im_end|>", label="B") for text in SCORES]
    assert asyncio.run(batched_async_rm(args, samples)) == list(SCORES.values())
    assert asyncio.run(async_rm(args, samples[0])) == 1.0
