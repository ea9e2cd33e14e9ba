"""How sure a share or a difference is, where rows of one source are not independent.

Below, `scores` are numbers in [0, 1], one a row, and `sources` name what each row was cut from; a row without
a name is a source of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf, sqrt

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Share:
    """A mean with its 95 % interval, over `n` rows of `clusters` sources; `error` is its standard error."""

    mean: float
    low: float
    high: float
    n: int
    clusters: int
    error: float


@dataclass(frozen=True)
class Difference:
    """B minus A on the same rows: 95 % interval, p over sources (`paired`), and McNemar's p.

    `gained` rows are right in B alone, `lost` ones in A alone. `holm` is `p` corrected for all the
    differences that it was tested with.
    """

    mean: float
    low: float
    high: float
    p: float
    mcnemar: float | None
    gained: int
    lost: int
    n: int
    clusters: int
    holm: float | None = None


def wilson(right: float, n: float, z: float = 1.959964) -> tuple[float, float]:
    """95 % score interval of a share (Wilson 1927): never outside [0, 1], sound near its ends.

    Raises ValueError unless 0 <= right <= n and n > 0; neither need be whole (`share`).
    """
    if not 0 <= right <= n or n <= 0:
        raise ValueError(f"right, n: found {right}, {n}, expected 0 <= right <= n and n > 0")
    share = right / n
    centre = share + z * z / (2 * n)
    spread = z * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)


def clusters_of(sources: Sequence[str]) -> NDArray[np.intp]:
    """Numbers 0, 1, ... of the sources, one a row; a row without a name has a number of its own."""
    names = [name or f"\0{i}" for i, name in enumerate(sources)]
    return np.unique(names, return_inverse=True)[1].astype(np.intp)


def standard_error(scores: Scores, clusters: NDArray[np.intp]) -> float:
    """Cluster-robust standard error of the mean, with G / (G - 1) for G clusters.

    sqrt(G / (G - 1) * sum over clusters of (sum of residuals)^2) / n: Liang and Zeger, Biometrika 73 (1986);
    for evaluations Miller, arXiv 2411.00640, eq. 4. With each row its own cluster it is the usual one.
    """
    n, groups = len(scores), int(clusters.max()) + 1
    sums = np.bincount(clusters, scores - scores.mean(), groups)
    return sqrt(groups / (groups - 1) * float(sums @ sums)) / n if groups > 1 else 0.0


def share(scores: Sequence[float] | Scores, sources: Sequence[str]) -> Share:
    """The mean with a Wilson interval over as many rows as the clustered error is worth.

    The effective number of rows is p (1 - p) / error^2, at most n (Korn and Graubard, Survey Methodology 24
    (1998)); where all scores are equal, which tells nothing about sources, the number of sources. Student's t
    with G - 1 degrees of freedom takes the normal's place. Raises ValueError for no rows.
    """
    from scipy import special  # not where `wilson` alone is wanted

    values = np.asarray(scores, float)
    if not len(values):
        raise ValueError("scores: found 0 rows, expected at least 1")
    clusters = clusters_of(sources)
    groups = int(clusters.max()) + 1
    mean, error = float(values.mean()), standard_error(values, clusters)
    spread = mean * (1 - mean)
    effective = min(len(values), spread / error**2) if error and spread else float(groups)
    z = float(special.stdtrit(groups - 1, 0.975)) if groups > 1 else float("inf")
    low, high = wilson(mean * effective, effective, z) if groups > 1 else (0.0, 1.0)
    return Share(mean, max(0.0, low), min(1.0, high), len(values), groups, error)


def mean_of(values: Sequence[float] | Scores, sources: Sequence[str]) -> Share:
    """The mean of numbers of any range, with Student's interval over the clusters.

    One source alone tells nothing of others: its interval is infinite. Raises ValueError for no values.
    """
    from scipy import special

    if not len(values):
        raise ValueError("values: found 0, expected at least 1")
    numbers, clusters = np.asarray(values, float), clusters_of(sources)
    groups, centre = int(clusters.max()) + 1, float(numbers.mean())
    error = standard_error(numbers, clusters)
    half = float(special.stdtrit(groups - 1, 0.975)) * error if groups > 1 else inf
    return Share(centre, centre - half, centre + half, len(numbers), groups, error)


def paired(
    a: Sequence[float] | Scores,
    b: Sequence[float] | Scores,
    sources: Sequence[str],
    *,
    samples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """B minus A: Student's interval over sources, a randomisation test over sources, and McNemar's test.

    `p` is two-sided (`swapped`): it needs six sources to fall below 0.05, however many rows these have.
    McNemar's is exact, and None where a score is neither 0 nor 1; it takes rows for independent. Raises
    ValueError for scores that are not about the same number of rows.
    """
    first, second = np.asarray(a, float), np.asarray(b, float)
    if first.shape != second.shape or not len(first):
        raise ValueError(f"rows: found {len(first)} and {len(second)}, expected the same, at least 1")
    change = second - first
    mean = mean_of(change, sources)
    gained, lost = int((change > 0).sum()), int((change < 0).sum())
    whole = bool(np.isin(np.concatenate([first, second]), (0, 1)).all())
    return Difference(
        mean.mean,
        max(-1.0, mean.low),
        min(1.0, mean.high),
        swapped(np.bincount(clusters_of(sources), change).astype(float), samples, seed),
        mcnemar(gained, lost) if whole else None,
        gained,
        lost,
        mean.n,
        mean.clusters,
    )


def swapped(sums: Scores, samples: int = 10_000, seed: int = 0) -> float:
    """Two-sided p of the sum of differences, one a source, if A and B were one: any sign is as likely.

    Fisher's randomisation test for pairs (The Design of Experiments, 1935): all signs of up to 12 sources
    that changed, of more `samples` random ones, plus one. Where each row is a source and scores are 0 or 1,
    it is McNemar's.
    """
    changed = np.abs(sums[np.abs(sums) > 1e-9])
    if len(changed) <= 12:
        totals = np.zeros(1)
        for size in changed:
            totals = np.concatenate([totals - size, totals + size])
        return float((np.abs(totals) > abs(sums.sum()) - 1e-9).mean())
    # Sources that changed as much are alike, so how many of them are positive says all.
    sizes, counts = np.unique(np.round(changed, 9), return_counts=True)
    positive = np.random.default_rng(seed).binomial(counts, 0.5, (samples, len(counts)))
    totals = (2 * positive - counts) @ sizes
    return (int((np.abs(totals) > abs(sums.sum()) - 1e-6).sum()) + 1) / (samples + 1)


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p of McNemar's test (Psychometrika 12 (1947)): 1 where no row changed."""
    from scipy import special

    return min(1.0, 2 * float(special.bdtr(min(gained, lost), gained + lost, 0.5)))


