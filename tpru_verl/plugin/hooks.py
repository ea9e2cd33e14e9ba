"""Applies a patch when the module that it changes is imported, and not before.

The plugin is loaded by every process of a run. Most of them never import most of the patched modules.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

logger = logging.getLogger("tpru_verl")

Patch = Callable[[ModuleType], None]

# Names of patches that are registered and not applied: for a run that one of them breaks, and for benchmarks.
skipped = {name.strip() for name in os.environ.get("TPRU_SKIP_PATCHES", "").split(",")} - {""}

_registered: set[tuple[str, Patch]] = set()
_waiting: dict[str, list[Patch]] = {}
_applied: set[str] = set()


def when_imported(module_name: str) -> Callable[[Patch], Patch]:
    """Decorate `patch(module)` to run once, right after `module_name` has been executed."""

    def decorator(patch: Patch) -> Patch:
        if (module_name, patch) in _registered:  # vLLM loads its plugins more than once a process
            return patch
        _registered.add((module_name, patch))
        module = sys.modules.get(module_name)
        # A module in the middle of its own import lacks the names that the patch looks for.
        if module is not None and not getattr(module.__spec__, "_initializing", False):
            apply(patch, module)
            return patch
        if not any(isinstance(finder, _PatchingFinder) for finder in sys.meta_path):
            sys.meta_path.insert(0, _PatchingFinder())
        _waiting.setdefault(module_name, []).append(patch)
        return patch

    return decorator


def trains_on_cpu() -> bool:
    return os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu"


def registered() -> set[tuple[str, str]]:
    """Module and name of every patch that this process would apply."""
    return {(module, patch.__name__) for module, patch in _registered}


def is_applied(name: str) -> bool:
    """Whether this process has applied the patch; its other half does nothing without it."""
    return name in _applied


def apply(patch: Patch, module: ModuleType) -> None:
    """Patch the module. A patch that raises logs a warning, and the module stays as it was."""
    if patch.__name__ in skipped:
        return
    try:
        patch(module)
        _applied.add(patch.__name__)
    except Exception as error:
        logger.warning(
            "tpru plugin: patch %s is skipped, because %s is not as expected (%s: %s)",
            patch.__name__,
            module.__name__,
            type(error).__name__,
            error,
        )


def require(owner: object, *names: str) -> None:
    """Raise AttributeError unless `owner` still has the names that a patch is about to replace."""
    missing = [name for name in names if not hasattr(owner, name)]
    if missing:
        label = getattr(owner, "__qualname__", getattr(owner, "__name__", repr(owner)))
        raise AttributeError(f"{label} has no {', '.join(missing)} any more")


def replace(owner: object, name: str, new: object) -> None:
    """Set `owner.name` to `new`. Raises AttributeError when there is nothing to replace."""
    require(owner, name)
    setattr(owner, name, new)


class _PatchingLoader(Loader):
    def __init__(self, inner: Loader) -> None:
        self._inner = inner

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        assert spec is not None
        spec.loader = module.__loader__ = self._inner
        self._inner.exec_module(module)
        # Taken now: a look for the module imports nothing, and an import that failed is tried again.
        for patch in _waiting.pop(spec.name, ()):
            apply(patch, module)


class _PatchingFinder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _waiting:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((found for found in specs if found is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _PatchingLoader(spec.loader)
        return spec
