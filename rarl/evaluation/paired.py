"""Comparisons of two models question by question."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from rarl.intervals import change_intervals95
from rarl.samples import Sample


@dataclass(frozen=True)
class Changes:
    """What changes from one model to another: `values` pair by pair (after minus before), the unit
    of each (patient or image), and the sums of the changes by question."""

    values: list[float]
    units: list[str]
    sums: dict[Hashable, float]


@dataclass(frozen=True)
class Paired:
    """Two models on the same questions. `pairs` counts replies compared. `won`, `lost` and `tied`
    count questions: those that the second model answers right more often than the first, less
    often, equally often. `points` is the second's mean minus the first's over all pairs, in
    percentage points, with its 95 % interval over patients or images. `p` is McNemar's, exact and
    two-sided, None if changes are not whole numbers; with several pairs of a question see
    `sign_flip_test`.

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

    @property
    def questions(self) -> int:
        """The questions compared; one that several seeds answered counts once."""
        return self.won + self.lost + self.tied


def changes_between(
    runs: Sequence[tuple[Sequence[Sample], Sequence[Sample]]],
    grade: str,
    shared_images: bool,
    only_well_formed: bool = False,
) -> Changes:
    """Returns the changes of all pairs (before, after) of several seeds. Replies are paired by
    example id and number of the sample, in any order; pairs without the grade are left out, and
    with `only_well_formed` those of which a reply has not the form that its prompt asks for.
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
    units: list[str] = []
    sums: dict[Hashable, float] = defaultdict(float)
    asked = set()
    for seed, (before, after) in enumerate(runs):
        first, second = by_question(before), by_question(after)
        if first.keys() != second.keys():
            alone = len(first.keys() ^ second.keys())
            raise ValueError(f"{alone} replies have no partner in the other evaluation")
        asked.add(frozenset((key[:2], one.example.image_id) for key, one in first.items()))
        for key, one in first.items():
            other = second[key]
            was, now = one.rewards[grade], other.rewards[grade]
            in_form = one.rewards["well_formed"] and other.rewards["well_formed"]
            if was is not None and now is not None and (in_form or not only_well_formed):
                unit = one.example.unit
                values.append(now - was)
                units.append(unit if shared_images else f"{seed}/{unit}")
                sums[key[:2] if shared_images else (seed, *key[:2])] += now - was
    if shared_images and len(asked) > 1:
        raise ValueError("the seeds were not measured on the same questions")
    return Changes(values, units, dict(sums))


def by_question(samples: Sequence[Sample]) -> dict[tuple[str, int, int], Sample]:
    """Returns the samples by example id, place among the questions of that id (data may repeat one:
    the n-th is compared with the n-th) and number of the sample."""
    found: dict[tuple[str, int, int], Sample] = {}
    times: Counter[tuple[str, int]] = Counter()
    for one in samples:
        key = one.example.id, one.number
        found[one.example.id, times[key], one.number] = one
        times[key] += 1
    return found


def summarise_changes(found: Sequence[Changes]) -> list[Paired]:
    """Returns the comparison that each Changes comes to; their intervals share draws. Raises
    ValueError for one without values."""
    if any(not changes.values for changes in found):
        raise ValueError("no questions to compare")
    intervals = change_intervals95([(changes.values, changes.units) for changes in found])
    paired = []
    for changes, (low, high) in zip(found, intervals, strict=True):
        sums = list(changes.sums.values())
        won, lost = sum(one > 0 for one in sums), sum(one < 0 for one in sums)
        whole = all(float(value).is_integer() for value in changes.values)
        p = sign_flip_test([round(one) for one in sums]) if whole else None
        pairs, tied = len(changes.values), len(sums) - won - lost
        points = 100.0 * math.fsum(changes.values) / pairs
        paired.append(Paired(pairs, won, lost, tied, points, (100.0 * low, 100.0 * high), p))
    return paired


def sign_flip_test(sums: Sequence[int]) -> float:
    """Returns the exact two-sided p-value of the sums of changes by question: the chance of a total
    at least as far from 0 if each sum were as likely its negative. It is McNemar's exact test if
    all are 1, 0 or -1, and 1 if all are 0."""
    # taken[t] is the chance that the sums that come out positive add up to t, of `total` at most
    taken: NDArray[np.floating] = np.ones(1)
    for size, times in Counter(abs(one) for one in sums if one).items():
        spread = np.zeros(size * times + 1)
        spread[::size] = binom.pmf(np.arange(times + 1), times, 0.5)
        taken = np.convolve(taken, spread)
    total = len(taken) - 1
    positive = sum(one for one in sums if one > 0)
    return min(1.0, 2.0 * float(taken[max(positive, total - positive) :].sum()))
