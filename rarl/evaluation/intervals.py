"""The statistics of measurements: 95 % intervals by bootstrap over images, since questions about
one image are not independent, and comparisons of two models question by question."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, stdtrit
from scipy.stats import binom

from rarl.samples import Sample

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
        totals = cluster_totals(values, clusters)
        by_clusters[totals.shape[1]].append((place, totals))
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


def cluster_totals(values: ArrayLike, clusters: Sequence[str]) -> NDArray[np.float64]:
    """Returns the sum of each cluster's values, and how many they are: shape (2, clusters)."""
    numbers = np.asarray(values, dtype=np.float64)
    if not len(numbers) or len(numbers) != len(clusters):
        raise ValueError(f"{len(numbers)} values of {len(clusters)} questions have no interval")
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    return np.stack([np.bincount(index, weights=numbers), np.bincount(index).astype(np.float64)])


def bootstrap_means(totals: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Returns the means over draws of whole clusters, shape (RESAMPLES, columns), from sums and
    sizes of shape (columns, 2, clusters)."""
    columns, _, clusters = totals.shape
    flat = totals.reshape(2 * columns, clusters).T
    parts = []
    for counts in drawn_counts(clusters, seed):
        sums = (counts @ flat).reshape(len(counts), columns, 2)
        parts.append(sums[:, :, 0] / sums[:, :, 1])
    return np.concatenate(parts)


def drawn_counts(clusters: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Yields how often each cluster is in each draw, shape (rows, clusters), `RESAMPLES` rows in
    all. It is a matrix so that one product with it serves any number of columns."""
    rng = np.random.default_rng(seed)
    rows = max(1, DRAWN_AT_ONCE // clusters)
    for start in range(0, RESAMPLES, rows):
        own = min(rows, RESAMPLES - start)
        drawn = rng.integers(clusters, size=(own, clusters)) + clusters * np.arange(own)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=own * clusters)
        yield counts.reshape(own, clusters).astype(np.float64)


@dataclass(frozen=True)
class Changes:
    """What changes from one model to another: `values` pair by pair (after minus before), the image
    of each, and the sums of the changes by question."""

    values: list[float]
    images: list[str]
    sums: dict[Hashable, float]


@dataclass(frozen=True)
class Paired:
    """Two models on the same questions. `pairs` counts replies compared. `won`, `lost` and `tied`
    count questions: those that the second model answers right more often than the first, less
    often, equally often. `points` is the second's mean minus the first's over all pairs, in
    percentage points, with its 95 % interval over images. `p` is McNemar's, exact and two-sided,
    None if changes are not whole numbers; with several pairs of a question see `sign_flip_test`.

    The interval takes questions about one image as one. The test takes questions as independent, so
    that its p is too small if there are many questions about each image.
    """

    pairs: int
    won: int
    lost: int
    tied: int
    points: float
    ci95: tuple[float, float]
    p: float | None


def compare_pairs(
    runs: Sequence[tuple[Sequence[Sample], Sequence[Sample]]],
    grade: str = "correct",
    shared_images: bool = False,
) -> Paired:
    """Compares the pairs (before, after) of one seed or several by a grade; see `changes_between`.
    Raises ValueError if nothing can be compared."""
    return summarise_changes([changes_between(runs, grade, shared_images)])[0]


def changes_between(
    runs: Sequence[tuple[Sequence[Sample], Sequence[Sample]]], grade: str, shared_images: bool
) -> Changes:
    """Returns the changes of all pairs (before, after) of several seeds. Replies are paired by
    example id and number of the sample, in any order; pairs without the grade are left out.
    `shared_images` tells that the seeds were measured on the same test set: equal ids then mean the
    same image and the same question. Otherwise they mean nothing across seeds.

    With a shared test set an image is one cluster across all seeds, and a question is one
    observation of the test: the sum of its changes over the seeds, since answers of several seeds
    to one question are not independent (McNemar's test of all pairs would take them to be). The sum
    rather than its sign: with a base that all seeds share, the best of several trained answers is
    set against one, and the sign then tells of luck. Otherwise each seed's questions count for
    themselves. Neither p nor the interval says what other seeds would have given.

    Raises ValueError if a run's two sides differ, and if seeds that are said to share a test set do
    not have the same questions.
    """
    values: list[float] = []
    images: list[str] = []
    sums: dict[Hashable, float] = defaultdict(float)
    asked = set()
    for seed, (before, after) in enumerate(runs):
        first, second = by_question(before), by_question(after)
        if first.keys() != second.keys():
            alone = len(first.keys() ^ second.keys())
            raise ValueError(f"{alone} replies have no partner in the other evaluation")
        asked.add(frozenset((key[:2], one.example.image_id) for key, one in first.items()))
        for key, one in first.items():
            was, now = one.rewards[grade], second[key].rewards[grade]
            if was is None or now is None:
                continue
            image = one.example.image_id
            values.append(now - was)
            images.append(image if shared_images else f"{seed}/{image}")
            sums[key[:2] if shared_images else (seed, *key[:2])] += now - was
    if shared_images and len(asked) > 1:
        raise ValueError("the seeds were not measured on the same questions")
    return Changes(values, images, dict(sums))


def by_question(samples: Sequence[Sample]) -> dict[tuple[str, int, int], Sample]:
    """Returns the samples by example id, place among the questions of that id (data may repeat one:
    the n-th is compared with the n-th) and number of the sample."""
    found: dict[tuple[str, int, int], Sample] = {}
    times: Counter[tuple[str, int]] = Counter()
    for one in samples:
        found[one.example.id, times[one.example.id, one.number], one.number] = one
        times[one.example.id, one.number] += 1
    return found


def summarise_changes(found: Sequence[Changes]) -> list[Paired]:
    """Returns the comparison that each Changes comes to; their intervals share draws. Raises
    ValueError for one without values."""
    if any(not changes.values for changes in found):
        raise ValueError("no questions to compare")
    points = [[100.0 * value for value in changes.values] for changes in found]
    intervals = intervals95([(own, one.images) for own, one in zip(points, found, strict=True)])
    paired = []
    for own, changes, interval in zip(points, found, intervals, strict=True):
        sums = list(changes.sums.values())
        won, lost = sum(one > 0 for one in sums), sum(one < 0 for one in sums)
        whole = all(float(value).is_integer() for value in changes.values)
        p = sign_flip_test([round(one) for one in sums]) if whole else None
        mean, tied = math.fsum(own) / len(own), len(sums) - won - lost
        paired.append(Paired(len(own), won, lost, tied, mean, interval, p))
    return paired


def sign_flip_test(sums: Sequence[int]) -> float:
    """Returns the exact two-sided p-value of the sums of changes by question: the chance of a total
    at least as far from 0 if each sum were as likely its negative. It is McNemar's exact test if
    all are 1, 0 or -1, and 1 if all are 0.

    `taken[t]` is the chance that the sums that come out positive add up to t, of `total` at most.
    """
    sizes = Counter(abs(one) for one in sums if one)
    taken: NDArray[np.floating] = np.ones(1)
    for size, times in sizes.items():
        spread = np.zeros(size * times + 1)
        spread[::size] = binom.pmf(np.arange(times + 1), times, 0.5)
        taken = np.convolve(taken, spread)
    total = len(taken) - 1
    positive = sum(one for one in sums if one > 0)
    return min(1.0, 2.0 * float(taken[max(positive, total - positive) :].sum()))
