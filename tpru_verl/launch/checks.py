"""What a run needs around it: environment variables, and a look at the machine before it starts."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tpru_verl import hub, prompts, trainers
from tpru_verl.cores import available_cores
from tpru_verl.launch import overlays
from tpru_verl.launch.needs import joins_a_cluster
from tpru_verl.launch.settings import Settings
from tpru_verl.models import family_of, model_refusal

if TYPE_CHECKING:
    from tpru_verl.data.source.forms import TrainerKeys
    from tpru_verl.data.source.rows import Row

GIB = 1024**3

# The packages of the engines in `verl.workers.rollout.replica` of veRL 0.9, by `rollout.name`. Our agent loop
# drives vLLM; with the others stock veRL prepares each sample (`plugin/agent_loop.py`).
ENGINES = {"vllm": "vllm", "sglang": "sglang", "trtllm": "tensorrt_llm"}

VLLM_ON_CPU = {
    # GiB of KV cache: the default takes half the machine.
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # vLLM would pin itself to cores that the trainer needs, too.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # vllm-cpu 0.28 asks every model for MLA, and ends in an IndexError on Qwen3-VL's language model.
    "VLLM_MLA_DISABLE": "1",
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
        ValueError: a data file is unreadable or lacks columns, or has fewer rows than a batch takes; veRL
            does not know the model's processor, or the engine of the rollouts; or settings do not go
            together (`launch.overlays`).
        OSError: too little room for checkpoints or in shared memory.
        RuntimeError: the engine is not installed; or a Ray cluster of an earlier run would be joined instead
            of a fresh one started.
    """
    settings, model = Settings(trainers.VERL, recipe), recipe["actor_rollout_ref"]["model"]["path"]
    overlays.check(recipe)
    model_is_there("actor_rollout_ref.model.path", model)
    sees_images(settings)
    engine_is_there(recipe)
    for key in ("train_files", "val_files"):
        data_is_there(f"data.{key}", recipe["data"][key], settings.row_keys)
    enough_rows(settings, row_count(settings))
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
    overlays.check_numbers(Settings(trainers.EASYR1, recipe))
    model_is_there("worker.actor.model.model_path", recipe["worker"]["actor"]["model"]["model_path"] or "")
    if not reward["reward_function"]:
        raise FileNotFoundError(
            "worker.reward.reward_function: found no such file, expected FILE.py:FUNCTION; "
            "a relative path starts where the run does"
        )
    if data["format_prompt"]:
        prompts.check_file("data.format_prompt", Path(data["format_prompt"]))
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
            "(a checkpoint in shards becomes one with `tpru export`)"
        )


def sees_images(settings: Settings) -> None:
    """Raises ValueError for a family that is refused, a model of text, a processor that veRL does not know,
    bounds that cannot hold.

    Of a Hub id the small files are fetched, as the run would; where the Hub is out of reach, nothing is said.
    """
    from tpru_verl.data.tokens.pictures import named_processor, pixel_bounds

    model, said = settings.text("model"), settings.said("model")
    if (family := family_of(model)) and family.refused:
        raise ValueError(f"{said}: found {family.name}, {family.refused}")
    folder = model if Path(model).expanduser().is_dir() else _small_files(model)
    if not folder:
        return
    if refusal := model_refusal(folder):
        raise ValueError(f"{said}: {refusal}")
    bounds = {name: settings[name] for name in ("min_pixels", "max_pixels")}
    pixel_bounds(bounds, named_processor(folder), settings.mm_processor_kwargs)


def _small_files(model: str) -> str:
    try:
        from huggingface_hub import snapshot_download

        wanted = ["config.json", "*processor_config.json"]
        return snapshot_download(model, allow_patterns=wanted, local_files_only=bool(hub.offline()))
    except Exception:  # no network, no such model, no access: the trainer says it
        return ""


def engine_is_there(recipe: Mapping) -> None:
    """Raises ValueError for an engine that veRL has not, RuntimeError for one that is not installed here."""
    name = recipe["actor_rollout_ref"]["rollout"].get("name", "vllm")
    said = f"actor_rollout_ref.rollout.name={name}"
    if name not in ENGINES:
        raise ValueError(f"{said}: found no such engine in veRL 0.9, expected {', '.join(ENGINES)}")
    if recipe["trainer"]["device"] == "cpu" and name != "vllm":
        raise ValueError(
            f"{said}: found trainer.device=cpu with it, expected vllm, the one engine that was tried on a CPU"
        )
    if not joins_a_cluster(recipe) and importlib.util.find_spec(ENGINES[name]) is None:
        raise RuntimeError(
            f"{said}: found no package {ENGINES[name]}, expected it installed; install it as veRL's extra "
            f"does (pip install 'verl[{name}]'), or set actor_rollout_ref.rollout.name=vllm"
        )


