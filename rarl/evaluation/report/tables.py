"""The comparison in numbers: means with 95 % intervals by model and data set, and differences
paired by question."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

from rarl.evaluation.intervals import intervals95
from rarl.evaluation.prediction import Prediction
from rarl.evaluation.report.gather import Model, Report
from rarl.evaluation.seeds import asked, images_of

BySeed = dict[int, list[Prediction]]
Value = Callable[[Prediction], float | None]
Sample = list[tuple[float, str]]  # values, each with the image that it is about
Key = TypeVar("Key")


@dataclass(frozen=True)
class Measure:
    """A mean over `n` questions in per cent or in points, with its 95 % interval."""

    n: int
    mean: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """Of a difference: 1 or -1 where the whole interval is on one side of zero, else 0."""
        return (self.low > 0) - (self.high < 0)


@dataclass(frozen=True)
class Row:
    """One model on one data set. `lead` is the difference of the best model to this one."""

    model: str
    is_base: bool
    accuracy: Measure
    by_seed: list[tuple[int, float]]
    by_type: dict[str, Measure]
    reasoning: Measure | None
    judge: Measure | None
    change: Measure | None
    reasoning_change: Measure | None
    lead: Measure | None

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(seed for seed, _ in self.by_seed)


@dataclass(frozen=True)
class Pair:
    first: str
    second: str
    accuracy: Measure


@dataclass(frozen=True)
class Table:
    """One data set: a row for each model, and the difference of every two trained ones."""

    data_set: str
    best: str
    rows: list[Row]
    pairs: list[Pair]

    def row(self, model: str) -> Row | None:
        return next((row for row in self.rows if row.model == model), None)


def correct(prediction: Prediction) -> float:
    return 100.0 * prediction.correct


def reasoning(prediction: Prediction) -> float | None:
    return None if prediction.reasoning is None else 100.0 * prediction.reasoning


def judged(prediction: Prediction) -> float | None:
    """Correctness as the judge sees it, of 3 as of 100."""
    return (
        None if prediction.judge_correctness is None else 100.0 * prediction.judge_correctness / 3.0
    )


def make_tables(report: Report) -> list[Table]:
    return [make_table(report, data_set) for data_set in report.data_sets]


def make_table(report: Report, data_set: str) -> Table:
    measured = [model for model in report.models if data_set in model.replies]
    trained = [model for model in measured if not model.is_base]
    leads = {
        (first.name, second.name): differences(
            second.replies[data_set], first.replies[data_set], correct
        )
        for first, second in combinations(trained, 2)
    }
    pairs = [Pair(*names, lead) for names, lead in measure(leads).items() if lead]
    return Table(
        data_set, report.best.name, [make_row(report, data_set, model) for model in measured], pairs
    )


def make_row(report: Report, data_set: str, model: Model) -> Row:
    replies, before = model.replies[data_set], model.before.get(data_set, {})
    kinds = sorted({p.answer_type for one in replies.values() for p in one})
    is_other = not model.is_base and model is not report.best
    best = report.best.replies.get(data_set, {}) if is_other else {}
    known = measure(
        {
            "accuracy": values_of(replies, correct),
            "reasoning": values_of(replies, reasoning),
            "judge": values_of(replies, judged),
            "change": differences(before, replies, correct),
            "reasoning change": differences(before, replies, reasoning),
            "lead": differences(replies, best, correct),
        }
    )
    by_type = measure(
        {kind: values_of(replies, of_type(kind)) for kind in kinds} if len(kinds) > 1 else {}
    )
    assert known["accuracy"] is not None
    return Row(
        model=model.name,
        is_base=model.is_base,
        accuracy=known["accuracy"],
        by_seed=[
            (seed, sum(map(correct, one)) / len(one)) for seed, one in sorted(replies.items())
        ],
        by_type={kind: value for kind, value in by_type.items() if value},
        reasoning=known["reasoning"],
        judge=known["judge"],
        change=known["change"],
        reasoning_change=known["reasoning change"],
        lead=known["lead"],
    )


def of_type(kind: str) -> Value:
    return lambda p: correct(p) if p.answer_type == kind else None


def values_of(replies: BySeed, value: Value) -> Sample:
    """Of all seeds' questions that have the value."""
    everything = [p for _, one in sorted(replies.items()) for p in one]
    known = zip(map(value, everything), images_of(dict(sorted(replies.items()))), strict=True)
    return [(number, image) for number, image in known if number is not None]


def differences(before: BySeed, after: BySeed, value: Value) -> Sample:
    """Paired by question, over the seeds in which both answered the same questions."""
    seeds = [
        seed
        for seed in sorted(set(before) & set(after))
        if asked(before[seed]) == asked(after[seed])
    ]
    old, new = ({seed: side[seed] for seed in seeds} for side in (before, after))
    known = []
    pairs = zip(*([p for one in side.values() for p in one] for side in (old, new)), strict=True)
    for (a, b), image in zip(pairs, images_of(new), strict=True):
        was, now = value(a), value(b)
        if was is not None and now is not None:
            known.append((now - was, image))
    return known


def measure(samples: Mapping[Key, Sample]) -> dict[Key, Measure | None]:
    """None for an empty sample. All at once, since their intervals share draws."""
    known = {key: sample for key, sample in samples.items() if sample}
    columns = {key: tuple(zip(*sample, strict=True)) for key, sample in known.items()}
    intervals = intervals95([(numbers, images) for numbers, images in columns.values()])
    measures: dict[Key, Measure | None] = dict.fromkeys(samples)
    for (key, (numbers, _)), (low, high) in zip(columns.items(), intervals, strict=True):
        measures[key] = Measure(len(numbers), sum(numbers) / len(numbers), low, high)
    return measures
