"""What a paper claims, beside what a comparison measured: one row for each claim, with a verdict.
Which claims is data, in the comparison's file; here is only how one is answered."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rarl.evaluation.lines import BASE, SECONDS, PaperClaim, TableLine
from rarl.evaluation.measurements import questions_of
from rarl.evaluation.metrics import UNBOUNDED, measure
from rarl.evaluation.results import FEWEST_QUESTIONS, BySeed, same_questions
from rarl.intervals import bootstrap_means, change_intervals95, intervals95, tail
from rarl.samples import Sample

Values = dict[tuple[int, str], list[float | None]]  # (samples, metric) → its values


@dataclass(frozen=True)
class MeasuredLead:
    """How far one model is ahead of another, in the claim's unit, with its 95 % interval. `n`
    counts pairs of replies, or of runs; `questions` are those of the smallest data set."""

    value: float
    low: float
    high: float
    n: int
    questions: int


@dataclass(frozen=True)
class CheckedClaim:
    """A claim, what was measured (None: nothing yet, or nothing could be), and the verdict."""

    claim: PaperClaim
    measured: MeasuredLead | None
    verdict: str

    def cells(self) -> dict[str, str]:
        """Returns its row of the table, by the columns' titles."""
        claim, found = self.claim, self.measured
        unit = UNBOUNDED.get(str(claim.metric), "points")
        if claim.unit == "percent" or claim.metric == SECONDS:
            unit = "%"
        claimed = "" if claim.metric is None else "< 0" if claim.less else "> 0"
        if claim.claimed is not None:
            claimed = f"{claim.claimed:+g} {unit}"
        number, interval, n = "", "", ""
        if found is not None:
            number, n = f"{found.value:+.1f} {unit}", str(found.n)
            interval = f"{found.low:+.1f} to {found.high:+.1f}"
        what = f"{claim.model} − {claim.against}, {claim.metric}" if claim.metric else ""
        where = f" on {', '.join(claim.data)}" if claim.data else ""
        return {
            "sentence": str(claim.sentence),
            "says": claim.says,
            "claimed": claimed,
            "measured": number,
            "interval": interval,
            "n": n,
            "verdict": self.verdict,
            "by": what + where,
        }


def check_claims(
    claims: Sequence[PaperClaim],
    models: Sequence[TableLine],
    seconds: Mapping[str, Mapping[int, float]],
) -> list[CheckedClaim]:
    """Returns the claims in their order. The models that they name are titles of lines; `seconds`
    are those of training by title and seed."""
    usual = {one.name: one for one in models if one.kind == "trained" and one.is_usual}
    values: Values = {}
    return [check_claim(claim, usual, seconds, values) for claim in claims]


def check_claim(
    claim: PaperClaim,
    usual: Mapping[str, TableLine],
    seconds: Mapping[str, Mapping[int, float]],
    values: Values,
) -> CheckedClaim:
    """Returns one of them; `usual` are the trained models by their titles."""
    if claim.metric is None:
        return CheckedClaim(claim, None, "no number answers it")
    if claim.metric == SECONDS:
        timed = compare_seconds(claim, seconds)
        return CheckedClaim(claim, timed, verdict(claim, timed) if timed else "not measured")
    pairs = [pairs_of(*sides_of(claim, usual, one), claim.metric, values) for one in claim.data]
    missing = [data for data, own in zip(claim.data, pairs, strict=True) if not own.units]
    if missing:
        return CheckedClaim(claim, None, f"not measured on {', '.join(missing)}")
    measured = compare_pairs(claim, pairs)
    return CheckedClaim(claim, measured, verdict(claim, measured))


def sides_of(claim: PaperClaim, usual: Mapping[str, TableLine], data: str) -> tuple[BySeed, BySeed]:
    """Returns the replies of `against` and of `model` to a data set, as far as they are there."""
    model, other = usual.get(str(claim.model)), usual.get(str(claim.against))
    after = model.replies.get(data, {}) if model else {}
    if claim.against == BASE:
        return (model.before.get(data, {}) if model else {}), after
    return (other.replies.get(data, {}) if other else {}), after


@dataclass(frozen=True)
class Pairs:
    """Both models' values of a metric, pair by pair, shape (n,), and the unit of each pair."""

    before: NDArray[np.float64]
    after: NDArray[np.float64]
    units: list[str]
    questions: int


