"""Answers to held-out rows: `python -m tpru_verl.demo.evaluate --model DIR --rows FILE --out FILE.jsonl`.

`tpru_verl.eval` asks and judges twice. The file `--out` has the results of answers sampled at temperature 1,
as GRPO samples. A second file beside it has those at temperature 0, which change less in a short run.

It runs in a process of its own, because vLLM takes threads and memory that the trainer needs afterwards.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from tpru_verl.eval.engines.base import Sampling
from tpru_verl.eval.results import read_results, summarise
from tpru_verl.eval.run import evaluate_rows
from tpru_verl.files import write_text

TEMPLATE = "bare"  # as the recipe trains
PIXELS = 56 * 56  # of every picture of the demo, and in its recipe
MAX_TOKENS = 32


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


def greedy_beside(out: Path) -> Path:
    """The file of the results at temperature 0."""
    return out.with_name(f"{out.stem}-greedy.jsonl")


def answers_of(out: Path) -> tuple[Path, Path, Path]:
    """The files that `evaluate` writes: both results, and every reply of vLLM."""
    return out, greedy_beside(out), out.with_name(f"{out.stem}-responses.jsonl")


def evaluate(model: Path, rows: Path, out: Path) -> None:
    """Write both results of `model` on `rows`.

    Raises ValueError or FileNotFoundError if model or rows cannot be read, RuntimeError for failed rows.
    """
    sampled, greedy, responses = answers_of(out)
    responses.unlink(missing_ok=True)  # the demo measures anew
    samplings = [Sampling(MAX_TOKENS, temperature) for temperature in (1.0, 0.0)]
    found = evaluate_rows(
        model, rows, samplings, responses, style=TEMPLATE, min_pixels=PIXELS, max_pixels=PIXELS
    )
    if failed := [row for evaluation in found for row in evaluation.rows if row["failed"]]:
        raise RuntimeError(f"{rows}: {len(failed)} rows failed, the first: {failed[0]['failed']}")
    for evaluation, file in zip(found, (sampled, greedy), strict=True):
        write_text(file, "".join(json.dumps(row) + "\n" for row in evaluation.rows))


def score(out: Path) -> dict[str, Score]:
    """One entry a task, and `pooled`, from the files that `evaluate` wrote."""
    sampled, greedy = _summary(out), _summary(greedy_beside(out))
    tasks = {name: _score(group, greedy["tasks"][name]) for name, group in sampled["tasks"].items()}
    return {"pooled": _score(sampled, greedy), **tasks}


def _summary(results: Path) -> Mapping[str, Any]:
    return summarise(read_results(results))


def _score(sampled: Mapping[str, Any], greedy: Mapping[str, Any]) -> Score:
    return Score(
        accuracy=sampled["accuracy"],
        low=sampled["low"],
        high=sampled["high"],
        n=sampled["n"],
        format=sampled["format"],
        greedy=greedy["accuracy"],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "rows", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    try:
        evaluate(**vars(parser.parse_args()))
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f"tpru: {error}")


if __name__ == "__main__":
    main()
