"""95 % intervals by bootstrap over images: questions about one image are not independent."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, stdtrit

RESAMPLES = 10_000
DRAWN_AT_ONCE = 200_000  # clusters; small enough for the counts to stay in the processor's cache
Sample = tuple[ArrayLike, Sequence[str]]  # (n,) values, and the cluster of each


def interval95(values: ArrayLike, clusters: Sequence[str]) -> tuple[float, float]:
    """95 % interval of the mean of (n,) `values`, in their unit. For a paired difference, pass the
    differences question by question. See `intervals95`."""
    return intervals95([(values, clusters)])[0]


def intervals95(samples: Sequence[Sample], seed: int = 0) -> list[tuple[float, float]]:
    """One interval per sample, each a pure function of its sample and the seed: whole clusters are
    drawn with replacement (the cluster bootstrap; Cameron, Gelbach and Miller 2008), and of
    `RESAMPLES` means two percentiles are taken, those of `tail`. Samples with equally many clusters
    share the draws, which are most of the work.

    Where all clusters have one mean, the interval is that point; no bootstrap can see what it never
    drew. Raises ValueError for an empty sample or where values and clusters differ in number.
    """
    by_clusters: dict[int, list[tuple[int, NDArray[np.float64]]]] = defaultdict(list)
    for place, (values, clusters) in enumerate(samples):
        totals = cluster_totals(values, clusters)
        by_clusters[totals.shape[1]].append((place, totals))
    intervals = [(math.nan, math.nan)] * len(samples)
    for count, group in by_clusters.items():
        means = bootstrap_means(np.stack([totals for _, totals in group]), seed)
        lows, highs = np.quantile(means, [tail(count), 1.0 - tail(count)], axis=0)
        for (place, _), low, high in zip(group, lows, highs, strict=True):
            intervals[place] = float(low), float(high)
    return intervals


def tail(clusters: int) -> float:
    """The percentile that stands for 2.5 %, smaller for few clusters: plain percentile intervals
    are too narrow by the factor between Student's and the normal quantile and by sqrt((n − 1) / n)
    (the expanded percentile interval; Hesterberg 2015, "What teachers should know about the
    bootstrap")."""
    if clusters < 2:
        return 0.0
    return float(ndtr(math.sqrt(clusters / (clusters - 1)) * stdtrit(clusters - 1, 0.025)))


def cluster_totals(values: ArrayLike, clusters: Sequence[str]) -> NDArray[np.float64]:
    """(2, clusters): the sum of the values of each cluster, and how many they are."""
    numbers = np.asarray(values, dtype=np.float64)
    if not len(numbers) or len(numbers) != len(clusters):
        raise ValueError(f"{len(numbers)} values of {len(clusters)} questions have no interval")
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    return np.stack([np.bincount(index, weights=numbers), np.bincount(index).astype(np.float64)])


def bootstrap_means(totals: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """(RESAMPLES, samples): means over draws of whole clusters, from (samples, 2, clusters) sums
    and sizes."""
    samples, _, clusters = totals.shape
    columns = totals.reshape(2 * samples, clusters).T
    parts = []
    for counts in drawn_counts(clusters, seed):
        sums = (counts @ columns).reshape(len(counts), samples, 2)
        parts.append(sums[:, :, 0] / sums[:, :, 1])
    return np.concatenate(parts)


def drawn_counts(clusters: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """(rows, clusters), `RESAMPLES` rows in all: how often each cluster is in each draw. A matrix,
    so that one product with it serves any number of samples."""
    rng = np.random.default_rng(seed)
    rows = max(1, DRAWN_AT_ONCE // clusters)
    for start in range(0, RESAMPLES, rows):
        own = min(rows, RESAMPLES - start)
        drawn = rng.integers(clusters, size=(own, clusters)) + clusters * np.arange(own)[:, None]
        yield (
            np.bincount(drawn.ravel(), minlength=own * clusters)
            .reshape(own, clusters)
            .astype(np.float64)
        )