def pairs_of(before: BySeed, after: BySeed, metric: str, values: Values) -> Pairs:
    """Returns the pairs of all seeds in which both answered the same questions, of the replies that
    the metric applies to on both sides. `values` keeps what was measured already."""
    seeds = [
        seed
        for seed in before
        if seed in after and questions_of(before[seed]) == questions_of(after[seed])
    ]
    shared = same_questions({seed: after[seed] for seed in seeds}) if seeds else True
    rows, units, asked = [], [], set()
    for seed in seeds:
        own = [values_of(side[seed], metric, values) for side in (before, after)]
        for sample, was, now in zip(after[seed], *own, strict=True):
            if was is not None and now is not None:
                prefix = "" if shared else f"{seed}/"
                rows.append((was, now))
                units.append(prefix + sample.example.unit)
                asked.add((prefix, sample.example.id))
    table = np.array(rows, dtype=np.float64).reshape(-1, 2)
    return Pairs(table[:, 0], table[:, 1], units, len(asked))


def values_of(samples: Sequence[Sample], metric: str, values: Values) -> list[float | None]:
    key = id(samples), metric
    if key not in values:
        values[key] = [measure(one).get(metric) for one in samples]
    return values[key]


def compare_pairs(claim: PaperClaim, pairs: Sequence[Pairs]) -> MeasuredLead:
    """Returns the lead on average over the data sets, each of which counts alike.

    The interval of points is made of the data sets' own, which are independent (the method of
    variance estimates recovery; Zou and Donner 2008); that of per cent is a bootstrap of the
    quotient of the two averages, by whole images. What is no fraction is compared in its own unit
    in the place of points.
    """
    n = sum(len(own.units) for own in pairs)
    questions = min(own.questions for own in pairs)
    before, after = (
        float(np.mean([side.mean() for side in sides]))
        for sides in zip(*((own.before, own.after) for own in pairs), strict=True)
    )
    if claim.unit == "percent":
        low, high = quotient_interval(pairs)
        value = 100.0 * (after / before - 1.0) if before else math.nan
        return MeasuredLead(value, low, high, n, questions)
    changes = [own.after - own.before for own in pairs]
    known = [(change, own.units) for change, own in zip(changes, pairs, strict=True)]
    means = np.array([change.mean() for change in changes])
    counted = claim.metric in UNBOUNDED
    scale, intervals = (1.0, intervals95) if counted else (100.0, change_intervals95)
    lows, highs = np.array(intervals(known)).T
    below = math.sqrt(float(((means - lows) ** 2).sum())) / len(pairs)
    above = math.sqrt(float(((highs - means) ** 2).sum())) / len(pairs)
    value = after - before
    low, high = scale * (value - below), scale * (value + above)
    return MeasuredLead(scale * value, low, high, n, questions)


def quotient_interval(pairs: Sequence[Pairs]) -> tuple[float, float]:
    """Returns the 95 % interval of how many per cent the second model's average is above the
    first's."""
    drawn, clusters = [], []
    for place, own in enumerate(pairs):
        _, index = np.unique(np.asarray(own.units), return_inverse=True)
        sizes = np.bincount(index).astype(np.float64)
        totals = [
            np.stack([np.bincount(index, weights=side), sizes]) for side in (own.before, own.after)
        ]
        drawn.append(bootstrap_means(np.stack(totals), seed=place))
        clusters.append(len(sizes))
    before, after = np.mean(drawn, axis=0).T
    quotients = 100.0 * (after[before > 0] / before[before > 0] - 1.0)
    if not len(quotients):
        return math.nan, math.nan
    least = tail(min(clusters))
    low, high = np.quantile(quotients, [least, 1.0 - least])
    return float(low), float(high)


def compare_seconds(
    claim: PaperClaim, seconds: Mapping[str, Mapping[int, float]]
) -> MeasuredLead | None:
    """Returns by how many per cent training took longer, on average over the seeds that both have,
    with the least and the most of them in the place of an interval."""
    own, other = (seconds.get(str(name), {}) for name in (claim.model, claim.against))
    ratios = [100.0 * (own[seed] / other[seed] - 1.0) for seed in own if seed in other]
    if not ratios:
        return None
    mean = math.fsum(ratios) / len(ratios)
    return MeasuredLead(mean, min(ratios), max(ratios), len(ratios), FEWEST_QUESTIONS)


def verdict(claim: PaperClaim, found: MeasuredLead) -> str:
    """Returns what the interval says of the claim."""
    if math.isnan(found.value) or math.isnan(found.low):
        return "the other is never right: no per cent of it"
    if found.questions < FEWEST_QUESTIONS:
        return f"fewer than {FEWEST_QUESTIONS} questions"
    low, high = (-found.high, -found.low) if claim.less else (found.low, found.high)
    if high < 0:
        return "contradicted"
    if low <= 0:
        return "not shown"
    return "smaller" if high < abs(claim.claimed or 0.0) else "confirmed"
