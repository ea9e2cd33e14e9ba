"""`tpru data stats`: counts the rows and images of a source in one pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeVar

from rich.table import Table
from rich.text import Text

from tpru_verl.data.checks import problems_of_row
from tpru_verl.data.source.forms import Form, Source, Unit
from tpru_verl.data.source.rows import Row, is_missing, read_rows
from tpru_verl.data.tokens.pixels import Bounds
from tpru_verl.data.work import each_unit
from tpru_verl.sample import NONE_OPTION, Task, is_none_option, parse_options
from tpru_verl.terminal import percent

Sizes = tuple[tuple[int, int], ...]  # (width, height) of a row's images, upright
SizesToTokens = Callable[[Sequence[tuple[int, int]]], int]
RowToTokens = Callable[[Row], int]

Key = TypeVar("Key", str, int, tuple[int, int])

UNNAMED_TASK, UNNAMED_SCENE = "not recognised", "not named"
AN_ORDER = "an order"  # stands for every answer that is no option's letter
MOST = 20  # lines of a table before the rest is summed up
_TASKS = tuple(task.value for task in Task)


class Spread(NamedTuple):
    """The spread of values. Quantiles are values that occur (nearest rank)."""

    values: int  # how many
    total: int
    min: int
    quarter: int
    median: int
    three_quarters: int
    percent_99: int
    max: int

    @classmethod
    def of(cls, counts: Mapping[int, int]) -> Spread | None:
        """From value -> how often it occurs; None where there is none."""
        n = sum(counts.values())
        if not n:
            return None
        ranks = [-(-n * percent // 100) for percent in (0, 25, 50, 75, 99, 100)]
        found: list[int] = []
        seen = 0
        for value in sorted(counts):
            seen += counts[value]
            while len(found) < len(ranks) and ranks[len(found)] <= seen:
                found.append(value)
        return cls(n, sum(value * times for value, times in counts.items()), *found)


@dataclass
class Statistics:
    """Counts over the usable rows of a source; `rows` and `left_out` say how many those are."""

    source: str
    rows: int = 0  # all, usable or not
    left_out: int = 0
    reasons: Counter[str] = field(default_factory=Counter)  # field at fault -> rows left out for it first
    scenes: Counter[tuple[str, str]] = field(default_factory=Counter)  # (task, scene)
    images_a_row: Counter[int] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # (width, height), upright
    formats: Counter[str] = field(default_factory=Counter)
    bytes: Counter[int] = field(default_factory=Counter)  # of one encoded image
    format_bytes: Counter[str] = field(default_factory=Counter)  # format -> bytes of all its images
    answers: Counter[tuple[str, str]] = field(default_factory=Counter)  # (task, letter or AN_ORDER)
    none_offered: Counter[str] = field(default_factory=Counter)  # task -> rows
    none_right: Counter[str] = field(default_factory=Counter)
    visual_tokens: Counter[int] = field(default_factory=Counter)  # of a row; empty unless asked for
    tokens: Counter[int] = field(default_factory=Counter)  # of a row's whole prompt; likewise

    @property
    def tasks(self) -> Counter[str]:
        """Usable rows of each task, in the order in which the paper has them."""
        sums = _sums((task, n) for (task, _), n in self.scenes.items())
        return Counter({task: sums[task] for task in (*_TASKS, UNNAMED_TASK) if sums[task]})

    def add(self, other: Statistics) -> None:
        """Count the rows of `other`, too."""
        for name, value in vars(other).items():
            if isinstance(value, Counter):
                getattr(self, name).update(value)
        self.rows += other.rows
        self.left_out += other.left_out


def statistics(
    source: Source,
    *,
    tokens: SizesToTokens | None = None,
    tokens_a_row: RowToTokens | None = None,
    workers: int | None = None,
) -> Statistics:
    """Count the rows and images of `source`. Only the headers of images are read.

    `tokens` makes a row's visual tokens of the (width, height) of its images, as `tokens_within(...)` does;
    `tokens_a_row` makes the length of the whole prompt of a row. Both are called in
    this process, and with the latter all work is done here, as a tokenizer is no thing to send to another.

    Raises ValueError where a file itself is broken, and what the two callables raise.
    """
    found = Statistics(source.name)
    work = partial(count_unit, tokens_a_row=tokens_a_row)
    workers = 1 if tokens_a_row else workers
    for _, (counts, row_sizes) in each_unit(source, work, title="Counting", workers=workers):
        found.add(counts)
        if tokens is not None:
            for sizes, times in row_sizes.items():
                found.visual_tokens[tokens(sizes)] += times
    if found.rows == 0:
        raise ValueError(f"{source.name}: found 0 rows, expected at least 1")
    return found


def count_unit(
    unit: Unit, form: Form, *, tokens_a_row: RowToTokens | None
) -> tuple[Statistics, Counter[Sizes]]:
    """Counts of a unit, and how often each tuple of image sizes is a row's."""
    found = Statistics(unit.part.name)
    row_sizes: Counter[Sizes] = Counter()
    for row in read_rows(unit, form):
        found.rows += 1
        if problem := next(problems_of_row(row), None):
            found.left_out += 1
            found.reasons[problem.partition(":")[0].partition("[")[0]] += 1
            continue
        images = row.images()
        row_sizes[_count_images(found, row, images)] += 1
        _count_question(found, row)
        if tokens_a_row is not None:
            found.tokens[tokens_a_row(row)] += 1
    return found, row_sizes


