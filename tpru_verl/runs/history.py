"""A run's metrics and responses together, read once or again and again while the run goes on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from tpru_verl.runs.logs import History, MetricsReader, RunFiles, Step, response_limit
from tpru_verl.runs.rollouts import Graded, files_by_step, graded, metrics_of, read_rollouts
from tpru_verl.terminal import line_of

Stamp = tuple[int, int, int]  # of a file, which tells it from the one that was there before


def stamp_of(path: Path) -> Stamp:
    """When a file changed, its size, and its inode, which one that is put in its place has not."""
    found = path.stat()
    return found.st_mtime_ns, found.st_size, found.st_ino


class HistoryReader:
    """Reads the files of a run; each `update` reads what is new. Files that are not there yet may come.

    `rollouts` and `validation` hold the graded responses by step.
    """

    def __init__(self, files: RunFiles) -> None:
        self.files = files
        self._metrics = MetricsReader(files.metrics) if files.metrics else None
        self._limit: int | None = None
        self.settings: Mapping[str, object] = {}
        self.rollouts: dict[int, list[Graded]] = {}
        self.validation: dict[int, list[Graded]] = {}
        self._seen: dict[Path, Stamp] = {}
        self._notes: dict[Path, str] = {}  # of dumps

    def update(self) -> History:
        """The run so far. Raises ValueError for a metrics file without any step, or an unreadable recipe."""
        steps = self._read_metrics()
        if not self.settings and self.files.config is not None and self.files.config.exists():
            self.settings = self.files.settings()
            self._limit = response_limit(self.settings)
        last = max((step.number for step in steps), default=None)
        if self.files.rollouts is not None:
            self._read_dumps(self.files.rollouts, self.rollouts, last)
        if self.files.validation is not None:
            self._read_validation(self.files.validation, steps, last)
        by_number = {step.number: step for step in steps}
        for number, answers in self.rollouts.items():
            step = by_number.setdefault(number, Step(number))
            if "rollouts/accuracy" not in step.data:
                step.data.update(metrics_of(answers))
        notes = [*(self._metrics.notes if self._metrics else []), *self._notes.values()]
        return History([by_number[number] for number in sorted(by_number)], self._limit, notes)

    def _read_metrics(self) -> list[Step]:
        if self._metrics is None:
            return []
        with suppress(FileNotFoundError):  # the run has not come so far
            return self._metrics.update()
        return []

    def _read_validation(self, path: Path, steps: list[Step], last: int | None) -> None:
        if path.is_dir():
            self._read_dumps(path, self.validation, last)
            return
        if not path.exists() or not self._is_new(path):
            return
        # EasyR1's one file does not say which validation an entry belongs to: all have as many.
        with self._noting(path):
            entries = list(graded(read_rollouts(path)))
            at = [step.number for step in steps if any(key.startswith("val/") for key in step.data)] or [0]
            each, rest = divmod(len(entries), len(at))
            if rest:
                raise ValueError(
                    f"{path}: found {len(entries)} responses of {len(at)} validations, expected equally many"
                )
            self.validation = {step: entries[i * each : (i + 1) * each] for i, step in enumerate(at)}

    def _read_dumps(self, folder: Path, into: dict[int, list[Graded]], last: int | None) -> None:
        """Read what is new or has changed; responses to a step without metrics may be half written."""
        found = files_by_step(folder)
        for step in [step for step in into if step not in found]:
            del into[step]
        for step, path in found.items():
            if (last is not None and step > last) or not self._is_new(path):
                continue
            with self._noting(path):
                into[step] = list(graded(read_rollouts(path, cut_off=True)))

    def is_as_graded(self, path: Path) -> bool:
        """Whether a file of responses is the one that was graded. Raises OSError where it is gone."""
        return self._seen.get(path) == stamp_of(path)

    def _is_new(self, path: Path) -> bool:
        stamp = stamp_of(path)
        return self._seen.get(path) != stamp and not self._seen.update({path: stamp})

    @contextmanager
    def _noting(self, path: Path) -> Iterator[None]:
        """Keep what is wrong with a file as a note: the rest of the run can still be shown."""
        self._notes.pop(path, None)
        try:
            yield
        except (OSError, ValueError) as error:
            self._notes[path] = f"{line_of(error)}; left out"
