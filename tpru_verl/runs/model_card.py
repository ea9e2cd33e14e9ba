"""What goes with an exported model: its card, and the commands that serve and evaluate it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tpru_verl import __version__
from tpru_verl.data.source.parts import is_local
from tpru_verl.launch.settings import value_at
from tpru_verl.prompts import TEMPLATES
from tpru_verl.runs.chat_template import KWARGS
from tpru_verl.runs.logs import Step, accuracies
from tpru_verl.terminal import percent

EASYR1_PROMPT = "data.format_prompt"  # EasyR1's key of the prompt template, a path
OUR_COLUMNS = {"problem": "problem", "answer": "answer", "image": "images"}  # read without an option
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # `MaxLoRARanks` of vLLM 0.24 and 0.28


def card(
    name: str,
    *,
    base: str,
    adapter: bool,
    step: int | None,
    settings: Mapping[str, Any],
    versions: Mapping[str, str],
    validation: Step | None,
    checks: Sequence[str],
) -> str:
    """README.md of a model: what a reader on the Hub needs. Folders of the machine that trained stay out."""
    hub = "" if is_local(base) else base
    head = ["---", "library_name: " + ("peft" if adapter else "transformers")]
    head += [f"base_model: {hub}"] if hub else []
    head += ["pipeline_tag: image-text-to-text", "tags:", "- tpru", "- grpo", "---", ""]
    kind = "An adapter (LoRA)" if adapter else "A model"
    body = [
        f"# {name}",
        "",
        f"{kind} for temporal and procedural questions about pictures, trained from "
        f"{hub or 'a model in a folder'} with GRPO, exported by tpru-verl {__version__}.",
        "",
        "## Training",
        "",
        *_table(_training(settings, step)),
        *_table({f"version of {package}": version for package, version in versions.items()}),
        "",
    ]
    if validation is not None:
        found = accuracies(validation).items()
        rows = {f"accuracy, {task}, step {validation.number}": percent(value) for task, value in found}
        body += ["## Validation during training", "", *_table(rows), ""]
    body += ["## Checks of the export", "", *[f"- {line}" for line in checks], ""]
    return "\n".join([*head, *body])


def _training(settings: Mapping[str, Any], step: int | None) -> dict[str, object]:
    keys = {
        "training rows": "data.train_files",
        "prompts a step": "data.train_batch_size",
        "samples a prompt": "actor_rollout_ref.rollout.n",
        "advantage": "algorithm.adv_estimator",
        "learning rate": "actor_rollout_ref.actor.optim.lr",
        "rank of the adapter": "actor_rollout_ref.model.lora_rank",
        "least pixels of a picture": "data.min_pixels",
        "most pixels of a picture": "data.max_pixels",
        "prompt template": "data.prompt_template",
        "arguments of the chat template": KWARGS,
        "seed": "data.seed",
    }
    values = {name: value_at(settings, key) for name, key in keys.items()}
    found = {name: value for name, value in values.items() if value not in (None, "", 0, {})}
    if "training rows" in found:
        rows = found["training rows"]
        names = [str(name) for name in (rows if isinstance(rows, list) else [rows])]
        found["training rows"] = ", ".join(Path(name).name if is_local(name) else name for name in names)
    return {"steps": step, **found} if step is not None else found


def _table(rows: Mapping[str, object]) -> list[str]:
    return (
        ["| | |", "| --- | --- |", *[f"| {name} | {value} |" for name, value in rows.items()], ""]
        if rows
        else []
    )


def serve_command(out: Path, *, adapter: bool, base: str, settings: Mapping[str, Any], cpu: bool) -> str:
    """What serves the model with vLLM, with pictures of the sizes that it was trained on.

    `out`: the folder of the model, or of the adapter. Raises OSError where the adapter is not there.
    """
    options: list[str] = []
    names = ("min_pixels", "max_pixels")  # without one, the model's processor has its own
    if bounds := {name: value for name in names if (value := value_at(settings, f"data.{name}"))}:
        options += ["--mm-processor-kwargs", json.dumps(bounds)]
    if images := value_at(settings, "actor_rollout_ref.rollout.limit_images"):
        options += ["--limit-mm-per-prompt", json.dumps({"image": images})]
    if length := value_at(settings, "actor_rollout_ref.rollout.max_model_len"):
        options += ["--max-model-len", str(length)]
    if adapter and (kwargs := value_at(settings, KWARGS)):  # a whole model has them in its template
        options += ["--default-chat-template-kwargs", json.dumps(kwargs)]
    model = base or "BASE" if adapter else str(out)
    if adapter:
        rank = str(_rank_for_vllm(out))
        options += ["--enable-lora", "--max-lora-rank", rank, "--lora-modules", f"{out.name}={out}"]
    else:
        options += ["--served-model-name", out.name]
    if not cpu:
        return shlex.join(["vllm", "serve", model, *options])
    from tpru_verl.launch.checks import VLLM_ON_CPU

    # `vllm serve` asks for a distribution called vllm, which the CPU build is not.
    set_ = [f"{name}={value}" for name, value in VLLM_ON_CPU.items()]
    module = ["python", "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    return " ".join([*set_, shlex.join([*module, "--dtype", "bfloat16", "--enforce-eager", *options])])


def eval_command(out: Path, settings: Mapping[str, Any], started_in: Path | None) -> str:
    """What evaluates the model on the run's validation rows, asked as in training.

    `started_in`: the folder that relative paths of the settings begin in; None for this one.
    """
    elsewhere = started_in if started_in and started_in.absolute() != Path.cwd() else None

    def here(name: str) -> str:
        return str(elsewhere / name) if elsewhere and is_local(name) else name

    files = value_at(settings, "data.val_files") or "FILE"
    options = []
    for name in files if isinstance(files, list) else [files]:
        options += ["--rows", here(str(name)) if name != "FILE" else "FILE"]
    if template := str(value_at(settings, "data.prompt_template") or value_at(settings, EASYR1_PROMPT) or ""):
        ours = template.removesuffix(".jinja").rpartition("prompts/")[2]
        options += ["--style", ours if ours in TEMPLATES else here(template)]
    problem = "data.prompt_key" if value_at(settings, EASYR1_PROMPT) is not None else "data.problem_key"
    keys = {"problem": problem, "answer": "data.answer_key", "image": "data.image_key"}
    for name, key in keys.items():
        if (column := value_at(settings, key)) and column != OUR_COLUMNS[name]:
            options += [f"--{name}-key", str(column)]
    numbers = {"min-pixels": "min_pixels", "max-pixels": "max_pixels", "max-tokens": "max_response_length"}
    for name, key in numbers.items():
        if value := value_at(settings, f"data.{key}"):
            options += [f"--{name}", str(value)]
    return shlex.join(["tpru", "eval", "run", str(out), *options])


def _rank_for_vllm(adapter: Path) -> int:
    """The least rank that vLLM takes which holds the adapter's, as veRL rounds it."""
    rank = int(json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["r"])
    return next((most for most in VLLM_RANKS if rank <= most), rank)
