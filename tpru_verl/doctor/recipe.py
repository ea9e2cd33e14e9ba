"""A run, checked without starting it: its keys, files, prompts, batches, reward and memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory

from tpru_verl import hub, trainers
from tpru_verl.data.source.parts import is_local
from tpru_verl.doctor import prompts
from tpru_verl.doctor.check import FAIL, OK, WARN, Check, judged
from tpru_verl.doctor.machine import Machine
from tpru_verl.doctor.packages import package_lines
from tpru_verl.doctor.room import RUN, known_shape, memory_lines
from tpru_verl.launch import checks as launch
from tpru_verl.launch import fitting, needs, sizes
from tpru_verl.launch import plan as plans
from tpru_verl.launch import reward_trial as preflight
from tpru_verl.launch.plan import Plan
from tpru_verl.launch.settings import KEYS, Settings
from tpru_verl.models import model_refusal
from tpru_verl.recipes import overlays
from tpru_verl.shapes import shape_of

GIB = 1024**3
# Keys under `data` that are ours, or that veRL reads without having a default for them.
_OURS = {"problem_key", "answer_key", "prompt_template", "on_invalid", "revision", "min_pixels", "max_pixels"}


def composed(recipe: str, overrides: Sequence[str]) -> Plan | Check:
    """The run that `tpru train RECIPE OVERRIDES` would start here, or why there is none."""
    try:
        return plans.compose(recipe, overrides, RUN.absolute())
    except (OSError, RuntimeError, ValueError) as error:
        fix = "as the message says; `tpru train RECIPE --dry-run` prints the whole command"
        return Check("recipe", FAIL, " ".join(str(error).split()), fix)


def recipe_lines(
    plan: Plan, recipe: str, overrides: Sequence[str], seen: Machine, gpu_memory: float = 0
) -> list[Check]:
    """Lines about the run of a plan, which was `composed` of this recipe and these overrides.

    `gpu_memory`: GiB of each GPU, for GPUs that are not here; 0 stands for those of this machine.
    """
    settings = plan.settings
    model = judged(
        "model", lambda: _model(settings), "give the folder of a Hugging Face model, or its Hub id"
    )
    found = prompts.Prompts() if model.status == FAIL else prompts.look(settings)
    # A model that is refused stops other checks, too: the first line says why, those of the others see there.
    refused = model.check if model.status == FAIL else "processor" if found.error else ""
    return [
        *_keys(plan, recipe, overrides),
        model,
        _not_looked_at("processor", refused) if refused == model.check else _processor(settings, found),
        *_bounds(found),
        *_data(plan, refused),
        *_unusable(settings, found),
        _lengths(settings, found, refused),
        *_images(settings, found),
        *batch_lines(settings),
        *_tensor_parallel(settings),
        *budget_lines(settings),
        judged("reward", lambda: _reward(settings), "correct the reward function, or choose another"),
        *_words(settings),
        *_gpus(settings, seen),
        *package_lines(plan),
        *memory_lines(settings, seen, found.longest, gpu_memory),
    ]


def _keys(plan: Plan, recipe: str, overrides: Sequence[str]) -> Iterator[Check]:
    """EasyR1 and Hydra refuse unknown keys, but `+key=value` lets Hydra take any."""
    added = plan.trainer.name == trainers.VERL and any(item.startswith("+") for item in overrides)
    unknown = _unknown_keys(plan, recipe, overlays.taken(overrides)) if added else {}
    for key, near in unknown.items():
        fix = f"meant {near}?" if near else "leave it out"
        yield Check("key", WARN, f"{key}: veRL has no such key, and nothing here reads it", fix)
    if not unknown:
        yield Check("recipe", OK, f"{recipe} for {plan.trainer}")


def _unknown_keys(plan: Plan, recipe: str, chosen: Sequence[str]) -> dict[str, str]:
    """Keys that neither veRL's defaults nor our recipes and overlays have, with the nearest that there is."""
    known = {key for name in chosen for key, _ in overlays.settings(name)} | {
        leaf
        for name in {recipe, "tpru_7b"}
        for leaf in _leaves(plans.compose(name, _ANY_DATA).settings.config)
    }
    known |= {key for key, _ in KEYS.values()}  # those that are read here
    found = _leaves(plan.settings.config) - known
    taken = {key for key in found if key.removeprefix("data.") not in _OURS and "kwargs" not in key}
    return {key: next(iter(get_close_matches(key, known, 1)), "") for key in sorted(taken)}


_ANY_DATA = ("data.train_files=x", "data.val_files=x", "actor_rollout_ref.model.path=x")


def _leaves(config: object, prefix: str = "") -> set[str]:
    if not isinstance(config, dict) or not config:
        return {prefix.removesuffix(".")}
    return {leaf for key, value in config.items() for leaf in _leaves(value, f"{prefix}{key}.")}


