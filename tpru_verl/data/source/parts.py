"""Parts of a source: files, folders and data sets of the Hub, and their splits."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, cast

from tpru_verl.data.layout import MANIFEST, check_files, shards_of
from tpru_verl.data.source.hub import commit_of, load_hub
from tpru_verl.data.source.quotes import HOW, holds_rows, kept
from tpru_verl.files import lies_in
from tpru_verl.terminal import line_of

if TYPE_CHECKING:
    import datasets


KINDS = {".parquet": "parquet", ".jsonl": "json", ".json": "json"}  # the kinds that veRL trains on


TABLES = {".tsv": "\t", ".csv": ","}
SUFFIXES = (*KINDS, *TABLES)


# The words of `datasets.data_files`, so that what it takes for a test set is one here, too, and their short
# forms; as words of their own, or in a compound: `train`, `trainset`, `TrainData`, `minitrain`, `held-out`.
_SIZES = "mini|tiny|small|sub|toy|half|full|big|large|all"
_KEYWORDS = {
    split: re.compile(rf"(?<![^ ])(?:(?:{_SIZES}) ?)?(?:{words})(?: ?(?:set|data|split)|\u96c6)?s?(?![^ ])")
    for split, words in (
        ("train", "train(?:ing)?|trn|\u8bad\u7ec3"),
        ("validation", "valid(?:ation)?|dev|val|vld|\u9a8c\u8bc1"),
        ("test", "test(?:ing)?|tst|eval(?:uation)?|h[eo]ld ?out|\u6d4b\u8bd5"),
    )
}
_WORD_START = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")  # of camelCase
_NO_LETTERS = re.compile(r"[\W\d_]+")
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}.*")

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")

_LONGEST_LINE = 256 * 2**20  # characters of a line or of a table's cell: a row with its pictures in base64
_LARGEST_JSON = 2 * 2**30  # bytes of a json file that is one array, which is read at once


@dataclass(frozen=True)
class Part:
    """One file, or one data set of the Hub."""

    name: str  # as messages call it
    path: Path | None  # None for the Hub
    hub: datasets.Dataset | None = field(default=None, compare=False)
    commit: str | None = None  # of the Hub's repository

    @property
    def folder(self) -> Path | None:
        """Where relative paths of images start; None for the Hub, whose rows carry bytes."""
        return self.path.parent if self.path else None


def parts_of(source: str, *, revision: str | None = None) -> list[Part]:
    """The files that `source` stands for: a file, a folder, or a Hub id; the latter two take `@split`.

    Raises FileNotFoundError where there is nothing, ValueError for several splits, an unreadable data set, or
    shards that are not as the manifest of their folder says.
    """
    path, split = _path_and_split(source)
    if path.is_file():
        if split:
            raise ValueError(f"{source}: found a file, which has no splits, expected {path}")
        check_files([path])
        return [Part(str(path), path)]
    if path.is_dir():
        shards = _shards(path, split)
        check_files(shards, complete=True, whole=not split)
        return [Part(str(shard), shard) for shard in shards]
    if not is_local(source):
        commit = commit_of(str(path), revision)
        return [Part(source, None, load_hub(str(path), split, revision=commit), commit)]
    raise FileNotFoundError(f"{source}: no such file or folder; expected {', '.join(SUFFIXES)} or a Hub id")


def files_of(*sources: str | None) -> list[Path]:
    """The files that are read for local sources, and the manifests of folders. Raises as `parts_of`."""
    found: list[Path] = []
    for source in sources:
        if source is not None and is_there(source):
            found += [part.path for part in parts_of(source) if part.path]
            found.append(_path_and_split(source)[0] / MANIFEST)
    return found


def check_outside(out: Path, *sources: str | None) -> None:
    """Raises ValueError where `out` lies in a source or holds one, before anything is written.

    A result takes the place of all that `out` holds, other splits included, and what is written into a source
    would be read as a part of it. A link counts as what it leads to.
    """
    for source in filter(None, sources):
        place, _ = _path_and_split(source)
        if not _exists(place):
            continue
        if lies_in(place, out):
            found = f"found the source {source} there, which the result would replace"
            raise ValueError(f"{out}: {found}; name another folder")
        if lies_in(out, place):
            found = f"found a folder inside the source {source}"
            raise ValueError(f"{out}: {found}, expected OUT outside it; name another folder")


def is_local(name: str) -> bool:
    """Whether a data set or a model is a file or folder of this machine, and not the id of one on the Hub.

    True for what exists, with or without `@split`, and for what has not the form of an id (`org/name`).
    """
    head = name.rpartition("@")[0] or name
    return is_there(name) or not _HUB_ID.fullmatch(head) or head.endswith(SUFFIXES)


def is_there(name: str) -> bool:
    """Whether a file or a folder has this name, with or without `@split`."""
    return _exists(_path_and_split(name)[0])


def _path_and_split(source: str) -> tuple[Path, str]:
    path = Path(source).expanduser()
    head, at, split = source.rpartition("@")
    return (path, "") if not head or not at or _exists(path) else (Path(head).expanduser(), split)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long, a loop of links
        return False


def _shards(folder: Path, split: str) -> list[Path]:
    """Data files below `folder`, parquet before json (which beside parquet is metadata), of one split."""
    visible = [
        p
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not any(part.startswith(".") for part in p.relative_to(folder).parts)
    ]
    _refuse_results(folder, visible)
    # `b.JSONL` beside `a.jsonl` is not left out: who reads it says that the suffix is another one.
    of_kind = ([p for p in visible if p.suffix.lower() == suffix] for suffix in SUFFIXES)
    files = next(filter(None, of_kind), [])
    if not files:
        raise FileNotFoundError(f"{folder}: found no file that ends in {', '.join(SUFFIXES)}")
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(_own_split(file.relative_to(folder)), []).append(file)
    known = ", ".join(f"@{name}" if name else "files that name none" for name in sorted(by_split))
    if split:
        wanted = _wanted(f"{folder}@{split}", split, by_split, known)
        return [file for name in wanted for file in by_split[name]]
    if len(by_split) > 1 and not _are_pieces(by_split):  # training and test rows must never be read as one
        raise ValueError(f"{folder}: found several splits, expected one; name it after the folder: {known}")
    return files


def _refuse_results(folder: Path, visible: Sequence[Path]) -> None:
    """Raises ValueError for a result below `folder` beside other rows: it may have been made of them."""
    results = [p.parent for p in visible if p.name == MANIFEST and p.parent != folder and shards_of(p.parent)]
    rows = (p for p in visible if p.suffix.lower() in SUFFIXES and not any(r in p.parents for r in results))
    if results and (beside := next(rows, None)):
        found = f"found an earlier result, {results[0]}, beside {beside.relative_to(folder)}"
        raise ValueError(f"{folder}: {found}, expected one of them: name the file or the folder to read")


def _wanted(source: str, split: str, names: Collection[str], known: str) -> list[str]:
    """The `names` that `split` means: the name itself, its pieces, or the only one with the same keyword.

    Raises FileNotFoundError for none, ValueError for several.
    """
    if split in names:
        return [split]
    alike = [name for name in names if name and _splits_in(name)[:1] == _splits_in(split)[:1] != []]
    if not alike:
        raise FileNotFoundError(f"{source}: found no such split, expected one of: {known}")
    if pieces := _pieces(split, alike):
        return pieces
    if len(alike) > 1 and not (split.isalpha() and _are_pieces(alike)):
        raise ValueError(f"{source}: found several splits that this may mean, expected one of: {known}")
    return alike


def _are_pieces(names: Collection[str]) -> bool:
    """Whether all of the names are pieces of one split, whose keyword they begin with."""
    word = next((found[0] for name in names if (found := re.match(r"[^\W\d_]+", name))), "")
    return bool(_splits_in(word)) and len(_pieces(word, names)) == len(names)


def _pieces(split: str, names: Iterable[str]) -> list[str]:
    """Names that go on after `split` with a number or a word: `train-en`, `train_0`.

    None where one goes on with nothing or a letter: `train_a` and `train_b` are splits of their own.
    """
    begins = re.compile(rf"{re.escape(split)}(?![^\W\d_])(?!(?<=\d)\d)", re.IGNORECASE)
    found = {name: name[begun.end() :] for name in names if (begun := begins.match(name))}
    alone = any(re.fullmatch(r"[\W_]*[^\W\d_]?[\W_]*", rest) for rest in found.values())
    return [] if alone else [*found]


def _own_split(file: Path) -> str:
    """As `split_of`, but shards `dev` and `val`, or `train_a` and `train_b`, of no split's folder are two."""
    split, shard = split_of(file), _SHARD.fullmatch(file.stem)
    in_folder = _splits_in("/".join(file.parts[:-1]))
    return shard[1] if shard and _splits_in(shard[1]) and not in_folder else split


