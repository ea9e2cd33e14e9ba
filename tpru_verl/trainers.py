"""Which trainer is installed: both veRL and EasyR1 are a package called `verl`. Nothing is imported."""

from __future__ import annotations

import importlib.util
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from tpru_verl.extras import install_command
from tpru_verl.models import Family

VERL, EASYR1 = "veRL", "EasyR1"
# A file that one of them has and the other has not: the module that starts a training.
_ENTRY = {VERL: "trainer/main_ppo.py", EASYR1: "trainer/main.py"}
# The versions that were run, or whose own code ran in a test; docs/versions.md has what runs with others.
TESTED = {VERL: ("0.9.1",), EASYR1: ("0.3.2", "0.3.3")}
# The first veRL that loads plugins (entry points `verl.plugins`), on which the data set and the recipes rest.
FIRST_VERL = (0, 9)
# What breaks every EasyR1 so far: the first version that does, the pin that helps, and how it shows.
EASYR1_PINS = {
    "omegaconf": ((2, 4), "omegaconf<2.4", "its configuration classes no longer merge"),
    "transformers": ((5,), "transformers<5", "its model patches no longer import"),
}


@dataclass(frozen=True)
class Trainer:
    """The `verl` that Python would import here."""

    name: str  # VERL or EASYR1
    version: str
    folder: Path

    def __str__(self) -> str:
        return f"{self.name} {self.version}"

    @property
    def module(self) -> str:
        """What `python -m` starts to train."""
        return "verl." + _ENTRY[self.name].removesuffix(".py").replace("/", ".")

    def knows(self, family: Family | None) -> bool:
        """Whether it can train models of this family; of an unknown family only the trainer can tell."""
        if self.name == VERL or family is None:
            return True
        return bool(family.easyr1) and (self.folder / family.easyr1_file).exists()


def find() -> Trainer:
    """The trainer installed here.

    Raises:
        RuntimeError: none, both in one folder, or a `verl` that is neither; the message is one line.
    """
    spec = importlib.util.find_spec("verl")
    if spec is None or spec.origin is None:
        raise RuntimeError(
            f"verl: found none, expected veRL or EasyR1: {install_command('verl')} "
            "(without a GPU the extra `cpu`), or install EasyR1"
        )
    folder = Path(spec.origin).parent
    owners = owners_of(folder)
    found = [name for name, file in _ENTRY.items() if (folder / file).is_file()]
    if len(found) > 1 or len(owners) > 1:
        by = f", installed by {' and '.join(owners)}" if owners else ""
        remove = " ".join(owners) or "verl"
        raise RuntimeError(
            f"verl: found files of both veRL and EasyR1 in {folder}{by}, expected one of them: "
            f"pip uninstall {remove}, remove what is left of {folder}, and install one anew"
        )
    if not found:
        raise RuntimeError(
            f"verl: found neither trainer/main_ppo.py (veRL 0.9) nor trainer/main.py (EasyR1) in {folder}, "
            "expected veRL 0.9.1 or EasyR1 0.3.2 or later"
        )
    return Trainer(found[0], _version(folder), folder)


def owners_of(folder: Path) -> list[str]:
    """Distributions whose files lie in `folder`, by what they recorded; a checkout has none."""
    recorded = f"\n{folder.name}/__init__.py,"
    return sorted(
        distribution.metadata["Name"]
        for distribution in metadata.distributions()
        if recorded in f"\n{distribution.read_text('RECORD') or ''}"
        and Path(str(distribution.locate_file(folder.name))).resolve() == folder.resolve()
    )


def _version(folder: Path) -> str:
    """As veRL and EasyR1 write it down."""
    file = folder / "version/version"
    if file.is_file():
        return file.read_text().strip()
    match = re.search(r'__version__\s*=\s*"([^"]+)"', (folder / "__init__.py").read_text(encoding="utf-8"))
    return match[1] if match else "of unknown version"


def version_of(distribution: str) -> str | None:
    """Version of an installed distribution, None where it is not there."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def versions_of(distributions: Sequence[str]) -> dict[str, str]:
    """Versions of Python and of what of these is installed."""
    found = {name: version for name in distributions if (version := version_of(name))}
    return {"python": platform.python_version(), **found}


def unfit(trainer: Trainer) -> list[str]:
    """Why no run of ours can start with this trainer, each reason as one line that ends in what to do."""
    if trainer.name == VERL:
        return [reason] if (reason := too_old(trainer.version)) else []
    lines = []
    for name, (first_bad, pin, how) in EASYR1_PINS.items():
        version = version_of(name)
        if version and numbers(version) >= first_bad:
            lines.append(f"{name}: found {version}, expected {pin} for {trainer}: {how}; pip install '{pin}'")
    return lines


def too_old(verl: str) -> str:
    """Why the data set, recipes and patches do not run with this version of veRL; "" where they do."""
    if not numbers(verl) or numbers(verl)[: len(FIRST_VERL)] >= FIRST_VERL:
        return ""
    tested = TESTED[VERL][0]
    return (
        f"verl: found veRL {verl}, which loads no plugins (0.9.0 was the first to), expected veRL {tested}; "
        f"pip install 'verl=={tested}', or train with veRL's own recipe and data set on rows of `tpru data "
        "prepare`, and our reward by its path (docs/versions.md)"
    )


def untested(trainer: Trainer) -> str:
    """What to know of a version that runs and was not tested; "" for one that was."""
    tested = TESTED[trainer.name]
    if trainer.version.startswith(tested):
        return ""
    return f"found {trainer}, tested with {' and '.join(tested)}; what differs is in docs/versions.md"


def numbers(version: str) -> tuple[int, ...]:
    """Leading numbers of a version: "2.4.0.dev1" is (2, 4, 0)."""
    return tuple(int(n) for n in re.match(r"\d*(?:\.\d+)*", version)[0].split(".") if n)  # type: ignore[index]