def holm(ps: Sequence[float]) -> list[float]:
    """p-values corrected for being several (Holm, Scand. J. Stat. 6 (1979))."""
    order = np.argsort(ps)
    corrected, least = np.empty(len(ps)), 0.0
    for rank, at in enumerate(order):
        corrected[at] = least = max(least, min(1.0, (len(ps) - rank) * ps[at]))
    return corrected.tolist()


Ints = NDArray[np.int64]


def design_effect(rows: Ints, right: Ints) -> float:
    """How many times more than binomial a count varies for coming in groups, at least 1.

    From (groups,) rows and (groups,) right ones; counts divided by it may be tested as if rows were
    independent (Rao and Scott 1992). One group alone tells nothing: 1.
    """
    groups, n = len(rows), int(rows.sum())
    if groups in (1, n):
        return 1.0
    share = right.sum() / n
    if share in (0, 1):  # no variance to compare: the most that groups of this size can do
        return float((rows**2).sum() / n)
    between = ((right - share * rows) ** 2).sum() * groups / (groups - 1)
    return max(1.0, float(between / (n * share * (1 - share) * n / (n - 1))))


@dataclass(frozen=True)
class Bin:
    """Answers whose probability lies in (low, high], or is 0 in the first bin: how many, and their means."""

    low: float
    high: float
    n: int
    probability: float
    right: float


def brier(chances: Sequence[tuple[float, bool]]) -> float:
    """Squared distance of the probabilities of all answers from the truth: 0 is best, 2 is worst.

    `chances` has (probability, whether it is right) of each answer that is possible: Brier, Monthly Weather
    Review 78 (1950), for one event of several classes.
    """
    return sum((chance - right) ** 2 for chance, right in chances)


def reliability(chances: Sequence[float], right: Sequence[bool], bins: int = 10) -> list[Bin]:
    """How often an answer was right, by the probability in [0, 1] that it was given; empty bins left out."""
    groups: dict[int, list[tuple[float, bool]]] = {}
    for chance, was in zip(chances, right, strict=True):
        groups.setdefault(max(0, ceil(chance * bins) - 1), []).append((chance, was))
    return [
        Bin(
            at / bins,
            (at + 1) / bins,
            len(group),
            sum(chance for chance, _ in group) / len(group),
            sum(was for _, was in group) / len(group),
        )
        for at, group in sorted(groups.items())
    ]


def expected_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error: mean distance of probability and accuracy of the bins, by their rows.

    Naeini, Cooper and Hauskrecht, AAAI 2015. Raises ValueError for no bins.
    """
    if not bins:
        raise ValueError("bins: found 0, expected at least 1")
    return sum(one.n * abs(one.probability - one.right) for one in bins) / sum(one.n for one in bins)
