"""Whether GPUs, the host and the disk have room for a run, by the estimates of `memory`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tpru_verl import trainers
from tpru_verl.doctor import memory
from tpru_verl.doctor.check import FAIL, OK, WARN, Check
from tpru_verl.doctor.machine import Machine
from tpru_verl.launch.checks import row_count
from tpru_verl.launch.resume import total_steps
from tpru_verl.launch.settings import Settings
from tpru_verl.shapes import Shape, shape_of

GIB = 1024**3
RUN = Path("outputs") / "RUN"  # where `tpru train` would write: its name would be the recipe and the time
# Micro-batches that are suggested: of at most so many prompts, in at most this share of a GPU's memory.
MOST_PROMPTS, COMFORT = 4, 0.85


def known_shape(settings: Settings) -> Shape | None:
    """None also for a model whose config.json the line `model` reports."""
    try:
        return shape_of(settings.text("model"))
    except ValueError:
        return None


def memory_lines(settings: Settings, seen: Machine, longest: int, gpu_memory: float) -> Iterator[Check]:
    shape = known_shape(settings)
    if shape is None:
        fix = "give a folder with its config.json"
        yield Check("memory", WARN, f"not estimated: {settings.text('model')} is not known here", fix)
        return
    prompt = min(longest, settings.integer("prompt_length"))
    found = memory.estimate(settings, shape, prompt_tokens=prompt)
    if settings["device"] != "cpu":
        gpu = _Gpu.of(seen, gpu_memory)
        yield _gpu_memory(settings, gpu, found)
        yield from _micro_batch(settings, shape, gpu, prompt)
        yield _cache(settings, gpu, found)
    yield _host_memory(settings, found)
    yield _disk(settings, found)


class _Gpu(NamedTuple):
    """`said`: where its bytes come from, "" for a GPU of this machine."""

    bytes: int
    said: str

    @classmethod
    def of(cls, seen: Machine, told: float) -> _Gpu:
        sizes = [device["bytes"] for device in seen.probe["devices"]]
        if told:
            return cls(int(told * GIB), " (--gpu-memory)")
        return cls(min(sizes), "") if sizes else cls(80 * GIB, " (assumed)")

    @property
    def too_small(self) -> str:
        """The status of what does not fit: an assumed size is no reason to fail."""
        return WARN if "assumed" in self.said else FAIL


def _gpu_memory(settings: Settings, gpu: _Gpu, found: memory.Estimate) -> Check:
    rollout = found.rollout(gpu.bytes, _share(settings))
    adapters = (
        f", {found.trained / 1e6:.0f} million of them trained" if found.trained < found.parameters else ""
    )
    text = (
        f"estimated {found.update / GIB:.0f} GiB in the update ({found.states / GIB:.0f} states{adapters}, "
        f"{found.gathered / GIB:.0f} gathered weights, {found.activations / GIB:.0f} activations, "
        f"{found.logits / GIB:.0f} logits, {found.adam_step / GIB:.0f} AdamW's step, "
        f"{memory.RESERVE / GIB:.0f} allowed for the rest), {rollout / GIB:.0f} in the rollout, "
        f"of {gpu.bytes / GIB:.0f}{gpu.said}"
    )
    if found.update > gpu.bytes:
        return Check("GPU memory", gpu.too_small, text, _smaller_update(settings, gpu, found))
    if rollout > gpu.bytes:
        fix = f"lower {settings.key('gpu_memory')}, or {settings.key('optimizer_offload')}=true"
        return Check("GPU memory", gpu.too_small, text, fix)
    return Check("GPU memory", OK, text)


def _micro_batch(settings: Settings, shape: Shape, gpu: _Gpu, prompt: int) -> Iterator[Check]:
    """A micro-batch of less than a prompt's samples computes its images for each of them, and makes a GPU
    wait for its host (benchmarks/RESULTS.md, gpu). Says which one fits."""
    if settings["dynamic_batch"]:
        return
    samples, n = settings.integer("micro_batch"), settings.integer("n")
    update = settings.integer("mini_batch") * n // settings.world
    if settings.trainer != trainers.VERL or not 0 < samples < n or update % n:
        return
    fitting = [
        whole
        for whole in range(n, min(MOST_PROMPTS * n, update) + 1, n)
        if update % whole == 0
        and memory.estimate(settings, shape, prompt_tokens=prompt, micro_batch=whole).update
        < COMFORT * gpu.bytes
    ]
    if fitting:
        better = f"{settings.key('micro_batch')}={fitting[-1]}"
        text = f"{samples} samples, n={n} of a prompt; {better} fits by the estimate{gpu.said}: fewer waits"
        yield Check("micro-batch", OK, text)


def _smaller_update(settings: Settings, gpu: _Gpu, found: memory.Estimate) -> str:
    """What would help first: the optimizer's step, the micro-batch, or fewer states."""
    verl = settings.trainer == trainers.VERL
    beside = found.update - found.adam_step + found.gathered + found.activations + found.logits
    if verl and found.adam_step and beside <= gpu.bytes:
        return f"{settings.key('optimizer_options')}={{fused:true}}"
    if settings["dynamic_batch"]:
        longest = settings.integer("prompt_length") + settings.integer("response_length")
        fewer = settings.integer("micro_tokens") > longest
        parts = [f"{settings.key('micro_tokens')}={longest}"] if fewer else []
    else:
        parts = [f"{settings.key('micro_batch')}=1"] if settings.integer("micro_batch") > 1 else []
    if settings.shards < settings.world:
        parts.append(f"{settings.key('fsdp_size')}=-1")
    if verl and found.states + memory.RESERVE > gpu.bytes:
        parts += ["+tpru=lora"] if found.trained == found.parameters else []
        parts.append(f"{settings.key('offload_policy')}=true")
    return ", or ".join([*parts, "more GPUs"])


