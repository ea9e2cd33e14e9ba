"""The own task of verifiers 0.4, with our reward."""

import asyncio
from typing import Any

from support.responses import SCORES


def test_task_scores_a_trace() -> None:
    import verifiers.v1 as vf  # pyright: ignore[reportMissingImports]
    from verifiers.v1.configs.task import TaskConfig  # pyright: ignore[reportMissingImports]
    from verifiers.v1.task import WireTaskData  # pyright: ignore[reportMissingImports]

    config = TaskConfig.model_validate(
        {"rewards": {"tpru": {"fn": "tpru_verl.reward_fns.verifiers:tpru_reward", "weight": 0.5}}}
    )

    async def score(**message: object) -> float:
        task = vf.Task(WireTaskData.model_validate({"idx": 0, "prompt": "?", "answer": "B"}), config)
        record = traced(task, message)
        await task.score(record)
        assert list(record.rewards) == ["tpru"]
        return record.reward

    for text, expected in SCORES.items():
        assert asyncio.run(score(content=text)) == expected / 2
    assert asyncio.run(score(content="<answer>B</answer>", reasoning_content="x")) == 0.5


def traced(task: Any, message: dict[str, object]) -> Any:
    """A trace of verifiers' own that holds one sampled message."""
    from verifiers.v1.configs.agent import AgentConfig  # pyright: ignore[reportMissingImports]
    from verifiers.v1.graph import MessageNode  # pyright: ignore[reportMissingImports]
    from verifiers.v1.trace import AgentInfo, Trace, TraceTask  # pyright: ignore[reportMissingImports]
    from verifiers.v1.types import AssistantMessage  # pyright: ignore[reportMissingImports]

    node = MessageNode(message=AssistantMessage(**message), sampled=True)  # pyright: ignore
    agent = AgentInfo(config=AgentConfig())
    return Trace(task=TraceTask(type="Task", data=task.data), agent=agent, nodes=[node])