def split_of(file: Path) -> str:
    """The split that a file's relative path names: train, validation, test or a shard's own; "" for none.

    By the words of `datasets` (`datasets.data_files`), whatever the case of the letters, in the names of the
    folders and of the file. A file `NAME-00000-of-00001` without such a word is of the split NAME. Raises
    ValueError where folders and file name several splits: `eval_kit/train.jsonl`.
    """
    shard = _SHARD.fullmatch(file.stem)
    own = _splits_in(shard[1] if shard else file.stem)
    if shard and len(own) > 1:
        return shard[1]
    named = {*own, *_splits_in("/".join(file.parts[:-1]))}
    found = [split for split in _KEYWORDS if split in named]
    if len(found) > 1:
        raise ValueError(f"{file}: found the names of several splits ({', '.join(found)}), expected one")
    return found[0] if found else shard[1] if shard else ""


def _splits_in(name: str) -> list[str]:
    words = _NO_LETTERS.sub(" ", _WORD_START.sub(" ", name)).casefold()
    return [split for split, keyword in _KEYWORDS.items() if keyword.search(words)]


def plain_rows(part: Part) -> Iterator[dict[str, object]]:
    """Rows of a json, jsonl, tsv or csv file. Raises ValueError with the line that is none."""
    path = cast(Path, part.path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{part.name}: found {path.suffix or 'no suffix'!r}, expected {', '.join(SUFFIXES)}")
    refuse_empty(part)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix in TABLES:
                yield from _table_rows(part, file)
            else:
                yield from _json_rows(part, file)
    except UnicodeDecodeError as error:
        found = f"found bytes that are no UTF-8 ({line_of(error)})"
        raise ValueError(f"{part.name}: {found}, expected text in UTF-8; save the file as UTF-8") from error
    except MemoryError as error:
        raise ValueError(f"{part.name}: not readable as {path.suffix[1:]}: {line_of(error)}") from error


def refuse_empty(part: Part) -> None:
    """Raises ValueError for a file of 0 bytes."""
    if part.path is not None and part.path.stat().st_size == 0:
        raise ValueError(f"{part.name}: found an empty file, expected rows")


def check_lines(part: Part) -> None:
    """Raises ValueError for a json or jsonl file with a line too long to be a row, before others read it."""
    path = part.path
    if path is None or path.suffix == ".parquet" or path.stat().st_size <= _LONGEST_LINE:
        return
    with path.open("rb") as file:
        array = file.read(64).lstrip().startswith(b"[")
        file.seek(0)
        for number in count(1):
            text = file.readline(_LONGEST_LINE + 1)
            if len(text) > _LONGEST_LINE and not array:
                raise _too_long(part, number)
            if not text:
                return


def _too_long(part: Part, number: int) -> ValueError:
    found = f"found over {_LONGEST_LINE:,} characters, expected one row"
    return ValueError(f"{part.name} line {number}: {found}")


def _table_rows(part: Part, file: io.TextIOBase) -> Iterator[dict[str, object]]:
    csv.field_size_limit(_LONGEST_LINE)
    delimiter = TABLES[cast(Path, part.path).suffix]
    lines: list[str] = []  # of one row
    reader = csv.DictReader(kept(_lines(part, file), lines), delimiter=delimiter, strict=True)
    try:
        columns = [*(reader.fieldnames or ())]
        _check_columns(part, columns, delimiter)
        lines.clear()
        for number, record in enumerate(reader):
            if None in record or None in record.values():
                raise ValueError(f"{part.name} row {number}: found more or fewer cells than columns")
            if len(lines) > 1 and holds_rows(lines, delimiter, len(columns)):
                first, last = reader.reader.line_num - len(lines) + 1, reader.reader.line_num
                found = f"found a quote that joins lines {first} to {last}, which are rows of their own"
                raise ValueError(f"{part.name} line {first}: {found}; {HOW}")
            lines.clear()
            yield dict(record)
    except csv.Error as error:
        first = max(1, reader.reader.line_num - len(lines) + 1)
        how = f"; {HOW}" if any('"' in line for line in lines) else ""
        reason = f"not readable as {cast(Path, part.path).suffix[1:]}: {line_of(error)}{how}"
        raise ValueError(f"{part.name} line {first}: {reason}") from error


def _check_columns(part: Part, columns: list[str], delimiter: str) -> None:
    if twice := [name for name, times in Counter(columns).items() if times > 1]:
        raise ValueError(f"{part.name}: found the column {twice[0]!r} twice, expected distinct names")
    if len(columns) == 1 and (other := next((mark for mark in "\t;|," if mark in columns[0]), None)):
        found = f"found {other!r} between the names of columns"
        raise ValueError(f"{part.name}: {found}, expected {delimiter!r} in such a file")


def _json_rows(part: Part, file: io.TextIOBase) -> Iterator[dict[str, object]]:
    start = file.read(64).lstrip()[:1]
    file.seek(0)
    if start == "[":
        if (size := cast(Path, part.path).stat().st_size) > _LARGEST_JSON:
            raise ValueError(f"{part.name}: found {size:,} bytes of json, expected jsonl, one row a line")
        try:
            records = enumerate(json.load(file))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{part.name}: not readable as json: {line_of(error)}") from error
    else:
        lines = enumerate(_lines(part, file))
        records = ((n, _json_line(part, n, text)) for n, text in lines if text.strip())
    for number, record in records:
        if not isinstance(record, dict):
            raise ValueError(f"{part.name} row {number}: found {type(record).__name__}, expected an object")
        yield record


def _lines(part: Part, file: io.TextIOBase) -> Iterator[str]:
    """Lines, none of which is endless. Raises ValueError."""
    number = 0
    while text := file.readline(_LONGEST_LINE + 1):
        number += 1
        if len(text) > _LONGEST_LINE:
            raise _too_long(part, number)
        yield text


def _json_line(part: Part, number: int, text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{part.name} line {number + 1}: not readable as json: {line_of(error)}") from error
