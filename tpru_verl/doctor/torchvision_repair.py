"""Repair an environment in which torchvision was built for another torch than the one beside it.

    python -m tpru_verl.doctor.torchvision_repair

Package indexes offer torchvision, torchaudio and torchcodec as CUDA builds only. Beside a CPU build of
torch their compiled operators cannot load: `import torchvision` dies on `operator torchvision::nms does
not exist`, and transformers, qwen-vl-utils and vLLM die with it. torchvision's Python half, all that the
image processors use, works once the module that looks the operators up is empty. That has to hold in every
process, Ray's workers and vLLM's engine too, hence a one-line `.pth` file in the environment. Nobody
imports torchaudio or torchcodec where they are absent, so broken ones are uninstalled.

Where all three load, nothing is changed. Standard library only: it runs before anything else can.
"""

import importlib.util
import subprocess
import sys
import sysconfig
from pathlib import Path

OPERATORS_MISSING = "operator torchvision::"
PTH = Path(sysconfig.get_paths()["purelib"]) / "tpru_torchvision_without_operators.pth"
PTH_LINE = (
    "import sys, types; sys.modules.setdefault('torchvision._meta_registrations', "
    "types.ModuleType('torchvision._meta_registrations'))\n"
)


def import_error(module: str) -> str | None:
    """The last line of the error of `import module` in a process of its own, or None if it works."""
    done = subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, text=True)
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no message"])[-1]


def repair() -> list[str]:
    """Repair what is broken, and return one line for each change.

    Raises:
        RuntimeError: torchvision is broken in another way, or still broken afterwards.
        subprocess.CalledProcessError: pip could not uninstall a broken package.
    """
    installed = [m for m in ("torchvision", "torchaudio", "torchcodec") if importlib.util.find_spec(m)]
    broken = {module: error for module in installed if (error := import_error(module))}
    done: list[str] = []
    if error := broken.pop("torchvision", None):
        if OPERATORS_MISSING not in error:
            raise RuntimeError(f"torchvision: {error}; reinstall torch and torchvision")
        temporary = PTH.with_suffix(".tmp")
        temporary.write_text(PTH_LINE)
        temporary.replace(PTH)
        done.append(f"torchvision's compiled operators are not for this torch: switched off by {PTH}")
        if error := import_error("torchvision"):
            PTH.unlink()
            raise RuntimeError(
                f"torchvision, without its operators: {error}; reinstall torch and torchvision"
            )
    for module, error in broken.items():
        pip = [sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", module]
        subprocess.run(pip, check=True, stdout=subprocess.DEVNULL)
        done.append(f"{module} cannot load beside this torch ({error}): uninstalled")
    return done


def main() -> None:
    """Print what was done, or that nothing had to be."""
    try:
        done = repair()
    except (RuntimeError, subprocess.CalledProcessError) as error:
        sys.exit(f"torchvision repair: {error}")
    for line in done or ["torchvision, torchaudio, torchcodec: no repair needed"]:
        print(f"torchvision repair: {line}", flush=True)


if __name__ == "__main__":
    main()