_URL = re.compile(r"(\w[\w+.-]*)://")


def on_a_disk(settings: Settings) -> None:
    """Raises ValueError for an address such as s3://... where a trainer takes files and folders alone.

    veRL 0.9.1 would save checkpoints in a local folder named `s3:`. It copies a model from hdfs:// alone.
    """
    for name in ("train_files", "val_files", "checkpoints", "model"):
        for value in settings.files(name):
            found = _URL.match(value)
            if found and not (name == "model" and found[1] == "hdfs"):
                raise ValueError(
                    f"{settings.key(name)}={value}: found an address, expected a file or folder; mount the "
                    f"storage as a folder, or copy it (docs/clusters.md)"
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


def row_count(settings: Settings) -> int | None:
    """Rows of the training data, usable or not; None where some are on the Hub, or not counted yet."""
    from tpru_verl.data.source.forms import Source
    from tpru_verl.data.source.parts import is_local

    if not all(is_local(name) for name in settings.files("train_files")):
        return None
    counts = [Source.open(name, keys=settings.row_keys).rows for name in settings.files("train_files")]
    return None if None in counts else sum(count for count in counts if count is not None)


def enough_rows(settings: Settings, rows: int | None) -> None:
    """Raises ValueError where the training data cannot fill one batch: veRL divides by its zero steps."""
    batch, most = settings.integer("batch"), settings.integer("most_rows")
    if rows is None or not batch:
        return
    given = min(rows, most) if most > 0 else rows
    if given < batch:
        raise ValueError(
            f"{settings.said('train_files')}: found {given} rows, expected {batch} or more, "
            f"one batch; give more rows, or lower {settings.key('batch')} and {settings.key('mini_batch')}"
        )


def usable_rows(settings: Settings) -> int | None:
    """Judge all local rows as the trainer will; returns how many it can train on, None with rows on the Hub.

    Raises ValueError for unusable rows, unless the run leaves those out (`data.on_invalid=skip`).
    """
    limit, limit_key = settings.integer("limit_images"), settings.key("limit_images")
    from tpru_verl.data.checks import judged_rows, unusable_rows
    from tpru_verl.data.source.forms import Source
    from tpru_verl.data.source.parts import is_local

    counts = {}
    for key in ("train_files", "val_files"):
        counts[key], broken, total = 0, [], 0
        for name in filter(is_local, settings.files(key)):
            for row, problems in judged_rows(Source.open(name, keys=settings.row_keys)):
                total += 1
                if found := problems or too_many_images(row, limit, limit_key):
                    broken.append((row.place, "; ".join(found)))
        counts[key] = total - len(broken)
        if broken and (settings["on_invalid"] != "skip" or not counts[key]):
            skip = (
                ", or leave them out with data.on_invalid=skip" if settings.trainer == trainers.VERL else ""
            )
            raise ValueError(f"{settings.key(key)}: {unusable_rows(broken, total)}\nCorrect them{skip}.")
    return counts["train_files"] if all(map(is_local, settings.files("train_files"))) else None


def too_many_images(row: Row, limit: int, key: str) -> list[str]:
    """What vLLM would refuse of a sound row, in each epoch again; a limit of 0 is none."""
    count = len(row.headers)
    if not 0 < limit < count:
        return []
    return [f"{row.form.images}: found {count} images, expected {limit} or fewer; set {key}={count}"]


def gpu_is_there(settings: Settings) -> None:
    """Raises RuntimeError where a run needs a GPU of this machine, which has none: Ray would wait for one.

    A cluster of Ray that the run joins has its GPUs elsewhere.
    """
    if settings["device"] == "cpu" or joins_a_cluster(settings.config):
        return
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    if hidden or not has_gpu():
        found = "CUDA_VISIBLE_DEVICES hides all GPUs" if hidden else "found no GPU on this machine"
        instead = " (tpru_tiny_cpu trains without)" if settings.trainer == trainers.VERL else ""
        device = settings.said("device") if settings.key("device") else settings.said("gpus")
        raise RuntimeError(
            f"{device}: {found}, expected one; train on a machine with GPUs{instead}, or set RAY_ADDRESS to "
            "join a Ray cluster that has them"
        )


def has_gpu() -> bool:
    """Whether this machine has an accelerator, told by its device files: importing torch takes seconds."""
    patterns = ("nvidia[0-9]*", "nvidia-caps*/*", "kfd", "dxg", "davinci[0-9]*")
    return any(next(Path("/dev").glob(pattern), None) is not None for pattern in patterns)


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
