"""95 % intervals of means by bootstrap over images, since questions about one image are not
independent; by formulas that know of what was never drawn where the bootstrap has too little to
draw from: few images, or nearly all of them right, wrong or unchanged."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, stdtrit

RESAMPLES = 10_000
DRAWN_AT_ONCE = 200_000  # clusters; small enough for the counts to stay in the processor's cache
Z = 1.959964  # the normal quantile of 97.5 %
# Where fewer clusters than this differ from one end of the scale, percentiles of a bootstrap are
# too narrow, up to an interval of no width.
FEW_CLUSTERS = 10
FEWEST_VALUES = 10  # under which an interval is as wide as the scale, and is not shown
Clustered = tuple[ArrayLike, Sequence[str]]  # (n,) values, and the cluster of each


def interval95(values: ArrayLike, clusters: Sequence[str]) -> tuple[float, float]:
    """Returns the 95 % interval of the mean of (n,) `values`, in their unit; see `intervals95`."""
    return intervals95([(values, clusters)])[0]


def intervals95(columns: Sequence[Clustered], seed: int = 0) -> list[tuple[float, float]]:
    """Returns one interval for each column, a pure function of the column and the seed. Whole
    clusters are drawn with replacement (the cluster bootstrap; Cameron, Gelbach and Miller 2008),
    and two percentiles of `RESAMPLES` means are taken, those of `tail`. Columns with equally many
    clusters share the draws, which are most of the work.

    If all clusters have one mean, the interval is that point: no bootstrap can see what it never
    drew; `fraction_intervals95` and `change_intervals95` can. Raises ValueError for an empty
    column, and if values and clusters differ in number.
    """
    by_clusters: dict[int, list[tuple[int, NDArray[np.float64]]]] = defaultdict(list)
    for place, (values, clusters) in enumerate(columns):
        numbers = np.asarray(values, dtype=np.float64)
        if not len(numbers) or len(numbers) != len(clusters):
            raise ValueError(f"{len(numbers)} values of {len(clusters)} questions have no interval")
        _, index = np.unique(np.asarray(clusters), return_inverse=True)
        sizes = np.bincount(index).astype(np.float64)
        totals = np.stack([np.bincount(index, weights=numbers), sizes])
        by_clusters[len(sizes)].append((place, totals))
    intervals = [(math.nan, math.nan)] * len(columns)
    for count, group in by_clusters.items():
        means = bootstrap_means(np.stack([totals for _, totals in group]), seed)
        lows, highs = np.quantile(means, [tail(count), 1.0 - tail(count)], axis=0)
        for (place, _), low, high in zip(group, lows, highs, strict=True):
            intervals[place] = float(low), float(high)
    return intervals


def fraction_intervals95(columns: Sequence[Clustered]) -> list[tuple[float, float]]:
    """Returns the same for values in [0, 1], such as shares of right answers: Wilson's interval
    where fewer than FEW_CLUSTERS clusters hold anything above 0, or anything below 1."""
    intervals = []
    for (values, clusters), found in zip(columns, intervals95(columns), strict=True):
        totals = cluster_totals(values, clusters)
        intervals.append(wilson95(totals) if lies_at(totals, (0.0, 1.0)) else found)
    return intervals


def change_intervals95(columns: Sequence[Clustered]) -> list[tuple[float, float]]:
    """Returns the same for changes in [-1, 1] of values in [0, 1], pair by pair: Bonett and Price's
    interval where fewer than FEW_CLUSTERS clusters hold anything but 0, but 1, or but -1."""
    intervals = []
    for (values, clusters), found in zip(columns, intervals95(columns), strict=True):
        totals = cluster_totals(values, clusters)
        at_the_edge = lies_at(totals, (-1.0, 0.0, 1.0))
        intervals.append(bonett_price95(values, totals) if at_the_edge else found)
    return intervals


def cluster_totals(values: ArrayLike, clusters: Sequence[str]) -> NDArray[np.float64]:
    """Returns the sum and the size of each cluster, shape (2, clusters)."""
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    sizes = np.bincount(index).astype(np.float64)
    return np.stack([np.bincount(index, weights=np.asarray(values, dtype=np.float64)), sizes])


def lies_at(totals: NDArray[np.float64], ends: Sequence[float]) -> bool:
    """Tells whether fewer than FEW_CLUSTERS clusters have another mean than one of these."""
    means = totals[0] / totals[1]
    return any(int((np.abs(means - end) > 1e-9).sum()) < FEW_CLUSTERS for end in ends)


def effective_size(totals: NDArray[np.float64], variance_alone: float) -> float:
    """Returns how many independent values know as much as these clusters: the variance of a value
    alone over the mean's, with clusters taken as the unit. It is at most the number of values, and
    at least what it would be if the values of a cluster were all alike (Kish's n² / Σ size²), which
    also holds where nothing varies and nothing is thus known of how alike they are."""
    (sums, sizes), count = totals, totals[1].sum()
    alike = float(count**2 / (sizes**2).sum())
    if variance_alone < 1e-12 or len(sizes) < 2:
        return alike
    variance = float(((sums - sizes * sums.sum() / count) ** 2).sum()) / count**2
    return float(np.clip(variance_alone / max(variance, 1e-12), alike, count))


def wilson95(totals: NDArray[np.float64]) -> tuple[float, float]:
    """Returns Wilson's score interval (1927) of a proportion, with the effective sample size of its
    clusters. For other values in [0, 1] it is too wide, since theirs is a smaller variance."""
    mean = float(totals[0].sum() / totals[1].sum())
    n = effective_size(totals, mean * (1.0 - mean))
    centre = (mean + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(max(0.0, mean * (1 - mean) / n + Z**2 / (4 * n**2)))
    return max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half))


def bonett_price95(values: ArrayLike, totals: NDArray[np.float64]) -> tuple[float, float]:
    """Returns Bonett and Price's interval (2012) of a difference of paired proportions: Wald's with
    one more pair won and one more lost, and the effective number of pairs of the clusters."""
    changes = np.asarray(values, dtype=np.float64)
    won, lost = float(changes.clip(min=0).mean()), float((-changes).clip(min=0).mean())
    mean = won - lost
    n = effective_size(totals, won + lost - mean**2)
    more, less = (n * won + 1) / (n + 2), (n * lost + 1) / (n + 2)
    centre = more - less
    half = Z * math.sqrt((more + less - centre**2) / (n + 2))
    return max(-1.0, min(mean, centre - half)), min(1.0, max(mean, centre + half))


def tail(clusters: int) -> float:
    """Returns the percentile that stands for 2.5 %. It is smaller for few clusters, since plain
    percentile intervals are too narrow by the factor between Student's and the normal quantile and
    by sqrt((n − 1) / n) (the expanded percentile interval; Hesterberg 2015, "What teachers should
    know about the bootstrap")."""
    if clusters < 2:
        return 0.0
    return float(ndtr(math.sqrt(clusters / (clusters - 1)) * stdtrit(clusters - 1, 0.025)))


def bootstrap_means(totals: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Returns the means over draws of whole clusters, shape (RESAMPLES, columns), from the sum and
    the size of each cluster, shape (columns, 2, clusters). How often each cluster is drawn is a
    matrix, so that one product serves any number of columns."""
    columns, _, clusters = totals.shape
    flat = totals.reshape(2 * columns, clusters).T
    rng = np.random.default_rng(seed)
    rows = max(1, DRAWN_AT_ONCE // clusters)
    parts = []
    for start in range(0, RESAMPLES, rows):
        own = min(rows, RESAMPLES - start)
        drawn = rng.integers(clusters, size=(own, clusters)) + clusters * np.arange(own)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=own * clusters).reshape(own, clusters)
        sums = (counts.astype(np.float64) @ flat).reshape(own, columns, 2)
        parts.append(sums[:, :, 0] / sums[:, :, 1])
    return np.concatenate(parts)


def holm(p: Sequence[float]) -> list[float]:
    """Returns the p-values of a family of hypotheses so adjusted that the chance of any false
    rejection keeps to the level (Holm 1979)."""
    adjusted, reached = [0.0] * len(p), 0.0
    for done, place in enumerate(np.argsort(p, kind="stable").tolist()):
        reached = max(reached, min(1.0, (len(p) - done) * p[place]))
        adjusted[place] = reached
    return adjusted


def p_in_words(p: float) -> str:
    """Returns a p-value, of which nobody needs to know how far it is below 0.001."""
    return f"p {p:.3f}" if p >= 0.001 else "p < 0.001"
