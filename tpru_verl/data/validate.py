"""`tpru data validate`: every row checked, every finding named by file, row and field.

What the trainer cannot use is an error; what it uses but a person should know is a warning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import xxhash
from rich.table import Table

from tpru_verl.data.checks import notes_of_row, problems_of_row
from tpru_verl.data.images import thumbnail
from tpru_verl.data.layout import check_files
from tpru_verl.data.likeness import HASHED, SAME_PICTURE, Hashes, bits, hash_of
from tpru_verl.data.source.cells import image_bytes
from tpru_verl.data.source.forms import Form, Source, Unit
from tpru_verl.data.source.rows import Row, read_rows
from tpru_verl.data.work import each_unit
from tpru_verl.files import write_json
from tpru_verl.terminal import counted, messages

LISTED = 10  # findings in a message; the report has all
_UNSHARED = "pictures that the other source does not show"
_CURE = (
    "Of rows whose pictures the other source shows, too: leave them out (tpru data prepare --against "
    "--drop-invalid), or make rows of more varied sources (tpru build --against leaves out what is shared)"
)


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
class SeenRow:
    """What is kept of a row once its images are gone."""

    file: str
    row: int
    id: str
    task: str
    scene: str
    group: str  # its source_id, "" where the row names none
    digest: bytes  # of question and images
    images: tuple[bytes, ...]  # digest of each
    hashes: Hashes  # perceptual, (images,); empty unless asked for


@dataclass(frozen=True)
class Fingerprint:
    """The perceptual hashes of all pictures of a row that can be decoded, whether the row is sound or not."""

    file: str
    row: int
    hashes: Hashes  # (images,)
    digests: tuple[bytes, ...]  # of each picture that has a hash
    unread: tuple[str, ...]  # why others of its pictures have no hash


@dataclass
class Report:
    """All findings of a source, and what was seen of its sound rows."""

    source: str
    rows: int = 0
    detected: list[str] = field(default_factory=list)
    tasks: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    seen: list[SeenRow] = field(default_factory=list)

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
    check_files([part.path for part in source.parts if part.path], digests=True)
    for _ in check_units(source, report, deep=deep, hashes=against is not None, workers=workers):
        pass
    compare_rows(source, report, against, workers=workers)
    return report


def check_units(
    source: Source,
    report: Report,
    *,
    deep: bool,
    hashes: bool,
    workers: int | None,
    reserved: Collection[str] = (),
) -> Iterator[tuple[Unit, list[SeenRow]]]:
    """Check unit by unit, in order, and add to `report`; yields what was seen of each unit's sound rows."""
    work = partial(check_unit, deep=deep, hashes=hashes, reserved=reserved)
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


def check_unit(
    unit: Unit, form: Form, *, deep: bool, hashes: bool, reserved: Collection[str] = ()
) -> tuple[int, list[Finding], list[SeenRow]]:
    """Number of rows, findings, and what was seen of the rows without an error."""
    findings: list[Finding] = []
    seen: list[SeenRow] = []
    count = 0
    for row in read_rows(unit, form):
        count += 1
        errors = list(problems_of_row(row, deep=deep, reserved=reserved))
        sound = row.views if hashes and not errors else ()
        hashed, _, undecoded = _hashes_of(sound, row)
        errors += undecoded
        findings += [Finding.of(row, text) for text in errors]
        if not errors:
            kept = _seen(row, hashed)
            findings += [Finding.of(row, text, "warning") for text in notes_of_row(row, kept.images)]
            seen.append(kept)
    return count, findings, seen


def _hashes_of(cells: Sequence[object], row: Row) -> tuple[Hashes, list[bytes], list[str]]:
    """Perceptual hashes and digests of a row's images, and what keeps the others from being decoded."""
    found: list[np.uint64] = []
    digests: list[bytes] = []
    problems: list[str] = []
    for i, cell in enumerate(cells):
        try:
            data = image_bytes(cell, row.folder)
            small = thumbnail(data, HASHED)
        except ValueError as error:
            problems.append(f"{row.form.images}[{i}]: {error}")
        else:
            found.append(hash_of(small))
            digests.append(xxhash.xxh3_128_digest(data))
    return np.array(found, np.uint64), digests, problems


