"""An evaluation as one HTML file: tables, published numbers beside them, and the wrong rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tpru_verl.data.view import ShownText, page_environment, picture_of, shown_text
from tpru_verl.eval.benchmarks import Loaded
from tpru_verl.eval.item import Item
from tpru_verl.eval.published import ORDERING, OVERALL, SOURCE
from tpru_verl.eval.results import JudgedResponse, RowResult
from tpru_verl.files import write_text

SHOWN = 40  # rows that went wrong, of each benchmark
SIDE = 224  # pixels of a thumbnail


@dataclass(frozen=True)
class _Bar:
    """A model in the chart; shares in [0, 1], the interval None for numbers of others."""

    model: str
    accuracy: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class _Failure(ShownText):
    """A row that went wrong, in the form that `rows.jinja` shows."""

    task: str
    scene: str  # the benchmark: the second filter goes by it
    id: str
    answer: str
    reasons: list[str]
    verdict: str
    samples: list[JudgedResponse]


def write_page(
    path: Path, summary: Mapping[str, Any], runs: Sequence[tuple[Loaded, list[RowResult]]]
) -> Path:
    """Write the page of a run; images become thumbnails inside it."""
    failures: list[_Failure] = []
    wrong: dict[str, int] = {}
    for loaded, lines in runs:
        bad = [i for i, line in enumerate(lines) if line["score"] < 1]
        wrong[loaded.benchmark.title] = len(bad)
        failures += [_failure(loaded, loaded.items[i], lines[i]) for i in _drawn(bad, lines)]
    template = page_environment(Path(__file__).parent).get_template("page.html.jinja")
    html = template.render(
        model=str(summary["model"]).rstrip("/").rpartition("/")[2] or summary["model"],
        summary=summary,
        charts={
            loaded.benchmark.name: _bars(loaded, summary["benchmarks"][loaded.benchmark.name])
            for loaded, _ in runs
        },
        ordering={loaded.benchmark.name: _published(loaded, ORDERING) for loaded, _ in runs},
        source=SOURCE,
        failures=failures,
        wrong=wrong,
        tasks=dict(sorted(Counter(row.task for row in failures).items())),
        benchmarks=Counter(row.scene for row in failures),
    )
    write_text(path, html.encode("utf-8", "backslashreplace").decode())  # answers may hold half a character
    return path


def _bars(loaded: Loaded, group: Mapping[str, Any]) -> list[_Bar]:
    own = _Bar("this run", group["accuracy"], (group["low"], group["high"]))
    others = [_Bar(model, share / 100, None) for model, share in _published(loaded, OVERALL).items()]
    return sorted([own, *others], key=lambda bar: -bar.accuracy)


def _published(loaded: Loaded, table: Mapping[str, Mapping[str, float]]) -> Mapping[str, float]:
    """Model -> accuracy in %; none beside other rows than the published ones."""
    return table.get(loaded.benchmark.name, {}) if loaded.whole else {}


def _drawn(bad: Sequence[int], lines: Sequence[RowResult]) -> list[int]:
    """Those that failed or could not be read first, then wrong ones, drawn with a fixed seed."""
    order = np.random.default_rng(0).permutation(len(bad)).tolist()
    ranked = sorted(order, key=lambda i: _rank(lines[bad[i]]))
    return sorted(bad[i] for i in ranked[:SHOWN])


def _rank(line: RowResult) -> int:
    return 0 if line["failed"] else 1 if line["parsed"] is None else 2


def _failure(loaded: Loaded, item: Item, line: RowResult) -> _Failure:
    reasons = [line["failed"]] if line["failed"] else []
    pictures = []
    for i, image in enumerate(item.images):
        try:
            pictures.append(picture_of(image, SIDE))
        except Exception as error:  # a file may be broken in ways of many kinds
            reasons = reasons or [f"images[{i}]: can't be shown ({error})"]
            pictures.append(None)
    outcomes = ("failed", "not to be read", "wrong")
    return _Failure(
        **vars(shown_text(item.problem, pictures, item.options)),
        task=item.task or "no task named",
        scene=loaded.benchmark.title,
        id=item.id,
        answer=item.answer,
        reasons=reasons,
        verdict=outcomes[_rank(line)] if line["score"] == 0 else "partly right",
        samples=line["samples"],
    )
