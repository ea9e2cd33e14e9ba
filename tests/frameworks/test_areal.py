"""AReaL's own workflow, with our reward."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from support.responses import SCORES


def test_workflow_scores_a_response(checkpoint: Path) -> None:
    """`RLVRWorkflow` from an import string: decoding, process pool and all."""
    from areal.api import AsyncRewardWrapper  # pyright: ignore[reportMissingImports]
    from areal.utils.dynamic_import import import_from_string  # pyright: ignore[reportMissingImports]
    from areal.workflow.rlvr import RLVRWorkflow  # pyright: ignore[reportMissingImports]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    workflow: Any = RLVRWorkflow.__new__(RLVRWorkflow)
    workflow.tokenizer = tokenizer
    function = import_from_string("tpru_verl.reward_fns.areal.reward_fn")
    workflow.async_reward_fn = AsyncRewardWrapper(function, max_workers=1)

    async def score(text: str) -> float:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        response = SimpleNamespace(input_tokens=[1], output_tokens=ids)
        row = {"messages": [], "answer": "B", "extra_info": {"scene": "x"}}
        return await workflow._compute_rewards(response, "Which?", row)

    for text, expected in SCORES.items():
        assert asyncio.run(score(text)) == expected
