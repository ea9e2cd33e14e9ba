"""Held-out accuracy by vLLM: `python -m tpru_verl.demo.evaluate --model DIR --rows FILE --out FILE.jsonl`.

Accuracy is that of the policy as GRPO trains it: one answer a row, sampled at temperature 1. The greedy
answer, which moves less in a short run, is graded beside it.

A process of its own, because vLLM takes threads and memory that the trainer needs afterwards.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from tpru_verl.files import whole
from tpru_verl.grading import grade
from tpru_verl.prompts import render
from tpru_verl.sample import IMAGE_TAG, Task, parse_options

MAX_TOKENS = 32
MAX_MODEL_LEN = 512


class Score(TypedDict):
    """Share of right answers with its 95 % interval, over n rows; share of well-formed ones.

    `greedy` is the share of right answers at temperature 0, the others are at temperature 1.
    """

    accuracy: float
    low: float
    high: float
    n: int
    format: float
    greedy: float


def score(answers: Path) -> dict[str, Score]:
    """`pooled` and one entry a task, from what `evaluate` wrote."""
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    groups = {"pooled": rows}
    groups |= {task.value: [row for row in rows if row["task"] == task.value] for task in Task}
    return {name: _score(group) for name, group in groups.items() if group}


def _score(rows: Sequence[dict[str, Any]]) -> Score:
    right = round(sum(row["accuracy"] for row in rows))
    from tpru_verl.statistics import wilson

    low, high = wilson(right, len(rows))
    return Score(
        accuracy=right / len(rows),
        low=low,
        high=high,
        n=len(rows),
        format=sum(row["format"] for row in rows) / len(rows),
        greedy=sum(row["greedy_accuracy"] for row in rows) / len(rows),
    )


def evaluate(model: Path, rows: Path, out: Path, *, template: str = "bare") -> None:
    """Answer every row twice, sampled and greedily, and write one JSON object a row to `out`."""
    import pyarrow.parquet as pq
    from PIL import Image
    from transformers import AutoProcessor
    from vllm import LLM, SamplingParams

    table = pq.read_table(rows).to_pylist()
    processor = AutoProcessor.from_pretrained(model)
    engine = LLM(
        model=str(model),
        dtype="bfloat16",
        enforce_eager=True,
        max_model_len=MAX_MODEL_LEN,
        max_num_batched_tokens=8192,
        limit_mm_per_prompt={"image": max(len(row["images"]) for row in table)},
        disable_log_stats=True,
        # The engine's: a seed per request dies in vLLM's CPU worker now and then ("does not use offset").
        seed=0,
    )
    prompts = []
    for row in table:
        text = render(row["problem"], row["task"], template)
        parts = [part for part in re.split(f"({IMAGE_TAG})", text) if part]
        content = [
            {"type": "image"} if part == IMAGE_TAG else {"type": "text", "text": part} for part in parts
        ]
        images = [Image.open(io.BytesIO(image["bytes"])).convert("RGB") for image in row["images"]]
        chat = [{"role": "user", "content": content}]
        prompt = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        prompts.append({"prompt": prompt, "multi_modal_data": {"image": images}})
    answers = engine.generate(prompts, SamplingParams(temperature=1, max_tokens=MAX_TOKENS))
    greedy = engine.generate(prompts, SamplingParams(temperature=0, max_tokens=MAX_TOKENS))

    with whole(out) as file:
        for row, answer, second in zip(table, answers, greedy, strict=True):
            line = {key: row[key] for key in ("id", "task", "scene", "problem", "answer")}
            line |= _graded(row, answer.outputs[0].text)
            line["greedy_accuracy"] = _graded(row, second.outputs[0].text)["accuracy"]
            file.write(json.dumps(line).encode() + b"\n")


def _graded(row: dict[str, Any], response: str) -> dict[str, Any]:
    found = grade(response, row["answer"], task=row["task"], options=parse_options(row["problem"]) or None)
    return {
        "response": response,
        "parsed": found.parsed,
        "accuracy": found.accuracy,
        "format": found.format,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "rows", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    arguments = parser.parse_args()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    evaluate(arguments.model, arguments.rows, arguments.out)


if __name__ == "__main__":
    main()
