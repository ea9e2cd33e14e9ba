"""`tpru export`: the model of a checkpoint, merged, compared with its shards, ready to be served.

veRL's merger joins the shards. Beside an adapter it writes the weights that the adapter was trained on, not
the trained ones: whoever serves those serves the model of before. Here an adapter is merged, or kept alone.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tpru_verl.checkpoints import ADAPTED, Checkpoint, checkpoints_of
from tpru_verl.files import UNFINISHED, companion, locked, write_json, write_text
from tpru_verl.launch import adapter as adapters
from tpru_verl.launch.apart import ask
from tpru_verl.launch.folder import START
from tpru_verl.launch.resume import noted
from tpru_verl.launch.settings import value_at
from tpru_verl.runs import weights
from tpru_verl.runs.chat_template import KWARGS, keep_defaults
from tpru_verl.runs.logs import MetricsReader, RunFiles, Step, validated
from tpru_verl.runs.model_card import card, eval_command, serve_command
from tpru_verl.runs.places import is_there
from tpru_verl.terminal import line_of

HOUR = 3600.0
ADAPTER = "lora_adapter"  # where veRL's merger puts it
# Mean difference of log-probabilities, in nats. Joined shards are the same numbers. A merged adapter is
# rounded to bf16 with its layer, and vLLM rounds at other places than transformers.
SAME, ROUNDED = 1e-3, 0.1
UNSAFE = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


@dataclass
class Exported:
    """What was written and what was seen of it."""

    out: Path
    checkpoint: Checkpoint
    adapter: bool
    base: str  # what the run trained; "" where nothing says it
    lines: list[str] = field(default_factory=list)


def saved(run: Path) -> list[Checkpoint]:
    """The checkpoints of a run, by step, whole or not, also where its recipe leads them out of its folder.

    Of another folder, those in it. Raises ValueError for an unreadable recipe.
    """
    files = _files_in(run)
    return (checkpoints_of(files.checkpoints) if files and files.checkpoints else []) or checkpoints_of(run)


def chosen(run: Path, *, step: int | None = None, best: bool = False) -> Checkpoint:
    """The checkpoint of `step`, the `best` by validation accuracy, else the last whole one.

    Raises ValueError where there is none, OSError for a path that cannot be read.
    """
    found = saved(run)
    if not found and not is_there(run):
        raise FileNotFoundError(f"{run}: no such folder, expected a run's, or a trainer's of global_step_N")
    if not found:
        raise ValueError(
            f"{run}: found no checkpoint, expected a run's folder, a folder of global_step_N, or one of these"
        )
    if step is not None:
        named = [checkpoint for checkpoint in found if checkpoint.step == step]
        if not named:
            steps = ", ".join(str(checkpoint.step) for checkpoint in found)
            raise ValueError(f"{run}: found no checkpoint of step {step}, expected one of {steps}")
        found = named
    lacks = [checkpoint.lack() for checkpoint in found]
    whole = [checkpoint for checkpoint, lack in zip(found, lacks, strict=True) if not lack]
    if not whole:
        raise ValueError(lacks[-1])
    if not best:
        return whole[-1]
    scores = {number: score for number, score in _validations(run).items() if score == score}
    judged = [checkpoint for checkpoint in whole if checkpoint.step in scores]
    if not judged:
        steps = ", ".join(str(checkpoint.step) for checkpoint in whole)
        raise ValueError(
            f"{run}: found no validation at the steps of the checkpoints ({steps}), expected one to tell "
            "the best; name a checkpoint with --step"
        )
    return max(judged, key=lambda checkpoint: scores[checkpoint.step or 0])


def _validations(run: Path) -> dict[int, float]:
    return {step.number: score for step in _steps(run) if (score := validated(step)) is not None}


def _steps(run: Path) -> list[Step]:
    """Of the run's metrics; none where nothing was logged beside the checkpoints."""
    files = _files(run)
    return MetricsReader(files.metrics).update() if files and files.metrics else []


def _files(path: Path) -> RunFiles | None:
    """Those of the run that checkpoints belong to, whose folder is above them, or noted beside them."""
    if found := _files_in(path):
        return found
    for folder in (path.absolute(), *path.absolute().parents[:4]):
        for run in (folder, Path(str(noted(folder).get("run", folder)))):
            if is_there(run / START):
                return _files_in(run)
    return None


def _settings(run: Path) -> Mapping[str, Any]:
    files = _files(run)
    return files.settings() if files else {}


def _files_in(run: Path) -> RunFiles | None:
    try:
        return RunFiles.find(run)
    except FileNotFoundError:
        return None