def _model(settings: Settings) -> str:
    path = settings.text("model")
    launch.model_is_there(settings.key("model"), path)
    refused = settings.trainer == trainers.VERL and model_refusal(path)  # which the line `processor` says
    shape = None if refused else shape_of(path)
    size = f", {shape.parameters / 1e9:.2g} billion parameters" if shape else ""
    return f"{path}{size}"


def _processor(settings: Settings, found: prompts.Prompts) -> Check:
    if error := found.error:
        away = bool(hub.missing(settings.text("model")))
        fix = (
            f"download it, and set {settings.key('model')}=FOLDER"
            if away
            else "give a vision-language model with processor and chat template"
        )
        return Check("processor", FAIL, f"{settings.said('model')}: {error}", fix)
    return Check("processor", OK, f"{found.processor}, with a chat template")


def _bounds(found: prompts.Prompts) -> Iterator[Check]:
    """Bounds of the images against those of the processor, which resizes once more."""
    for status, text in ((FAIL, found.bounds_error), (WARN, found.bounds_warning)):
        if text:
            said, _, fix = text.rpartition("; ")
            yield Check("pixels", status, said or text, fix if said else "correct the value")


def _data(plan: Plan, refused: str) -> Iterator[Check]:
    """`refused`: the check that refuses the model, "" for none."""
    settings = plan.settings

    def look() -> str:
        plan.check_data()
        return ", ".join(name for key in ("train_files", "val_files") for name in settings.files(key))

    line = judged("data and disk", look, "see what `tpru data validate` says of it")
    yield _not_looked_at(line.check, refused) if refused and _refuses_model(plan) else line
    if settings.files("train_files") == settings.files("val_files"):
        said = f"{settings.said('val_files')}, the same as {settings.key('train_files')}"
        yield Check("validation", WARN, said, "give held-out rows: this measures memory, not learning")


def _refuses_model(plan: Plan) -> bool:
    """Whether the checks of `tpru train` end at the model, before they come to the data."""
    try:
        launch.model_is_there(plan.settings.key("model"), plan.settings.text("model"))
        if plan.trainer.name == trainers.VERL:
            launch.sees_images(plan.settings)
    except (OSError, ValueError):
        return True
    return False


def _not_looked_at(check: str, refused: str) -> Check:
    return Check(check, WARN, "not looked at", f"see {refused}")


def _unusable(settings: Settings, found: prompts.Prompts) -> Iterator[Check]:
    """Rows that veRL's data set stops at, or leaves out where the recipe says so."""
    if found.unusable:
        skipped = settings["on_invalid"] == "skip" and found.rows > 0
        stops = settings.trainer == trainers.VERL and not skipped  # EasyR1 does not look at its rows
        fix = "they are left out" if skipped else "`tpru data prepare --drop-invalid` leaves them out"
        yield Check("rows", FAIL if stops else WARN, "; ".join(found.unusable.split("\n  ")), fix)


def _lengths(settings: Settings, found: prompts.Prompts, refused: str = "") -> Check:
    check, most = "prompt length", settings.integer("prompt_length")
    if refused:
        return _not_looked_at(check, refused)
    if error := found.lengths_error:
        return Check(check, WARN, f"not measured: {error}", "`tpru data validate` names broken rows")
    if not found.rows:
        return Check(
            check,
            WARN,
            f"not measured: {'no row is usable' if found.unusable else 'the data are on the Hub'}",
            "tpru data prepare SOURCE FOLDER, and train on that",
        )
    text = f"the longest of {found.rows} has {found.longest} tokens ({found.longest_row})"
    said = f"{settings.key('prompt_length')}={most}"
    if not found.too_long:
        return Check(check, OK, f"{text}, {said}")
    text += f", {found.too_long} are over {said}"
    if few := fitting.too_few(settings, found.fitting):
        return Check(check, FAIL, f"{text}: {few}", fitting.way_out(settings))
    if not settings["filter"]:
        return Check(check, FAIL, text, f"{settings.key('filter')}=true leaves them out, or raise the limit")
    return Check(check, WARN, text, "they are left out; raise the limit to keep them")


def _images(settings: Settings, found: prompts.Prompts) -> Iterator[Check]:
    limit, most = settings.integer("limit_images"), found.images
    if limit and most > limit:
        fix = f"{settings.key('limit_images')}={most}"
        yield Check("images a row", FAIL, f"up to {most}, {settings.said('limit_images')}", fix)


