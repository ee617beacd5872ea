"""95 % intervals of means by bootstrap over images, since questions about one image are not
independent."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, stdtrit

RESAMPLES = 10_000
DRAWN_AT_ONCE = 200_000  # clusters; small enough for the counts to stay in the processor's cache
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
    drew. Raises ValueError for an empty column, and if values and clusters differ in number.
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