def export(
    run: Path,
    checkpoint: Checkpoint,
    out: Path,
    *,
    adapter: bool = False,
    base: str | None = None,
    vllm: bool = True,
    say: Callable[[str], None],
) -> Exported:
    """Write the model of a checkpoint of `run` to the folder `out`, which appears whole or not at all.

    With `adapter` the adapter alone, else a whole model. `base`: the model that the run began with, where
    the note beside its checkpoints does not say it. `say` takes a line before each step that takes time.

    Raises:
        ValueError: not a checkpoint of an adapter, an adapter of which the checkpoint does not tell all, or
            the model is not that of the shards.
        FileExistsError: `out` holds something.
        RuntimeError: the merger or a check ended without an answer; the message has its last words.
    """
    if adapter and not (checkpoint.actor / ADAPTED).is_file():
        raise ValueError(f"{checkpoint.actor}: found no adapter (LoRA), expected one; leave out --adapter")
    if (checkpoint.actor / ADAPTED).is_file():
        _check_start(run, checkpoint)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out}: found other files, expected a new or empty folder")
    made = Exported(out, checkpoint, adapter, base or _trained_from(checkpoint))
    with locked(out):
        unfinished = companion(out, UNFINISHED)
        if unfinished.exists():  # of an export that was killed; nothing of it may get into this one
            shutil.rmtree(unfinished)
        try:
            say(f"joining {checkpoint.ranks} shards of {checkpoint.actor}")
            _merge(checkpoint, made.base, unfinished)
            kwargs = value_at(_settings(run), KWARGS) or {}
            _finish(made, unfinished, kwargs, vllm=vllm, say=say)
            write_text(unfinished / "README.md", _card(made, run))
            _as_the_users(unfinished)
            out.parent.mkdir(parents=True, exist_ok=True)
            unfinished.replace(out)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return made


def _check_start(run: Path, checkpoint: Checkpoint) -> None:
    """Raise ValueError for a run that began with an adapter which only its own configuration describes.

    With that adapter's scale lost, a wrong model would agree with wrongly read shards.
    """
    found = map(_files, (run, *checkpoint.actor.absolute().parents[:3]))
    files = next((files for files in found if files and files.config), None)
    path = value_at(files.settings(), adapters.KEY) if files else None
    if not files or not path:
        return
    own = Path(files.started_in or ".") / Path(str(path)).expanduser()
    try:
        option = adapters.unsaved(adapters.read(str(own if own.exists() else path)) or {})
    except FileNotFoundError:  # it was moved
        return
    if option:
        raise ValueError(
            f"{checkpoint.actor}: found a run that began with {adapters.KEY}={path}, which has {option}, "
            f"expected plain LoRA: {ADAPTED} keeps rank and alpha alone, and the exported model would not be "
            "the trained one; merge the adapter into its model first and train that"
        )


def _merge(checkpoint: Checkpoint, base: str, out: Path) -> None:
    with TemporaryDirectory(prefix="tpru-export-") as view:
        # EasyR1 writes no fsdp_config.json, which veRL's merger reads the number of ranks from.
        for path in checkpoint.actor.absolute().iterdir():
            (Path(view) / path.name).symlink_to(path)
        if not (Path(view) / "fsdp_config.json").exists():
            write_json(Path(view) / "fsdp_config.json", {"FSDP_version": 1, "world_size": checkpoint.ranks})
        ask(weights.join, {"shards": view, "base": base, "out": str(out)}, seconds=HOUR)


def _finish(
    made: Exported, folder: Path, kwargs: Mapping[str, object], *, vllm: bool, say: Callable[[str], None]
) -> None:
    """From what the merger wrote to what is served, compared at each step."""
    adapter, rounding = folder / ADAPTER, SAME
    request = {"model": str(folder), "shards": str(made.checkpoint.actor), "base": made.base}
    if adapter.is_dir():
        _name_layers(adapter, made.base)
        if made.adapter:
            request["adapter"] = str(adapter)
        else:
            say("merging the adapter")
            fused = folder / ".fused"  # within it, so that it goes with it when the disk is full
            ask(weights.fuse, {**request, "adapter": str(adapter), "out": str(fused)}, seconds=HOUR)
            _take_weights(fused, folder)
            rounding = ROUNDED
    made.lines += keep_defaults(folder, kwargs)
    say("comparing the model with the shards, in transformers")
    found = ask(weights.compare, request, seconds=HOUR)
    made.lines.append(_same("transformers", found["model"], "the shards", found["shards"], rounding))
    made.lines += _end_token(folder, found["template"], found["stops"])
    if made.adapter:
        _keep_alone(adapter, folder)
    else:
        if unsafe := [path.name for path in folder.rglob("*") if path.suffix in UNSAFE]:
            raise ValueError(f"{folder}: found {unsafe[0]}, expected weights as safetensors alone")
        if vllm:
            say("comparing vLLM with transformers")
            served = ask(weights.of_vllm, {"model": str(folder)}, seconds=HOUR)
            made.lines.append(_same("vLLM", served, "transformers", found["model"], ROUNDED))


