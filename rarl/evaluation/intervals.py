"""95 % intervals by bootstrap over images: questions about one image are not independent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 10_000


def bootstrap_means(values: ArrayLike, clusters: Sequence[str], seed: int = 0) -> NDArray[np.float64]:
    """Means of (n,) `values` over `RESAMPLES` draws of whole clusters with replacement (the cluster bootstrap; Cameron,
    Gelbach and Miller 2008). A pure function of its arguments."""
    numbers = np.asarray(values, dtype=np.float64)
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.bincount(index, weights=numbers)
    sizes = np.bincount(index).astype(np.float64)
    rng = np.random.default_rng(seed)
    means = np.empty(RESAMPLES)
    for start in range(0, RESAMPLES, 1000):  # in parts, so that many clusters do not need much memory
        drawn = rng.integers(len(sums), size=(1000, len(sums)))
        means[start : start + 1000] = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    return means


def interval95(values: ArrayLike, clusters: Sequence[str]) -> tuple[float, float]:
    """Percentile interval of the mean. For a paired difference, pass the differences question by question."""
    low, high = np.percentile(bootstrap_means(values, clusters), [2.5, 97.5])
    return float(low), float(high)