def _count_images(found: Statistics, row: Row, images: list[bytes]) -> Sizes:
    found.images_a_row[len(images)] += 1
    headers = [header for header in row.headers if not isinstance(header, str)]
    for header, data in zip(headers, images, strict=True):
        found.sizes[header.upright] += 1
        found.formats[header.format] += 1
        found.format_bytes[header.format] += len(data)
        found.bytes[len(data)] += 1
    return tuple(header.upright for header in headers)


def _count_question(found: Statistics, row: Row) -> None:
    task = row.task.value if row.task else UNNAMED_TASK
    found.scenes[task, row.field("scene") or UNNAMED_SCENE] += 1
    if is_missing(row.answer):
        return
    answer, options = str(row.answer).strip(), parse_options(str(row.problem))
    found.answers[task, answer if len(answer) == 1 and answer.isalpha() else AN_ORDER] += 1
    nones = {letter for letter, text in options.items() if is_none_option(text)}
    found.none_offered[task] += bool(nones)
    found.none_right[task] += answer in nones


def tokens_within(bounds: Bounds) -> SizesToTokens:
    """Counts the visual tokens of a row's images, resized to these bounds; the tags around them not counted.

    An image that the bounds make vanish counts 0.
    """

    def count(sizes: Sequence[tuple[int, int]]) -> int:
        total = 0
        for size in sizes:
            with suppress(ValueError):
                total += bounds.tokens(*size)
        return total

    return count


def tables(statistics: Statistics) -> list[Table]:
    """The statistics for a terminal; those of tokens only where tokens were counted."""
    found = statistics
    if not found.tasks:
        return [_rows_table(found)]
    widths, heights, pixels = _sides(found)
    made = [
        _rows_table(found),
        _answers_table(found),
        _counts_table("Images a row", "images", "rows", _by_number(found.images_a_row)),
        _spread_table("Images", {"width": widths, "height": heights, "pixels": pixels, "bytes": found.bytes}),
        _counts_table("Sizes", "width x height", "images", _size_names(found)),
        _formats_table(found),
    ]
    lengths = {"visual": found.visual_tokens, "whole prompt": found.tokens}
    if asked := {name: counts for name, counts in lengths.items() if counts}:
        made.append(_spread_table("Tokens a row", asked))
    return made


def as_json(statistics: Statistics) -> dict[str, object]:
    """The statistics as plain objects, for `json.dumps`; nothing is summed up as in `tables`."""
    found = statistics
    spreads = dict(zip(("width", "height", "pixels"), _sides(found), strict=True))
    spreads |= {
        "bytes": found.bytes,
        "visual_tokens_a_row": found.visual_tokens,
        "tokens_a_row": found.tokens,
    }
    return {
        "source": found.source,
        "rows": found.rows,
        "left_out": found.left_out,
        "left_out_for": dict(_ranked(found.reasons)),
        "tasks": {task: _json_task(found, task) for task in found.tasks},
        "images": sum(found.formats.values()),
        "images_a_row": _by_number(found.images_a_row),
        "sizes": _size_names(found),
        "formats": {
            name: {"images": n, "bytes": found.format_bytes[name]}
            for name, n in _ranked(found.formats).items()
        },
        **{name: spread._asdict() for name, counts in spreads.items() if (spread := Spread.of(counts))},
    }


def _json_task(found: Statistics, task: str) -> dict[str, object]:
    return {
        "rows": found.tasks[task],
        "scenes": dict(_ranked(_of_task(found.scenes, task))),
        "answers": dict(sorted(_of_task(found.answers, task).items())),
        "none_offered": found.none_offered[task],
        "none_right": found.none_right[task],
    }


def _rows_table(found: Statistics) -> Table:
    """Scenes down, tasks across, as there may be many scenes and there are three tasks."""
    scenes = list(_ranked(_sums((scene, n) for (_, scene), n in found.scenes.items())))
    table = _by_task("Rows", "scene", found)
    for scene in scenes[:MOST]:
        _add(table, scene, {task: found.scenes[task, scene] for task in found.tasks})
    if rest := scenes[MOST:]:
        counts = {task: sum(found.scenes[task, scene] for scene in rest) for task in found.tasks}
        _add(table, f"{len(rest):,} more", counts)
    table.add_section()
    _add(table, "all", found.tasks)
    table.caption = _left_out(found)
    return table


