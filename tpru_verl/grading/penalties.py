"""What length and repetition take from a score."""

from __future__ import annotations

_GRID = 64  # partial credit and penalties are multiples of 1/64: eight bits, exact in bfloat16


def penalty(
    response: str,
    *,
    max_length: int | None = None,
    buffer: int | None = None,
    length: int | None = None,
    ngram: int | None = None,
) -> float:
    """What to subtract from a score for length and repetition: a multiple of 1/64 in [0, 1].

    Both are off by default (0.0); together they add up to at most 1.

    - Length, with `max_length`: 0 up to `max_length - buffer`, then rising in a straight line to 1 at
      `max_length`, the soft overlong punishment of DAPO (arXiv 2503.14476). `buffer` is a
      fifth of `max_length` where it is not given, DAPO's own share (4,096 of 20,480). `length` is the
      response's in the unit of `max_length`, such as tokens; where it is not given, its characters count.
    - Repetition, with `ngram`: 1 - distinct / all n-grams of `ngram` words between white space, the
      "seq-rep-n" of Welleck et al. (arXiv 1908.04319). Text without white space counts as one word.

    Raises ValueError for a number that makes no sense.
    """
    if max_length is not None and max_length < 1:
        raise ValueError(f"max_length: found {max_length}, expected 1 or more")
    if ngram is not None and ngram < 1:
        raise ValueError(f"ngram: found {ngram}, expected 1 or more")
    total = 0.0
    if max_length is not None:
        total += _overlong(len(response) if length is None else length, max_length, buffer)
    if ngram is not None:
        total += _repetition(response.split(), ngram)
    return on_grid(min(1.0, total))


def _overlong(length: int, max_length: int, buffer: int | None) -> float:
    ramp = max_length // 5 if buffer is None else buffer
    if not 0 <= ramp <= max_length:
        raise ValueError(f"buffer: found {buffer}, expected 0 to max_length ({max_length})")
    over = length - (max_length - ramp)
    return float(over > 0) if ramp == 0 else min(1.0, max(0.0, over / ramp))


def _repetition(words: list[str], n: int) -> float:
    total = len(words) - n + 1
    if total < 1:
        return 0.0
    distinct = set(zip(*(words[i : i + total] for i in range(n)), strict=True))
    return 1 - len(distinct) / total


def on_grid(value: float) -> float:
    return round(value * _GRID) / _GRID
