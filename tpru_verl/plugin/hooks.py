"""Mend a module when it is imported, not before: the plugin is loaded by processes that never need it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

logger = logging.getLogger("tpru_verl")

Mend = Callable[[ModuleType], None]
_mends: dict[str, list[Mend]] = {}
_known: set[tuple[str, Mend]] = set()


def when_imported(module_name: str) -> Callable[[Mend], Mend]:
    """Decorate `mend(module)` to run once, right after `module_name` has been executed."""

    def decorator(mend: Mend) -> Mend:
        if (module_name, mend) in _known:  # vLLM loads its plugins more than once a process
            return mend
        _known.add((module_name, mend))
        module = sys.modules.get(module_name)
        # A module in the middle of its own import lacks the names that the mend looks for.
        if module is not None and not getattr(module.__spec__, "_initializing", False):
            _run(mend, module)
            return mend
        if not any(isinstance(finder, _MendingFinder) for finder in sys.meta_path):
            sys.meta_path.insert(0, _MendingFinder())
        _mends.setdefault(module_name, []).append(mend)
        return mend

    return decorator


def require(owner: object, *names: str) -> None:
    """Raise AttributeError unless `owner` still has what a mend is about to replace."""
    missing = [name for name in names if not hasattr(owner, name)]
    if missing:
        label = getattr(owner, "__qualname__", getattr(owner, "__name__", repr(owner)))
        raise AttributeError(f"{label} has no {', '.join(missing)} any more")


def replace(owner: object, name: str, new: object) -> None:
    """Put `new` in the place of `owner.name`. Raises AttributeError when there is nothing to replace."""
    require(owner, name)
    setattr(owner, name, new)


def _run(mend: Mend, module: ModuleType) -> None:
    try:
        mend(module)
    except Exception as error:
        logger.warning(
            "tpru plugin: %s is off, %s is not as expected (%s: %s)",
            getattr(mend, "__name__", mend),
            module.__name__,
            type(error).__name__,
            error,
        )


class _MendingLoader(Loader):
    def __init__(self, inner: Loader, mends: list[Mend]) -> None:
        self._inner, self._mends = inner, mends

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        assert spec is not None
        spec.loader = module.__loader__ = self._inner
        self._inner.exec_module(module)
        for mend in self._mends:
            _run(mend, module)


class _MendingFinder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        mends = _mends.pop(fullname, None)
        if mends is None:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((found for found in specs if found is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _MendingLoader(spec.loader, mends)
        return spec
