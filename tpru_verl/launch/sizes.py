"""Sizes that have to divide one another. Trainers look at them once Ray and the data are up."""

from __future__ import annotations

import math
from typing import NamedTuple

from tpru_verl import trainers
from tpru_verl.launch.settings import Settings


class Uneven(NamedTuple):
    """A setting that does not fit the others: its name in `Settings`, what was found, and `KEY=VALUE`."""

    name: str
    found: str
    fix: str


def check(settings: Settings) -> None:
    """Raise ValueError for batches or ranks of vLLM that come out uneven on the GPUs, each in a line."""
    uneven = [*uneven_batches(settings), *uneven_ranks(settings)]
    if uneven:
        lines = (f"{settings.said(name)} {found}; {fix} would do" for name, found, fix in uneven)
        raise ValueError("\n".join(lines))


def uneven_ranks(settings: Settings) -> list[Uneven]:
    """The rest of the GPUs would have no vLLM."""
    size, world = settings.integer("tensor_parallel") or 1, settings.world
    if divides(size, world):
        return []
    most = max(d for d in range(1, world + 1) if world % d == 0 and d <= max(1, size))
    fix = f"{settings.key('tensor_parallel')}={most}"
    return [Uneven("tensor_parallel", f"does not divide {world} GPUs", fix)]


def uneven_batches(settings: Settings) -> list[Uneven]:
    """Batches that both trainers refuse, or that a micro-batch does not divide."""
    n, world, parallel = max(1, settings.integer("n")), settings.world, settings.data_parallel
    batch, mini = settings.integer("batch"), settings.integer("mini_batch")
    no_multiple = f"x {n} samples: found no multiple of {world} GPUs"
    groups = f"x {n} samples: found no multiple of {parallel} {'groups of ' if parallel < world else ''}GPUs"
    rules = [
        (mini <= batch, "batch", f"found less than {settings.said('mini_batch')}, expected at least that"),
        (divides(parallel, mini * n), "mini_batch", groups),
    ]
    if not settings["dynamic_batch"]:  # else a micro-batch holds what fits into its tokens
        rules.append((divides(world, batch * n), "batch", no_multiple))
        unit = "GPU" if parallel == world else "group of GPUs"  # which share each sequence
        for name, whole in _SHARES.items():
            share = settings.integer(whole) * n // parallel
            even = divides(settings.integer(name), share)
            rules.append((even, name, f"does not divide {share} samples a {unit}"))
    if settings.trainer == trainers.EASYR1:
        rules.append((divides(mini, batch), "batch", f"found no multiple of {settings.said('mini_batch')}"))
    return [Uneven(name, found, _nearest(settings, name)) for even, name, found in rules if not even]


# Each micro-batch, and the batch that it is a part of.
_SHARES = {"micro_log_prob": "batch", "micro_batch": "mini_batch"}


def divides(divisor: int, number: int) -> bool:
    """Whether `number` is a multiple of `divisor`, and both are above 0."""
    return divisor > 0 and number > 0 and number % divisor == 0


def _nearest(settings: Settings, name: str) -> str:
    """`KEY=VALUE` of a size that would do."""
    n, world = max(1, settings.integer("n")), settings.world
    if name in _SHARES and (share := settings.integer(_SHARES[name]) * n // settings.data_parallel) > 0:
        most = max(d for d in range(1, share + 1) if share % d == 0 and d <= max(1, settings.integer(name)))
        return f"{settings.key(name)}={most}"
    unit = world if name == "batch" else settings.data_parallel
    step = unit // math.gcd(unit, n)
    if name == "batch":  # a whole number of updates: the actors of both trainers refuse a rest
        step = math.lcm(step, max(1, settings.integer("mini_batch")))
    return f"{settings.key(name)}={max(step, settings.integer(name) // step * step)}"
