"""`tpru data validate`: every row checked, every finding named by file, row and field.

What the trainer cannot use is an error; what it uses but a person should know is a warning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from tpru_verl.data.images import note_of, perceptual_hash, problem_of
from tpru_verl.data.source.forms import Form, Row, Unit, read_rows
from tpru_verl.data.work import Source, each_unit
from tpru_verl.files import write_json
from tpru_verl.sample import Task, parse_options, problems_of

# Bits of 64 in which hashes of one picture at two sizes or qualities still differ (imagehash's documentation
# compares thumbnails within 10; frames of one video come closer than that, so less is asked for here).
SAME_PICTURE = 4
_ALL_TASKS = ", ".join(task.value for task in Task)

LISTED = 10  # findings in a message; the report has all
_BITS = np.array([value.bit_count() for value in range(1 << 16)], np.uint8)

Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Finding:
    """One thing about one row. `found` and `expected` are for people; `severity` is error or warning."""

    severity: str
    file: str
    row: int
    id: str
    field: str
    found: str
    expected: str

    @classmethod
    def of(cls, row: Row, text: str, severity: str = "error") -> Finding:
        """From "field: found ..., expected ..."."""
        name, _, rest = text.partition(": ")
        found, _, expected = rest.removeprefix("found ").partition(", expected ")
        return cls(severity, row.file, row.number, row.row_id, name, found, expected)

    def __str__(self) -> str:
        expected = f", expected {self.expected}" if self.expected else ""
        return f"{self.file} row {self.row}: {self.field}: found {self.found}{expected}"


@dataclass(frozen=True)
class Seen:
    """What is kept of a row once its images are gone."""

    file: str
    row: int
    id: str
    task: str
    group: str  # its source_id, "" where the row names none
    digest: bytes  # of question and images
    images: tuple[bytes, ...]  # digest of each
    hashes: Hashes  # perceptual, (images,); empty unless asked for


@dataclass
class Report:
    """All findings of a source, and what was seen of its sound rows."""

    source: str
    rows: int = 0
    detected: list[str] = field(default_factory=list)
    tasks: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)

    @classmethod
    def of(cls, source: Source) -> Report:
        return cls(source.name, detected=sorted({str(form) for form in source.forms}))

    @property
    def unusable(self) -> set[tuple[str, int]]:
        """(file, row) of the rows with an error."""
        return {(f.file, f.row) for f in self.findings if f.severity == "error"}

    def write(self, path: Path) -> None:
        """One JSON document; the file appears whole or not at all."""
        content = {
            "source": self.source,
            "rows": self.rows,
            "unusable_rows": len(self.unusable),
            "detected": self.detected,
            "tasks": dict(sorted(self.tasks.items())),
            "findings": [asdict(finding) for finding in self.findings],
        }
        write_json(path, content)


def validate(
    source: Source, *, deep: bool = False, against: Source | None = None, workers: int | None = None
) -> Report:
    """Check every row of `source`; `against` is another one with which it must share none.

    Raises ValueError where a file itself is broken, and for `against` without `imagehash`.
    """
    report = Report.of(source)
    for _ in check_units(source, report, deep=deep, hashes=against is not None, workers=workers):
        pass
    compare_rows(source, report, against, workers=workers)
    return report


def check_units(
    source: Source, report: Report, *, deep: bool, hashes: bool, workers: int | None
) -> Iterator[tuple[Unit, list[Seen]]]:
    """Check unit by unit, in order, and add to `report`; yields what was seen of each unit's sound rows."""
    work = partial(check_unit, deep=deep, hashes=hashes)
    for unit, (rows, findings, seen) in each_unit(source, work, title="Checking rows", workers=workers):
        report.rows += rows
        report.findings += findings
        report.seen += seen
        report.tasks.update(row.task or "not recognised" for row in seen)
        yield unit, seen
    if report.rows == 0:
        raise ValueError(f"{source.name}: found 0 rows, expected at least 1")


def compare_rows(source: Source, report: Report, against: Source | None, *, workers: int | None) -> None:
    """Add to `report` what only shows once all rows were seen, and put its findings in order."""
    report.findings += _duplicates(report.seen)
    if against is not None:
        report.findings += _shared(report.seen, fingerprints(against, workers=workers), against.name)
    order = {part.name: i for i, part in enumerate(source.parts)}
    report.findings.sort(key=lambda finding: (order[finding.file], finding.row))


def check_unit(unit: Unit, form: Form, *, deep: bool, hashes: bool) -> tuple[int, list[Finding], list[Seen]]:
    """Number of rows, findings, and what was seen of the rows without an error."""
    findings: list[Finding] = []
    seen: list[Seen] = []
    count = 0
    for row in read_rows(unit, form):
        count += 1
        errors = list(problems_of_row(row, deep=deep))
        findings += [Finding.of(row, text) for text in errors]
        if not errors:
            kept = _seen(row, hashes=hashes)
            findings += [Finding.of(row, text, "warning") for text in notes_of_row(row, kept.images)]
            seen.append(kept)
    return count, findings, seen


def problems_of_row(row: Row, *, deep: bool = False) -> Iterator[str]:
    """What makes a row unusable, as "field: found ..., expected ..."."""
    if not isinstance(row.cells, list):
        yield f"images: found {type(row.cells).__name__}, expected a list of images"
        return
    yield from problems_of(row.problem, row.answer, len(row.cells))
    try:
        _ = row.task
    except ValueError:
        yield f"task: found {row.field('task')!r}, expected one of {_ALL_TASKS}"
    options = parse_options(row.problem) if isinstance(row.problem, str) else {}
    texts = Counter(text.casefold() for text in options.values() if text != "<image>")
    for text, times in texts.items():
        if times > 1:
            yield f"problem: found the option {text!r} {times} times, expected distinct options"
    try:
        images = row.views
    except ValueError as error:
        yield f"images: {error}"
        return
    for i, data in enumerate(images):
        if problem := problem_of(data, deep=deep):
            yield f"images[{i}]: {problem}"