def _left_out(found: Statistics) -> str | None:
    if not found.left_out:
        return None
    reasons = ", ".join(f"{name} {n:,}" for name, n in _ranked(found.reasons).items())
    return f"{found.left_out:,} of {found.rows:,} rows left out ({reasons}); `tpru data validate` names them"


def _answers_table(found: Statistics) -> Table:
    """Shares by task: a letter that stands out is right too often, and guessing it pays."""
    tasks = found.tasks
    answers = sorted({answer for _, answer in found.answers}, key=lambda answer: (len(answer), answer))
    table = _by_task("Right answers", "answer", found)
    for answer in answers:
        _add(table, answer, {task: found.answers[task, answer] for task in tasks}, of=tasks)
    table.add_section()
    _add(table, "None offered", {task: found.none_offered[task] for task in tasks}, of=tasks)
    _add(table, "None right", {task: found.none_right[task] for task in tasks}, of=tasks)
    table.caption = f"None: the option {NONE_OPTION!r}, or another one that begins with 'None of the'"
    return table


def _by_task(title: str, what: str, found: Statistics) -> Table:
    """A table with a column for each task and, beside two or more, one for all."""
    return _table(title, what, *map(_words, found.tasks), *["all"] * (len(found.tasks) != 1))


def _add(table: Table, name: str, counts: Mapping[str, int], *, of: Mapping[str, int] | None = None) -> None:
    """A line of a table that `_by_task` made: counts by task or, where `of` is given, shares of it."""
    pairs = [(n, of[task] if of is not None else 0) for task, n in counts.items()]
    if len(pairs) != 1:
        pairs.append((sum(n for n, _ in pairs), sum(whole for _, whole in pairs)))
    cells = (percent(n / whole if whole else None) if of is not None else f"{n:,}" for n, whole in pairs)
    table.add_row(Text(name), *cells)


def _formats_table(found: Statistics) -> Table:
    table = _table("Formats", "format", "images", "share", "size")
    images = sum(found.formats.values())
    for name, n in _ranked(found.formats).items():
        table.add_row(name, f"{n:,}", percent(n / images), _size(found.format_bytes[name]))
    return table


def _counts_table(title: str, what: str, of: str, counts: Mapping[str, int]) -> Table:
    """Counts with their shares, in the order given; what comes after MOST lines is summed up."""
    table = _table(title, what, of, "share")
    total = sum(counts.values())
    lines = dict(list(counts.items())[:MOST])
    if rest := len(counts) - len(lines):
        lines[f"{rest:,} more"] = total - sum(lines.values())
    for name, n in lines.items():
        table.add_row(name, f"{n:,}", percent(n / total))
    return table


def _spread_table(title: str, lines: Mapping[str, Mapping[int, int]]) -> Table:
    table = _table(title, "", "min", "25 %", "median", "75 %", "99 %", "max", "mean")
    for name, counts in lines.items():
        if spread := Spread.of(counts):
            quantiles = (f"{value:,}" for value in spread[2:])
            table.add_row(name, *quantiles, f"{spread.total / spread.values:,.1f}")
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left")
    for i, name in enumerate(columns):
        table.add_column(Text(name), justify="right" if i else "left")
    return table


def _sides(found: Statistics) -> tuple[Counter[int], Counter[int], Counter[int]]:
    """Widths, heights and pixels of all images."""
    return (
        _sums((width, n) for (width, _), n in found.sizes.items()),
        _sums((height, n) for (_, height), n in found.sizes.items()),
        _sums((width * height, n) for (width, height), n in found.sizes.items()),
    )


def _by_number(counts: Counter[int]) -> dict[str, int]:
    return {str(number): counts[number] for number in sorted(counts)}


def _size_names(found: Statistics) -> dict[str, int]:
    return {f"{width} x {height}": n for (width, height), n in _ranked(found.sizes).items()}


def _of_task(counts: Mapping[tuple[str, str], int], task: str) -> Counter[str]:
    return Counter({name: n for (of, name), n in counts.items() if of == task})


def _sums(pairs: Iterable[tuple[Key, int]]) -> Counter[Key]:
    sums: Counter[Key] = Counter()
    for key, n in pairs:
        sums[key] += n
    return sums


def _ranked(counts: Counter[Key]) -> Counter[Key]:
    """Most first, equals by key: an order that does not depend on which worker was quicker."""
    return Counter(dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))))


def _words(task: str) -> str:
    return task.replace("_", " ")


def _size(count: int) -> str:
    size, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.1f} {unit}" if unit != "B" else f"{count} B"
