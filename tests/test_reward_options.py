"""The options of a row reach the grader in every framework that hands over the row or its prompt."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from support.responses import talk
from support.rows import write_prepared_row

from tpru_verl.reward_fns import areal, ms_swift, openrlhf, slime, trl, verifiers
from tpru_verl.reward_fns.verl import compute_score

ORDERS = ("1324", "3421", "3214", "2143", "None of the choices provided")
LISTED = "".join(f"\n{letter}. {order}" for letter, order in zip("ABCDE", ORDERS, strict=True))
PROBLEM = f"Reorder. <image> <image> <image> <image>{LISTED}"
PARTS = [{"type": "text", "text": "Reorder. "}, *[{"type": "image"}] * 4, {"type": "text", "text": LISTED}]
SYSTEM = {"role": "system", "content": "Choose among: A. short B. long"}
PICTURE = "<|vision_start|><|image_pad|><|image_pad|><|vision_end|>"
CHAT = f"<|im_start|>user\n{PROBLEM.replace('<image>', PICTURE)}<|im_end|>\n<|im_start|>assistant\n"
# The right answer is A. A letter beside another option's order contradicts itself.
REWARDS = {"A": 1.0, "1324": 1.0, "A. 1324": 1.0, "A. 3421": 0.125, "B": 0.125, "A (None of these)": 0.125}

Reward = Callable[[str], float | None]


def trl_with(**columns: Any) -> Reward:
    batch: dict[str, Any] = {name: [value] for name, value in columns.items()}
    return lambda said: trl.tpru_reward([said], answer=["A"], **batch)[0]


def task_reward(said: str, **task: object) -> float:
    trace = SimpleNamespace(last_reply=said, assistant_messages=[])
    return asyncio.run(verifiers.tpru_reward({"answer": "A", **task}.items(), trace))


def sampled(said: str, prompt: object, **metadata: object) -> float:
    sample = SimpleNamespace(response=said, label="A", metadata=metadata, prompt=prompt)
    return asyncio.run(slime.tpru_reward(None, sample))


def openrlhf_reward(said: str) -> float:
    return openrlhf.reward_func([CHAT + said], [CHAT], ["A"])["rewards"][0].item()


USER = {"role": "user", "content": PROBLEM}
CALLS: dict[str, Reward] = {
    "verl, extra_info": lambda said: compute_score("", said, "A", {"problem": PROBLEM})["score"],
    "trl, problem": trl_with(problem=PROBLEM, prompts="Which?"),
    "trl, prompt": trl_with(prompts=PROBLEM),
    "trl, prompt in parts": trl_with(prompts=[SYSTEM, {"role": "user", "content": PARTS}]),
    "trl, extra_info": trl_with(extra_info={"problem": PROBLEM}),
    "ms-swift, messages": lambda said: ms_swift.TPRU()(
        [said], messages=[[USER, *talk(said)]], solution=["A"]
    )[0],
    "openrlhf": openrlhf_reward,
    "areal, prompt": lambda said: areal.reward_fn(CHAT, said, [], [], answer="A", messages=[]),
    "areal, row": lambda said: areal.reward_fn("?", said, [], [], answer="A", problem=PROBLEM),
    "slime, prompt": lambda said: sampled(said, CHAT),
    "slime, messages": lambda said: sampled(said, [USER]),
    "slime, metadata": lambda said: sampled(said, None, problem=PROBLEM),
    "verifiers": lambda said: task_reward(said, prompt=PROBLEM),
    "verifiers, messages": lambda said: task_reward(said, prompt=[USER]),
    "verifiers 0.1": lambda said: verifiers.tpru_rubric_reward(talk(said), "A", prompt=[USER]),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_order_stands_for_its_option_and_contradicts_every_other(call: Reward) -> None:
    rewards = {said: call(f"<think>x</think><answer>{said}</answer>") for said in REWARDS}
    assert rewards == REWARDS


def test_options_that_are_named_come_before_those_of_the_question() -> None:
    said = "<think>x</think><answer>red</answer>"
    assert trl_with(problem=PROBLEM, extra_info={"options": {"A": "red", "B": "blue"}})(said) == 1.0


def test_options_that_are_pictures_and_the_end_of_a_turn_are_no_texts() -> None:
    question = f"Which comes next?\nA. {PICTURE}\nB. {PICTURE}<|im_end|>\n<|im_start|>assistant\n"
    for said, reward in {"A. the pan is hot": 1.0, "B": 0.125}.items():
        assert sampled(f"<think>x</think><answer>{said}</answer>", question) == reward
    prompt = "<|im_start|>user\nWhich?\nA. a pot\nB. a cup<|im_end|>\n<|im_start|>assistant\n"
    response = "<think>x</think><answer>a cup</answer>"
    assert openrlhf.reward_func([prompt + response], [prompt], ["B"])["rewards"].tolist() == [1.0]


def test_an_answer_that_is_no_option_of_a_prepared_problem_is_named() -> None:
    info = {"problem": "Which?\nA. x\nB. y"}
    with pytest.raises(ValueError, match="row 0 of the batch, answer: found 'F', expected one of A, B"):
        trl.tpru_reward(["x"], extra_info=[info], answer=["F"])


@pytest.mark.parametrize("framework", ["verl", "trl", "ms-swift"])
def test_prepared_rows_bring_their_options(framework: str, tmp_path: Path) -> None:
    (row,) = pq.read_table(write_prepared_row(tmp_path, framework)).to_pylist()
    columns: Any = {"prompts" if name == "prompt" else name: [value] for name, value in row.items()}
    for said, reward in {"3 1 2": 1.0, "B. 1 2 3": 0.125}.items():
        text = f"<think>x</think><answer>{said}</answer>"
        assert compute_score("", text, "B", row["extra_info"])["score"] == reward
        assert trl.tpru_reward([text], **columns) == ms_swift.TPRU()([text], **columns) == [reward]


@pytest.mark.parametrize(
    ("answer", "columns"),
    [
        (
            "D",
            {"prompts": "<|im_start|>system\nA. Think. B. Say.<|im_end|>\n<|im_start|>user\nWhich one?"},
        ),
        ("C", {"prompts": "Example: <image> A. dog B. cat Answer: A. Now <image> Which is red?"}),
        ("C", {"problem": "<image>Scene A: a man. Scene B: a woman. Which figure (A to D) follows?"}),
        ("4 2 3 1", {"problem": "Rules: A. look closely. B. be careful. What is the correct sequence?"}),
    ],
)
def test_words_of_a_prompt_that_look_like_options_end_no_run(answer: str, columns: dict[str, str]) -> None:
    said = f"<think>x</think><answer>{answer}</answer>"
    batch: dict[str, Any] = {name: [value] for name, value in columns.items()}
    assert trl.tpru_reward([said], answer=[answer], **batch) == [1.0]
