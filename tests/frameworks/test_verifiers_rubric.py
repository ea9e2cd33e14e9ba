"""The own environment of verifiers 0.1, with our reward."""

import asyncio
from types import SimpleNamespace
from typing import Any

from support.responses import SCORES

from tpru_verl.reward_fns import verifiers


def test_environment_generates_and_scores() -> None:
    """Rollouts of a single-turn environment with a client that says what we tell it."""
    import verifiers as vf  # pyright: ignore[reportMissingImports]
    from datasets import Dataset
    from openai.types.chat import ChatCompletion

    async def score(text: str) -> float:
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        reply = {"id": "1", "created": 0, "model": "m", "object": "chat.completion", "choices": [choice]}

        async def create(**_: object) -> ChatCompletion:
            return ChatCompletion.model_validate(reply)

        completions = SimpleNamespace(create=create)
        client: Any = SimpleNamespace(chat=SimpleNamespace(completions=completions), base_url="")
        rubric = vf.Rubric(funcs=[verifiers.tpru_rubric_reward])
        dataset = Dataset.from_list([{"question": "Which?", "answer": "B"}])
        environment = vf.SingleTurnEnv(dataset=dataset, eval_dataset=dataset, rubric=rubric)
        results = await environment.evaluate(client, "m", num_examples=1, rollouts_per_example=2)
        (reward, again) = results["reward"]
        assert reward == again
        return reward

    for text, expected in SCORES.items():
        assert asyncio.run(score(text)) == expected