def _take_weights(new: Path, folder: Path) -> None:
    """Put the weights of `new` in the place of those in `folder`; the rest of `folder` stays."""
    shutil.rmtree(folder / ADAPTER)
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    for path in new.glob("*.safetensors*"):
        path.replace(folder / path.name)
    shutil.rmtree(new)


def _same(name: str, found: Sequence[float], other: str, expected: Sequence[float], most: float) -> str:
    """A line about two lists of log-probabilities. Raises ValueError where they differ by over `most`."""
    if len(found) != len(expected):
        raise ValueError(f"{name} has {len(found)} tokens of an answer, {other} {len(expected)}")
    mean = sum(abs(a - b) for a, b in zip(found, expected, strict=True)) / len(found)
    text = f"{name} and {other}: log-probabilities of {len(found)} tokens differ by {mean:.4f} on average"
    if not mean <= most:  # NaN, too
        raise ValueError(f"{text}, expected at most {most}; this is not the model that was trained")
    return text


def _name_layers(adapter: Path, base: str) -> None:
    """veRL names a layer by its last word, which layers of the vision tower may have, too."""
    from safetensors import safe_open

    with safe_open(adapter / "adapter_model.safetensors", framework="numpy") as file:
        layers = weights.adapted(file.keys())
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    if not config.get("lora_alpha"):
        raise ValueError(f"{adapter}: found no lora_alpha, expected lora_train_meta.json beside the shards")
    config |= {"target_modules": layers, "base_model_name_or_path": base or None}
    write_json(adapter / "adapter_config.json", config)


def _keep_alone(adapter: Path, folder: Path) -> None:
    """Leave of the folder what its adapter has."""
    for path in sorted(set(folder.iterdir()) - {adapter}):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    for path in sorted(adapter.iterdir()):
        path.rename(folder / path.name)
    adapter.rmdir()


def _end_token(folder: Path, end: int | None, stops: Sequence[int]) -> list[str]:
    """Let sampling stop where the chat template ends a turn (EasyR1 pull request 11007); a line about it."""
    if end is None:
        return []
    if end in stops:
        return [f"sampling stops at token {end}, which ends a turn of the chat template"]
    file = folder / "generation_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    write_json(file, {**config, "eos_token_id": [end, *stops]})
    before = f"at {stops} alone" if stops else "nowhere"
    return [f"generation_config.json: sampling stopped {before}; token {end}, which ends a turn, is added"]


def _as_the_users(folder: Path) -> None:
    """Permissions as any file of the user has them: safetensors are written for their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)
    for path in folder.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def _card(made: Exported, run: Path) -> str:
    files = _files(run)
    step = made.checkpoint.step
    seen = [found for found in _steps(run) if found.number == step and validated(found) is not None]
    return card(
        made.out.name,
        base=made.base,
        adapter=made.adapter,
        step=step,
        settings=_settings(run),
        versions=_versions(files.config.parent if files and files.config else run),
        validation=seen[-1] if seen else None,
        checks=made.lines,
    )


def _versions(run: Path) -> dict[str, str]:
    try:
        found = json.loads((run / "versions.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(name): str(version) for name, version in found.items()} if isinstance(found, dict) else {}


def next_commands(made: Exported, run: Path) -> list[str]:
    """What serves the model, and what evaluates it."""
    from tpru_verl.eval.engines.local import on_cpu

    settings = _settings(run)
    served = serve_command(made.out, adapter=made.adapter, base=made.base, settings=settings, cpu=on_cpu())
    files = _files(run)
    started_in = files.started_in if files else None
    return [served] if made.adapter else [served, eval_command(made.out, settings, started_in)]


def push(folder: Path, name: str, *, public: bool) -> str:
    """Put the folder on the Hub as the model `name`, and return its address.

    Raises RuntimeError in one line where the Hub refuses, as without a token (`hf auth login`).
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api = HfApi()
        address = api.create_repo(name, private=not public, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=name)
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise RuntimeError(
            f"{name}: the Hub refused: {line_of(error)}; log in with `hf auth login`; {folder} is complete"
        ) from error
    return str(address)


def _trained_from(checkpoint: Checkpoint) -> str:
    """The model that the run began with, by the note of `tpru train` beside its checkpoints."""
    notes = (noted(folder).get("model") for folder in checkpoint.actor.absolute().parents[:3])
    return next((str(model) for model in notes if model), "")
