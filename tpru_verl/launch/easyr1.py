"""EasyR1's own configuration of a run: its merge of file and overrides, without a start of anything.

    python -m tpru_verl.launch.easyr1 config=FILE KEY=VALUE...

prints it as JSON on the last line. A process of its own, because importing EasyR1 imports torch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, cast

_MARK = "tpru-configuration:"


def compose(arguments: Sequence[str]) -> dict[str, object]:
    """What `python -m verl.trainer.main ARGUMENTS` would train with, after EasyR1's own checks and defaults.

    Raises:
        ValueError: an unknown key or a value of the wrong type, in one line.
        RuntimeError: EasyR1 cannot be imported.
    """
    command = [sys.executable, "-m", __name__, *arguments]
    quiet = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, env=quiet, capture_output=True, text=True, check=False, timeout=300)
    for line in reversed(done.stdout.splitlines()):
        if line.startswith(_MARK):
            answer = json.loads(line.removeprefix(_MARK))
            if "error" in answer:
                raise ValueError(answer["error"])
            return answer["config"]
    last = (done.stderr.strip() or "it said nothing").splitlines()[-1]
    raise RuntimeError(f"EasyR1 cannot be imported: {last}")


def _merged(arguments: Sequence[str]) -> dict[str, object]:
    """As `verl.trainer.main.main` begins; tests hold it to that."""
    # Settings alone are wanted: without this stand-in, vLLM would be imported with them, or missed.
    sampler = ModuleType("verl.workers.rollout.vllm_rollout_spmd")
    sampler.__dict__["vLLMRollout"] = object
    sys.modules[sampler.__name__] = sampler
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from verl.trainer.config import PPOConfig  # pyright: ignore  # EasyR1's

    given = OmegaConf.from_cli(list(arguments))
    file = given.pop("config")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(PPOConfig()), OmegaConf.load(file), given)
        config = cast(Any, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        first = str(error).splitlines()[0]
        where = f" ({error.full_key})" if error.full_key and error.full_key not in first else ""
        raise ValueError(f"{first}{where}") from error
    config.deep_post_init()
    return config.to_dict()


if __name__ == "__main__":
    try:
        result = {"config": _merged(sys.argv[1:])}
    except ValueError as error:
        result = {"error": str(error)}
    print(_MARK + json.dumps(result, default=str))
