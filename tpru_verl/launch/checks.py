"""What a run needs around it: environment variables, and a look at the machine before it starts."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tpru_verl import trainers
from tpru_verl.cores import available_cores
from tpru_verl.launch.settings import Settings
from tpru_verl.models import processor_of, verl_refusal

if TYPE_CHECKING:
    from tpru_verl.data.source.forms import TrainerKeys

GIB = 1024**3

VLLM_ON_CPU = {
    # GiB of KV cache: the default takes half the machine.
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # vLLM would pin itself to cores that the trainer needs, too.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


def environment(recipe: Mapping) -> dict[str, str]:
    """Variables for `python -m verl.trainer.main_ppo` with this composed recipe.

    Nothing for a GPU recipe. With `trainer.device: cpu` the platform of `tpru_verl.plugin.cpu`, and what
    vLLM's CPU build wants to know (https://docs.vllm.ai, CPU installation).
    """
    if recipe["trainer"]["device"] != "cpu":
        return {}
    return {
        "VERL_PLATFORM": "cpu",
        **VLLM_ON_CPU,
        # Trainer and vLLM take turns, with others beside them: more threads only wait for each other.
        "OMP_NUM_THREADS": str(max(1, available_cores() // 2)),
        "TOKENIZERS_PARALLELISM": "false",
        "RAY_USAGE_STATS_ENABLED": "0",
        # TransferQueue warns about its threads with every batch on a machine of few cores.
        "TQ_LOGGING_LEVEL": "ERROR",
    }


def check(recipe: Mapping) -> None:
    """Raise before anything starts what would otherwise surface minutes later, or as a hang.

    Raises:
        FileNotFoundError: the model path, or a data file, is a path and not there.
        ValueError: a data file is unreadable or lacks columns, or veRL does not know the model's processor.
        OSError: too little room for checkpoints or in shared memory.
        RuntimeError: a Ray cluster of an earlier run would be joined instead of a fresh one started.
    """
    model = recipe["actor_rollout_ref"]["model"]["path"]
    model_is_there("actor_rollout_ref.model.path", model)
    if (processor := processor_of(model)) and (refusal := verl_refusal(processor)):
        raise ValueError(f"actor_rollout_ref.model.path={model}: {refusal}")
    for key in ("train_files", "val_files"):
        data_is_there(f"data.{key}", recipe["data"][key], Settings(trainers.VERL, recipe).row_keys)
    room_for_checkpoints("trainer.default_local_dir", Path(recipe["trainer"]["default_local_dir"]))
    bucket = recipe["actor_rollout_ref"]["rollout"]["checkpoint_engine"]["update_weights_bucket_megabytes"]
    if recipe["trainer"]["device"] == "cpu":
        _room_in_shared_memory(bucket * recipe["trainer"]["n_gpus_per_node"])
    if not recipe["ray_kwargs"]["ray_init"].get("address"):
        no_leftover_ray()


def check_easyr1(recipe: Mapping) -> None:
    """As `check`, for EasyR1's configuration as `plugin.easyr1.compose` gives it.

    Also raises FileNotFoundError for a template or reward that EasyR1 would go on without, and ValueError for
    a folder that it cannot list.
    """
    data, reward = recipe["data"], recipe["worker"]["reward"]
    model_is_there("worker.actor.model.model_path", recipe["worker"]["actor"]["model"]["model_path"] or "")
    if not reward["reward_function"]:
        raise FileNotFoundError(
            "worker.reward.reward_function: found no such file, expected FILE.py:FUNCTION; "
            "a relative path starts where the run does"
        )
    for key in ("train_files", "val_files"):
        data_is_there(f"data.{key}", data[key], Settings(trainers.EASYR1, recipe).row_keys)
        _listing_is_plain(f"data.{key}", data[key])
    room_for_checkpoints("trainer.save_checkpoint_path", Path(recipe["trainer"]["save_checkpoint_path"]))


def _listing_is_plain(key: str, entry: str) -> None:
    """EasyR1 takes the kind of all files in a folder from whichever the system lists first."""
    folder = Path(entry.partition("@")[0])
    if not folder.is_dir():
        return
    kinds = sorted({path.suffix or path.name for path in folder.iterdir()})
    if len(kinds) > 1:
        shards = f"; give {folder / 'data'}" if (folder / "data").is_dir() else ""
        raise ValueError(
            f"{key}={entry}: found {', '.join(kinds)} in the folder, expected data files of one kind{shards}"
        )


def check_platform(recipe: Mapping) -> None:
    """Raise RuntimeError where a CPU recipe runs without what `environment` sets: it would crash in FSDP."""
    if recipe["trainer"]["device"] == "cpu" and os.environ.get("VERL_PLATFORM", "").strip().lower() != "cpu":
        raise RuntimeError(
            "trainer.device=cpu: found no VERL_PLATFORM=cpu in the environment; "
            "`tpru train RECIPE --dry-run` prints all that is needed, `tpru train RECIPE` sets it"
        )


def model_is_there(key: str, path: str) -> None:
    """Raises FileNotFoundError, in one line, for a path that holds no model; a Hub id is not asked for."""
    from tpru_verl.data.source.parts import is_local

    folder = Path(path).expanduser()
    if "/" in path and is_local(path) and not folder.is_dir():
        raise FileNotFoundError(f"{key}={path}: no such folder")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{key}={path}: no config.json in it, expected a Hugging Face folder "
            "(veRL's checkpoints become one with `python -m verl.model_merger merge`)"
        )


def data_is_there(key: str, files: str | Sequence[str] | None, keys: TrainerKeys) -> None:
    """Files and folders alone, and of them the columns: whether a Hub id can be read shows when it is.

    Raises FileNotFoundError for what is missing, ValueError for what is unreadable or lacks columns.
    """
    from tpru_verl.data.source.forms import form_of
    from tpru_verl.data.source.parts import is_local, is_there, parts_of

    if not files:
        raise FileNotFoundError(f"{key}: nothing given, expected files, folders or a Hub id")
    for entry in [files] if isinstance(files, str) else files:
        if not is_local(entry):
            continue
        if not is_there(entry):
            raise FileNotFoundError(f"{key}={entry}: no such file or folder")
        try:
            for part in parts_of(entry):
                form_of(part, keys)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{key}: {error}") from error
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error


def room_for_checkpoints(key: str, folder: Path, least: int = GIB) -> None:
    """Raises OSError where the disk of `folder`, which may not be there yet, has less than `least` bytes."""
    existing = next(parent for parent in [folder.absolute(), *folder.absolute().parents] if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < least:
        raise OSError(f"{key}={folder}: {free / GIB:.1f} GiB free, expected {least / GIB:.0f}")


def _room_in_shared_memory(megabytes: int) -> None:
    """Ray's object store and the weights on their way to vLLM live in /dev/shm."""
    shm = Path("/dev/shm")
    if not shm.is_dir():
        return
    free = shutil.disk_usage(shm).free
    needed = megabytes * 2**20 + 128 * 2**20
    if free < needed:
        raise OSError(
            f"/dev/shm: {free / 2**20:.0f} MiB free, expected {needed / 2**20:.0f}; in a container start it "
            "with --shm-size=2g, or lower "
            "actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes"
        )


def no_leftover_ray() -> None:
    """Raises RuntimeError where one runs: `ray.init` joins it without a word, and then refuses resources."""
    if os.environ.get("RAY_ADDRESS"):
        return
    note = Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir())) / "ray" / "ray_current_cluster"
    if not note.is_file():
        return
    host, _, port = note.read_text().strip().rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
    except (OSError, ValueError):
        return  # it is only the note of a cluster that has ended
    raise RuntimeError(
        f"a Ray cluster is running at {host}:{port}, perhaps left by an earlier run: end it with `ray stop`, "
        "or train on it with RAY_ADDRESS=auto and no ray_kwargs.ray_init.num_cpus"
    )
