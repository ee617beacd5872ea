"""Means with intervals per data set, and the paired difference of two models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rarl.evaluation.intervals import intervals95
from rarl.evaluation.metrics import METRICS
from rarl.evaluation.pairs import compare_pairs
from rarl.evaluation.prediction import Prediction

UNKNOWN = "unknown"  # the group of what has no modality or organ, beside those that have


@dataclass(frozen=True)
class Column:
    """Values and the image of each."""

    values: list[float]
    images: list[str]

    @property
    def mean(self) -> float:
        # fsum: not outside the interval by rounding
        return math.fsum(self.values) / len(self.values)


def summarise(predictions: list[Prediction]) -> dict[str, Any]:
    """`n`, `accuracy` and its `ci95` as fractions, over all types of questions (exactly right, see
    `Prediction`); the share of well-formed replies; `n`, `accuracy` and `ci95` by answer type, and
    by modality and by organ where there is more than one; the reasoning score and the judge's,
    where there are any; `metrics`: `n`, `mean` and `ci95` by the names of `METRICS`, of those that
    apply to any reply."""
    columns = (
        {("all",): column(predictions, [float(p.correct) for p in predictions])}
        | grouped(predictions, "by_type", [p.answer_type for p in predictions])
        | grouped(predictions, "by_modality", named([p.modality for p in predictions]))
        | grouped(predictions, "by_organ", named([p.organ for p in predictions]))
        | {
            ("metrics", m.name): column(predictions, [m.of(p) for p in predictions])
            for m in METRICS.values()
        }
        | {
            ("judge", "correctness"): column(
                predictions, [p.judge_correctness for p in predictions]
            )
        }
    )
    means = means_of({key: one for key, one in columns.items() if one.values})

    def part(name: str) -> dict[str, Any]:
        return {key[1]: value for key, value in means.items() if key[0] == name}

    metrics = part("metrics")
    summary = as_accuracy(means["all",]) | {
        "well_formed": metrics["format"]["mean"],
        "reasoning": metrics.get("reasoning"),
        "metrics": metrics,
    }
    for name in ("by_type", "by_modality", "by_organ"):
        groups = part(name)
        if len(groups) > 1 or name == "by_type":
            summary[name] = {group: as_accuracy(mean) for group, mean in groups.items()}
    if any(p.judge_status for p in predictions):
        summary["judge"] = {
            "correctness": part("judge").get("correctness"),
            "explanation": metrics.get("judge_explanation"),
            "unparsable": sum(p.judge_status == "unparsable" for p in predictions),
            "unreachable": sum(p.judge_status == "unreachable" for p in predictions),
        }
    return summary


def column(predictions: list[Prediction], values: Sequence[float | None]) -> Column:
    """Of what could be scored."""
    known = [
        (value, p.image_id)
        for value, p in zip(values, predictions, strict=True)
        if value is not None
    ]
    return Column([value for value, _ in known], [image for _, image in known])


def grouped(
    predictions: list[Prediction], name: str, groups: Sequence[str]
) -> dict[tuple[str, ...], Column]:
    """The accuracy's column of each group, under (name, group)."""
    parts: dict[str, list[Prediction]] = {group: [] for group in sorted(set(groups))}
    for prediction, group in zip(predictions, groups, strict=True):
        parts[group].append(prediction)
    return {
        (name, group): column(part, [float(p.correct) for p in part])
        for group, part in parts.items()
    }


def named(values: Sequence[str | None]) -> list[str]:
    """Groups by a property that not every prediction has. One group where only one value is known:
    whether the rest has another is not."""
    if len({value for value in values if value is not None}) < 2:
        return [UNKNOWN] * len(values)
    return [UNKNOWN if value is None else value for value in values]


def means_of(columns: Mapping[tuple[str, ...], Column]) -> dict[tuple[str, ...], dict[str, Any]]:
    """Mean and interval of every column. All at once, since intervals share their work."""
    intervals = intervals95([(one.values, one.images) for one in columns.values()])
    return {
        key: {"n": len(one.values), "mean": one.mean, "ci95": list(interval)}
        for (key, one), interval in zip(columns.items(), intervals, strict=True)
    }


def as_accuracy(mean: dict[str, Any]) -> dict[str, Any]:
    return {"n": mean["n"], "accuracy": mean["mean"], "ci95": mean["ci95"]}


def difference(before: list[Prediction], after: list[Prediction]) -> dict[str, Any]:
    """Paired by question, in percentage points: of the accuracy, with the questions `won` and
    `lost` and the `p` of `compare_pairs`, and of the reasoning score where both have it. Raises
    ValueError when the questions differ."""
    if [(p.example_id, p.sample) for p in before] != [(p.example_id, p.sample) for p in after]:
        raise ValueError("the two evaluations are not of the same questions in the same order")
    paired = compare_pairs(before, after)
    return {
        "points": paired.points,
        "ci95": list(paired.ci95),
        "won": paired.won,
        "lost": paired.lost,
        "p": paired.p,
        "reasoning": reasoning_points(before, after),
    }


def reasoning_points(before: list[Prediction], after: list[Prediction]) -> dict[str, Any] | None:
    change = [
        None if a.reasoning is None or b.reasoning is None else 100.0 * (b.reasoning - a.reasoning)
        for a, b in zip(before, after, strict=True)
    ]
    known = column(before, change)
    if not known.values:
        return None
    return {"points": known.mean, "ci95": means_of({(): known})[()]["ci95"]}