def notes_of_row(row: Row, digests: Sequence[bytes]) -> Iterator[str]:
    """What a user should know about a sound row; `digests`: one of each image."""
    if row.task is None:
        yield "problem: found no sign of the task, expected one of the three; a column `task` settles it"
    elif problem := _images_of_task(row.task, parse_options(str(row.problem)), len(digests)):
        yield problem
    for i, data in enumerate(row.views):
        if note := note_of(data):
            yield f"images[{i}]: {note}"
    if repeated := len(digests) - len({*digests}):
        yield f"images: found {repeated} that repeat another one of the row, expected distinct images"


def _images_of_task(task: Task, options: dict[str, str], count: int) -> str | None:
    """Whether the number of images can be right for the task, or "field: ..."."""
    if task is not Task.TEMPORAL_REORDERING:
        return None
    labels = {len([c for c in text if c.isdigit()]) for text in options.values()} - {0}
    if len(labels) == 1 and count not in labels:
        return f"images: found {count} for orders of {labels.pop()}, expected as many images as labels"
    return None


def _seen(row: Row, *, hashes: bool) -> Seen:
    images = row.views
    digests = tuple(xxhash.xxh3_128_digest(data) for data in images)
    question = " ".join(str(row.problem).split()).encode()
    perceptual = [perceptual_hash(bytes(data)) for data in images] if hashes else []
    return Seen(
        row.file,
        row.number,
        row.row_id,
        row.task.value if row.task else "",
        row.source_id,
        xxhash.xxh3_128_digest(question + b"".join(digests)),
        digests,
        np.array(perceptual, np.uint64),
    )


def fingerprints(source: Source, *, workers: int | None = None) -> list[Seen]:
    """Perceptual hashes of another source's sound rows."""
    work = partial(check_unit, deep=False, hashes=True)
    title = f"Hashing {source.name}"
    return [row for _, (_, _, seen) in each_unit(source, work, title=title, workers=workers) for row in seen]


def tables(report: Report) -> list[Table]:
    """What was found, for a terminal: rows by task, findings by field."""
    by_task = Table("task", "rows", title=f"{report.source}: {report.rows} rows")
    for task, count in sorted(report.tasks.items()):
        by_task.add_row(task, f"{count:,}")
    if report.unusable:
        by_task.add_row("unusable", f"{len(report.unusable):,}", style="red")
    if not report.findings:
        return [by_task]
    kinds: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in report.findings:
        field_name = finding.field.partition("[")[0]
        kinds.setdefault((finding.severity, field_name, finding.expected), []).append(finding)
    by_kind = Table("", "field", "expected", "findings", "the first", title="Findings")
    for (severity, name, expected), found in sorted(kinds.items(), key=lambda item: item[0]):
        first = f"{Path(found[0].file).name} row {found[0].row}: {found[0].found}"
        cells = (severity, name, expected, f"{len(found):,}", first)
        by_kind.add_row(*map(escape, cells), style="red" if severity == "error" else "yellow")
    return [by_task, by_kind]


def summary_of(report: Report) -> str:
    """The first unusable rows, each with its place and reason."""
    errors = [finding for finding in report.findings if finding.severity == "error"]
    listed = "".join(f"\n  {finding}" for finding in errors[:LISTED])
    more = f"\n  and {len(errors) - LISTED} more findings" if len(errors) > LISTED else ""
    return f"{report.source}: {len(report.unusable)} of {report.rows} rows are unusable{listed}{more}"


def bits(values: Hashes) -> NDArray[np.uint8]:
    """Bits set in each value (`numpy.bitwise_count`, which NumPy has from 2.0 on)."""
    return _BITS[values[..., None].view(np.uint16)].sum(-1, dtype=np.uint8)


def _finding(row: Seen, severity: str, field_name: str, found: str, expected: str) -> Finding:
    return Finding(severity, row.file, row.row, row.id, field_name, found, expected)


def _duplicates(seen: Iterable[Seen]) -> Iterator[Finding]:
    first: dict[bytes, Seen] = {}
    for row in seen:
        other = first.setdefault(row.digest, row)
        if other is not row:
            found = f"the question and images of {other.file} row {other.row}"
            yield _finding(row, "warning", "row", found, "each row once")


def _shared(seen: Iterable[Seen], others: list[Seen], name: str) -> Iterator[Finding]:
    """Rows whose pictures another source has, too: all of them in one of its rows, or some somewhere."""
    if not others:
        return
    hashes = np.concatenate([row.hashes for row in others])
    owner = np.repeat(np.arange(len(others)), [len(row.hashes) for row in others])
    for row in seen:
        close = bits(hashes[:, None] ^ row.hashes) <= SAME_PICTURE  # (their images, ours)
        if not close.any():
            continue
        owners = [set(owner[column].tolist()) for column in close.T]
        if common := set.intersection(*owners):
            other = others[min(common)]
            found = f"all its images in {other.file} row {other.row} of {name}"
            yield _finding(row, "error", "images", found, "rows of its own")
        else:
            shared = sum(map(bool, owners))
            found = f"{shared} of {len(owners)} images in rows of {name}"
            yield _finding(row, "warning", "images", found, "pictures of its own")