def _seen(row: Row, hashes: Hashes) -> SeenRow:
    images = row.views
    digests = tuple(xxhash.xxh3_128_digest(data) for data in images)
    question = " ".join(str(row.problem).split()).encode()
    return SeenRow(
        row.file,
        row.number,
        row.row_id,
        row.task.value if row.task else "",
        row.field("scene"),
        row.source_id,
        xxhash.xxh3_128_digest(question + b"".join(digests)),
        digests,
        hashes,
    )


def fingerprints(source: Source, *, workers: int | None = None) -> list[Fingerprint]:
    """What the rows of another source show. How many pictures cannot be compared is printed.

    A picture counts whatever the row's text and answer are: many test sets withhold their answers. Raises
    ValueError where a file itself is broken, and without `imagehash`.
    """
    title = f"Hashing {source.name}"
    found = [
        row for _, rows in each_unit(source, _fingerprints, title=title, workers=workers) for row in rows
    ]
    if unread := [f"{row.file} row {row.row}: {text}" for row in found for text in row.unread]:
        lost = counted(len(unread), "picture")
        said = f"found {lost} that cannot be compared, expected none; the first: {unread[0]}"
        messages.print(f"{source.name}: {said}", style="yellow", markup=False, soft_wrap=True)
    return found


def _fingerprints(unit: Unit, form: Form) -> list[Fingerprint]:
    found: list[Fingerprint] = []
    for row in read_rows(unit, form):
        cells = row.cells if isinstance(row.cells, list) else [row.cells]
        hashes, digests, unread = _hashes_of(cells, row)
        if row.unread and not cells:
            unread = [f"{row.form.images}: {row.unread}"]
        found.append(Fingerprint(row.file, row.number, hashes, tuple(digests), tuple(unread)))
    return found


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
        by_kind.add_row(*cells, style="red" if severity == "error" else "yellow")
    return [by_task, by_kind]


def summary_of(report: Report) -> str:
    """The first unusable rows, each with its place and reason."""
    errors = [finding for finding in report.findings if finding.severity == "error"]
    listed = "".join(f"\n  {finding}" for finding in errors[:LISTED])
    more = f"\n  and {counted(len(errors) - LISTED, 'more finding')}" if len(errors) > LISTED else ""
    shared = any(finding.expected == _UNSHARED for finding in errors)
    cure = f"\n  {_CURE}" if shared else ""
    return f"{report.source}: {len(report.unusable)} of {report.rows} rows are unusable{listed}{more}{cure}"


def _finding(row: SeenRow, severity: str, field_name: str, found: str, expected: str) -> Finding:
    return Finding(severity, row.file, row.row, row.id, field_name, found, expected)


def _duplicates(seen: Iterable[SeenRow]) -> Iterator[Finding]:
    first: dict[bytes, SeenRow] = {}
    for row in seen:
        other = first.setdefault(row.digest, row)
        if other is not row:
            found = f"the question and images of {other.file} row {other.row}"
            yield _finding(row, "warning", "row", found, "a row that occurs only once")


def _shared(seen: Iterable[SeenRow], others: list[Fingerprint], name: str) -> Iterator[Finding]:
    """Rows whose pictures another source has, too: all of them in one of its rows, or some somewhere."""
    if not others:
        return
    hashes = np.concatenate([row.hashes for row in others])
    owner = np.repeat(np.arange(len(others)), [len(row.hashes) for row in others])
    known = {digest for row in others for digest in row.digests}
    for row in seen:
        close = bits(hashes[:, None] ^ row.hashes) <= SAME_PICTURE  # (their images, ours)
        if not close.any():
            continue
        owners = [set(owner[column].tolist()) for column in close.T]
        if common := set.intersection(*owners):
            copies = [i for i in common if {*row.images} <= {*others[i].digests}]
            other = others[min(copies or common)]
            # Pictures that differ in their colours alone look alike to a hash: a reader should not be told
            # that they are the same.
            what = "all its images" if copies else "pictures that look like all of its own"
            found = f"{what} in {other.file} row {other.row} of {name}"
            yield _finding(row, "error", "images", found, _UNSHARED)
        else:
            shared = [digest for digest, rows in zip(row.images, owners, strict=True) if rows]
            what = "images" if known.issuperset(shared) else "images that look like images"
            found = f"{len(shared)} of {len(owners)} {what} in rows of {name}"
            yield _finding(row, "warning", "images", found, _UNSHARED)
