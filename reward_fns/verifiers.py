"""Rewards for verifiers: `tpru_reward` (read in 0.4) and `tpru_rubric_reward` (0.1, a `Rubric`'s function).

    export TPRU_PRESET=tpru
    [env.taskset.task.rewards.tpru]  # in the TOML file; the task's data have a field `answer`
    fn = "tpru_verl.reward_fns.verifiers:tpru_reward"

(penalties: TPRU_MAX_LENGTH, in characters, and TPRU_NGRAM) and in 0.1:

    from tpru_verl.reward_fns.verifiers import tpru_rubric_reward
    rubric = vf.Rubric(funcs=[tpru_rubric_reward])
    env = vf.SingleTurnEnv(dataset=dataset, rubric=rubric)  # a data set with a column `answer`

TPRU_OPENED_THINK=1 tells that the chat template opens `<think>`.

Example:
    >>> response = "<think>The onion is cut last.</think><answer>B</answer>"
    >>> tpru_rubric_reward([{"role": "assistant", "content": response}], "B")
    1.0
    >>> import asyncio
    >>> from types import SimpleNamespace
    >>> trace = SimpleNamespace(last_reply=response, assistant_messages=[])
    >>> asyncio.run(tpru_reward({"prompt": "Which comes next?", "answer": "B"}.items(), trace))
    1.0
"""

from collections.abc import Iterable, Sequence
from typing import Any

from tpru_verl.reward_fns._rows import chosen, grade_answer, grade_row, has_opened_think


async def tpru_reward(task: Iterable[tuple[str, Any]], trace: Any) -> float:
    """The reward of a trace's last reply against its task's `answer` (or solution, ground_truth, label)."""
    reply, messages = trace.last_reply, trace.assistant_messages[-1:]
    if messages and (messages[0].content or "").strip() == reply:
        reply = [messages[0].model_dump()]  # with its reasoning
    return grade_row(reply, dict(task), "task", opened=has_opened_think()).score(**chosen())


def tpru_rubric_reward(
    completion: str | Sequence[object], answer: str, info: object = None, prompt: object = None
) -> float:
    """The reward of a completion; `info` may hold `task` and `options`, else the prompt tells the options."""
    found = grade_answer(completion, answer, "answer", info, question=prompt, opened=has_opened_think())
    return found.score(**chosen())
