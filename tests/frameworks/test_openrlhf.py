"""OpenRLHF's own executor, with our reward."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.responses import SCORES

from tpru_verl.reward_fns import openrlhf


@pytest.mark.parametrize("max_length", [64, 9], ids=["whole prompt", "cut prompt"])
def test_executor(checkpoint: Path, max_length: int) -> None:
    """The executor that loads `--reward.remote_url`, with an engine that says what we tell it."""
    from openrlhf.utils.agent import SingleTurnAgentExecutor  # pyright: ignore[reportMissingImports]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    executor = SingleTurnAgentExecutor(openrlhf.__file__)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Which?"}], tokenize=False, add_generation_prompt=True
    )

    async def reply(text: str) -> dict[str, Any]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]

        async def generate(*_: object, **__: object) -> SimpleNamespace:
            output = SimpleNamespace(token_ids=ids, finish_reason="stop", logprobs=None)
            return SimpleNamespace(outputs=[output])

        parameters = SimpleNamespace(max_tokens=1, logprobs=None)
        engine = SimpleNamespace(generate=generate)
        return await executor.execute(prompt, "B", parameters, max_length, tokenizer, engine)

    for text, score in SCORES.items():
        result = asyncio.run(reply(text))
        assert float(result["reward"]) == float(result["scores"]) == score
        assert set(result["extra_logs"]) == {"accuracy", "format", "partial"}
