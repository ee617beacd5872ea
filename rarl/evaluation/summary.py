"""Means with intervals per data set, and the paired difference of two models."""

from __future__ import annotations

from typing import Any

from rarl.evaluation.intervals import interval95
from rarl.evaluation.prediction import Prediction


def summarise(predictions: list[Prediction]) -> dict[str, Any]:
    """`n`, `accuracy` and its `ci95` as fractions, the share of well-formed replies, the same by answer type, and the
    reasoning score and the judge's, where there are any."""
    by_type = {}
    for kind in sorted({p.answer_type for p in predictions}):
        own = [p for p in predictions if p.answer_type == kind]
        by_type[kind] = accuracy_of(own)
    well_formed = sum(p.well_formed for p in predictions) / len(predictions)
    summary = accuracy_of(predictions) | {"well_formed": well_formed, "by_type": by_type}
    summary["reasoning"] = mean_of(predictions, [p.reasoning for p in predictions])
    if any(p.judge_status for p in predictions):
        summary["judge"] = {
            "correctness": mean_of(predictions, [p.judge_correctness for p in predictions]),
            "explanation": mean_of(predictions, [p.judge_explanation for p in predictions]),
            "unparsable": sum(p.judge_status == "unparsable" for p in predictions),
            "unreachable": sum(p.judge_status == "unreachable" for p in predictions),
        }
    return summary


def accuracy_of(predictions: list[Prediction]) -> dict[str, Any]:
    correct = [float(p.correct) for p in predictions]
    interval = interval95(correct, [p.image_id for p in predictions])
    return {"n": len(correct), "accuracy": sum(correct) / len(correct), "ci95": list(interval)}


def mean_of(predictions: list[Prediction], values: list[float | None]) -> dict[str, Any] | None:
    """Mean and interval over what could be scored; None where nothing could."""
    known = [(value, p.image_id) for value, p in zip(values, predictions, strict=True) if value is not None]
    if not known:
        return None
    numbers, images = zip(*known, strict=True)
    return {"n": len(known), "mean": sum(numbers) / len(numbers), "ci95": list(interval95(numbers, images))}


def difference(before: list[Prediction], after: list[Prediction]) -> dict[str, Any]:
    """Paired by question, in percentage points: of the accuracy, and of the reasoning score where both have it."""
    if [p.example_id for p in before] != [p.example_id for p in after]:
        raise ValueError("the two evaluations are not of the same questions in the same order")
    change: list[float | None] = [100.0 * (b.correct - a.correct) for a, b in zip(before, after, strict=True)]
    reasons = [
        None if a.reasoning is None or b.reasoning is None else 100.0 * (b.reasoning - a.reasoning)
        for a, b in zip(before, after, strict=True)
    ]
    return points(before, change) | {
        "reasoning": points(before, reasons) if any(r is not None for r in reasons) else None
    }


def points(predictions: list[Prediction], change: list[float | None]) -> dict[str, Any]:
    summary = mean_of(predictions, change)
    assert summary is not None
    return {"points": summary["mean"], "ci95": summary["ci95"]}