def batch_lines(settings: Settings) -> Iterator[Check]:
    """Sizes that have to divide, and several samples a prompt."""
    n = settings.integer("n")
    broken = sizes.uneven_batches(settings)
    if n <= 1:
        found = "found one sample a prompt, expected several: GRPO compares them"
        broken.append(sizes.Uneven("n", found, f"{settings.key('n')}=5"))
    for name, found, fix in broken:
        yield Check("batches", FAIL, f"{settings.said(name)} {found}", fix)
    if not broken:
        batch, mini = settings.integer("batch"), settings.integer("mini_batch")
        micro, log_prob = settings.integer("micro_batch"), settings.integer("micro_log_prob")
        dynamic = settings["dynamic_batch"]
        at_once = f"{settings.integer('micro_tokens')} tokens" if dynamic else f"{micro} and {log_prob}"
        gpus = f"{settings.world} GPUs"
        yield Check("batches", OK, f"{batch} prompts x {n}, {mini} an update, {at_once} at once, {gpus}")


def _tensor_parallel(settings: Settings) -> Iterator[Check]:
    size = settings.integer("tensor_parallel") or 1
    shape, said = known_shape(settings), settings.said("tensor_parallel")
    broken = [uneven.found for uneven in sizes.uneven_ranks(settings)]
    if shape and not sizes.divides(size, shape.heads):
        broken.append(f"does not divide {shape.heads} attention heads")
    if shape and not (sizes.divides(size, shape.kv_heads) or sizes.divides(shape.kv_heads, size)):
        broken.append(f"and {shape.kv_heads} key-value heads do not divide each other")
    for text in broken:
        fits = [
            d for d in range(1, size + 1) if settings.world % d == 0 and (not shape or shape.heads % d == 0)
        ]
        yield Check(
            "tensor parallel", FAIL, f"{said} {text}", f"{settings.key('tensor_parallel')}={fits[-1]}"
        )
    if not broken:
        heads = f", {shape.heads} heads" if shape else ""
        yield Check("tensor parallel", OK, f"{said}: {settings.world} GPUs{heads}")


def budget_lines(settings: Settings) -> Iterator[Check]:
    """vLLM's budgets against prompt and response."""
    need = settings.integer("prompt_length") + settings.integer("response_length")
    for name in ("max_model_len", "batched_tokens"):
        value = settings.integer(name)
        if not value and name == "max_model_len":
            continue  # the model's own, or in EasyR1 just what is needed
        if value < need and name == "batched_tokens" and settings.trainer == trainers.VERL:
            yield _chunks(settings, need)
        elif value < need:
            text = f"{settings.said(name)}, prompt and response have up to {need}"
            yield Check("token budget", FAIL, text, f"{settings.key(name)}={need}")
        else:
            yield Check("token budget", OK, f"{need} needed, {settings.said(name)}")


def _chunks(settings: Settings, need: int) -> Check:
    """vLLM takes a long prompt in parts. Told not to, veRL 0.9.1 raises the number itself."""
    said = f"{settings.said('batched_tokens')}, prompt and response have up to {need}"
    if settings["chunked_prefill"] is not False:
        return Check("token budget", OK, f"{said}: longer prompts are prefilled in parts")
    text = f"{said}: veRL raises it, because of {settings.said('chunked_prefill')}"
    return Check("token budget", WARN, text, f"{settings.key('batched_tokens')}={need}")


def _reward(settings: Settings) -> str:
    """On rows of the data; on made ones where the data are on the Hub, which a look does not fetch."""
    if any(is_local(name) for name in settings.files("train_files")):
        return str(replace(preflight.try_reward(settings), words=""))  # which has a line of its own
    from tpru_verl.demo.scenes import make_rows, write_parquet

    with TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.parquet"
        write_parquet(make_rows(preflight.ROWS, seed=0), rows)
        data = settings.config.get("data")
        assert isinstance(data, dict)
        made = Settings(settings.trainer, {**settings.config, "data": {**data, "train_files": str(rows)}})
        said = str(replace(preflight.try_reward(made), words="")).replace("rows of the data", "made rows")
    return f"{said} (the data are on the Hub; `tpru train` tries it on them)"


def _words(settings: Settings) -> Iterator[Check]:
    """Whether the tokenizer knows the words of the rows; other lines say where these cannot be read."""
    with suppress(OSError, RuntimeError, ValueError):
        local = all(is_local(name) for name in settings.files("train_files"))
        if local and (said := preflight.words_warning(settings)):
            yield Check("words", WARN, said, preflight.OTHER_MODEL)


def _gpus(settings: Settings, seen: Machine) -> Iterator[Check]:
    if settings["device"] == "cpu" or needs.joins_a_cluster(settings.config):
        return
    need, have = settings.integer("gpus"), len(seen.probe["devices"])
    if have < need:
        fix = f"{settings.key('gpus')}={have}" if have else "run on a machine with GPUs"
        yield Check("GPUs a node", FAIL, f"{settings.said('gpus')}, found {have}", fix)
    else:
        yield Check("GPUs a node", OK, f"{need} of {have}")
