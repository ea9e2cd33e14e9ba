"""The veRL plugin (entry point `verl.plugins: tpru`): the patches that training on TPRU needs in veRL.

veRL loads the entry point on every `import verl`, so in every Ray worker and every vLLM process. It loads the
attribute and does not call it, so importing this package registers the patches. Nothing here imports torch,
transformers or vLLM: a patch waits for the import of the module that it changes (`hooks`).
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from types import ModuleType

from tpru_verl.plugin import hooks
from tpru_verl.plugin.hooks import when_imported

logger = logging.getLogger("tpru_verl")

_ANNOUNCED = "TPRU_PLUGIN_ANNOUNCED"


def register() -> None:
    """Register the patches of `patches`, and with VERL_PLATFORM=cpu the CPU platform of `cpu`.

    Never raises, because veRL logs a plugin's exception at DEBUG, where nobody sees it. A part that cannot
    load logs a warning and leaves the others alone.
    """
    wanted = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto").strip().lower()
    if wanted != "auto" and "tpru" not in wanted.split(","):
        return
    _log_visibly()
    _load("forks")  # first, to import while the others do
    parts = ["patches"]
    if hooks.trains_on_cpu():
        parts.append("cpu")
    loaded = [part for part in parts if _load(part)]
    if loaded and not os.environ.get(_ANNOUNCED):
        # Children inherit the variable, so a run says this once and not once per worker.
        os.environ[_ANNOUNCED] = "1"
        without = f", without {', '.join(sorted(hooks.skipped))}" if hooks.skipped else ""
        logger.info("tpru plugin %s loaded into veRL: %s%s", _version(), ", ".join(loaded), without)
        for name in _unknown():
            logger.warning("tpru plugin: TPRU_SKIP_PATCHES names %s, expected names of docs/patches.md", name)
        if warning := _untested():
            logger.warning("tpru plugin: %s", warning)


def _load(part: str) -> bool:
    from importlib import import_module

    try:
        import_module(f"{__name__}.{part}").register()
    except Exception as error:
        logger.warning(
            "tpru plugin: %s could not be loaded and is skipped (%s: %s)", part, type(error).__name__, error
        )
        return False
    return True


def _unknown() -> list[str]:
    """Names of TPRU_SKIP_PATCHES that no loaded part has."""
    parts = [part for name, part in sys.modules.items() if name.startswith(f"{__name__}.")]
    return sorted(name for name in hooks.skipped if not any(hasattr(part, name) for part in parts))


def _version() -> str:
    from tpru_verl import __version__

    return __version__


def _untested() -> str:
    """That this veRL is not the one that was tested; asked once a run, as the import takes milliseconds."""
    from tpru_verl import trainers

    verl = sys.modules.get("verl")
    version = getattr(verl, "__version__", None)  # veRL sets it before it loads plugins
    if verl is None or version is None:
        return ""
    return trainers.untested(trainers.Trainer(trainers.VERL, str(version), Path(str(verl.__file__)).parent))


def _log_visibly() -> None:
    """veRL sets the root logger to WARNING, which would hide the line that names the loaded parts."""
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s:%(name)s: %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False


def _register_with_verl(platform: ModuleType) -> None:
    register()


# vLLM's processes load our vLLM entry point, and with it this package, before veRL.
when_imported("verl.plugin.platform")(_register_with_verl)