def _share(settings: Settings) -> float:
    return float(str(settings["gpu_memory"] or 0))


def _cache(settings: Settings, gpu: _Gpu, found: memory.Estimate) -> Check:
    need = settings.integer("prompt_length") + settings.integer("response_length")
    fit = found.sequences(gpu.bytes, _share(settings), need)
    text = f"estimated room for {max(0, fit)} sequences of {need} tokens, the longest, in vLLM's cache"
    if fit < 1:
        fix = f"raise {settings.key('gpu_memory')} or {settings.key('tensor_parallel')}"
        return Check("vLLM cache", gpu.too_small, text, fix)
    return Check("vLLM cache", OK, text)


def _host_memory(settings: Settings, found: memory.Estimate) -> Check:
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    text = f"estimated {found.host / GIB:.0f} of {have / GIB:.0f} GiB a node"
    if found.host_states:
        keys = ("offload_policy",) if settings["offload_policy"] else ("params_offload", "optimizer_offload")
        offloads = [name for name in keys if settings[name]]
        text += f", {found.host_states / GIB:.0f} of them by {' and '.join(map(settings.said, offloads))}"
    else:
        offloads = []
    if found.host <= have:
        return Check("host memory", OK, text)
    over = found.host - have
    ways = [f"lower {settings.key('batch')}"] if found.host_images > over else []
    if found.host_states > over:
        ways.append(f"{' '.join(f'{settings.key(name)}=false' for name in offloads)} if GPU memory allows")
    ways.append("more nodes" if settings.integer("nodes") > 1 else "a machine with more memory")
    return Check("host memory", WARN, text, f"{', or '.join(ways)}; estimated, so try")


def _kept(settings: Settings) -> int | None:
    """Checkpoints that lie on the disk at most; None where all are kept, and their number is not known."""
    every, keep = settings.integer("save_freq"), settings.integer("keep")
    if every <= 0:
        return 0 if settings.trainer == trainers.VERL else 1  # EasyR1 saves its last step in any case
    rows = None
    with suppress(OSError, RuntimeError, ValueError):  # of data that another line speaks of
        rows = row_count(settings)
    saved = -(-total_steps(settings, rows) // every)  # of the last step, too
    # The new one is written before the oldest goes.
    return min(filter(None, (saved, keep + 1 if keep > 0 else 0)), default=None)


def _disk(settings: Settings, found: memory.Estimate) -> Check:
    folder = Path(settings.text("checkpoints")).absolute()
    free = shutil.disk_usage(next(path for path in [folder, *folder.parents] if path.exists())).free
    ours = RUN.absolute() in folder.parents
    name = " (RUN: recipe and time, or what --out of `tpru train` names)" if ours else ""
    each, kept = f"{found.checkpoint / GIB:.1f} GiB at {folder}{name}", _kept(settings)
    if kept == 0:
        text = f"{free / GIB:.0f} GiB free, no checkpoint is written ({settings.said('save_freq')})"
        return Check("disk", OK, text)
    number = "all" if kept is None else kept
    text = f"{free / GIB:.0f} GiB free, {number} checkpoints of {each}"
    if kept is not None and free >= kept * found.checkpoint:
        return Check("disk", OK, text)
    ways = [f"{settings.key('checkpoints')}=FOLDER on a larger disk"]
    if free >= found.checkpoint:
        ways.insert(0, f"{settings.key('keep')}=1")
    if (
        (key := settings.key("save_lora_only"))
        and found.trained < found.parameters
        and not settings["save_lora_only"]
    ):
        ways.insert(0, f"+{key}=true")
    return Check("disk", WARN if free >= found.checkpoint else FAIL, text, ", or ".join(ways))
