"""Two models on the same questions: won, lost, tied, McNemar's exact test, and the difference with
its interval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from rarl.evaluation.intervals import interval95
from rarl.evaluation.prediction import Prediction

Answers = Sequence[Prediction]


@dataclass(frozen=True)
class Paired:
    """`pairs` are replies compared. `won`, `lost` and `tied` count questions: those that the second
    model answers right more often than the first, less often, equally often. `points` is the
    second's accuracy minus the first's over all pairs, in percentage points, with a 95 % interval
    over images. `p` is McNemar's, exact and two-sided; with several pairs of a question see
    `sign_flip_test`.

    The interval and the test do not assume the same: the interval takes questions about one image
    as one, the test takes questions as independent, so that with many questions about each image
    its p is too small.
    """

    pairs: int
    won: int
    lost: int
    tied: int
    points: float
    ci95: tuple[float, float]
    p: float


@dataclass(frozen=True)
class Change:
    """Of one pair: 1 where only the second is right, -1 where only the first is, else 0."""

    question: tuple[str | int, ...]
    image: str
    sign: int


def compare_pairs(before: Answers, after: Answers) -> Paired:
    """Pairs by example id, and by the number of the sample where a question has several; in any
    order. Raises ValueError when the two are not of the same questions."""
    return paired(changes(before, after))


def compare_pairs_pooled(runs: Sequence[tuple[Answers, Answers]], shared_images: bool) -> Paired:
    """All pairs (before, after) of several seeds. `shared_images` tells that the seeds were
    measured on the same test set: equal ids then mean the same image and the same question.
    Otherwise they mean nothing across seeds.

    With a shared test set an image is one cluster across all seeds, and a question is one
    observation of the test: the sum of its changes over the seeds, since answers of several seeds
    to one question are not independent (McNemar's test of all pairs would take them to be). The sum
    rather than its sign: with a base that all seeds share, the best of several trained answers is
    set against one, and the sign then tells of luck. Otherwise each seed's questions count for
    themselves. Neither p nor the interval says what other seeds would have given.

    Raises ValueError for no runs, where a run's two sides differ, or where seeds said to share a
    test set do not have the same questions.
    """
    by_seed = [changes(before, after) for before, after in runs]
    if shared_images:
        if len({frozenset((c.question, c.image) for c in own) for own in by_seed}) > 1:
            raise ValueError("the seeds were not measured on the same questions")
        return paired([change for own in by_seed for change in own])
    return paired(
        [
            Change((seed, *c.question), f"{seed}/{c.image}", c.sign)
            for seed, own in enumerate(by_seed)
            for c in own
        ]
    )


def changes(before: Answers, after: Answers) -> list[Change]:
    """Pair by pair, in the order of `before`. Raises ValueError when the two are not of the same
    questions."""
    first, second = by_question(before), by_question(after)
    if first.keys() != second.keys():
        raise ValueError(
            f"{len(first.keys() ^ second.keys())} replies have no partner in the other evaluation"
        )
    return [
        Change(key[:2], p.image_id, int(second[key].correct) - int(p.correct))
        for key, p in first.items()
    ]


def by_question(predictions: Answers) -> dict[tuple[str, int, int], Prediction]:
    """By example id, place among the questions of that id (data may repeat one: the n-th is
    compared with the n-th) and number of the sample."""
    found: dict[tuple[str, int, int], Prediction] = {}
    times: Counter[tuple[str, int]] = Counter()
    for p in predictions:
        found[p.example_id, times[p.example_id, p.sample], p.sample] = p
        times[p.example_id, p.sample] += 1
    return found


def paired(pairs: Sequence[Change]) -> Paired:
    if not pairs:
        raise ValueError("no questions to compare")
    sums: Counter[tuple[str | int, ...]] = Counter()
    for pair in pairs:
        sums[pair.question] += pair.sign
    won, lost = sum(s > 0 for s in sums.values()), sum(s < 0 for s in sums.values())
    values = [100.0 * pair.sign for pair in pairs]
    return Paired(
        pairs=len(pairs),
        won=won,
        lost=lost,
        tied=len(sums) - won - lost,
        points=sum(values) / len(values),
        ci95=interval95(values, [pair.image for pair in pairs]),
        p=sign_flip_test(list(sums.values())),
    )


def sign_flip_test(sums: Sequence[int]) -> float:
    """Exact two-sided p-value of the per-question sums of changes: the chance of a total at least
    as far from 0 if each sum were as likely its negative. Where all are 1, 0 or -1 it is McNemar's
    exact test. 1 where all are 0.

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
