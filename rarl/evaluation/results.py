"""The one table of results: means with intervals by model, data set and group, and the paired
differences of two models. The terminal, summary.json, tables.py and the report are renderings of
it."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rarl.evaluation.consistency import ABILITY, consistency
from rarl.evaluation.group_table import groups_in, groups_json, unit_of
from rarl.evaluation.groups import (
    GAP,
    GROUP_METRICS,
    TESTED,
    Contrast,
    adjust,
    contrast,
    grouping_columns,
    groups_of,
    with_tests,
)
from rarl.evaluation.lines import TableLine
from rarl.evaluation.measurements import in_groups, questions_of
from rarl.evaluation.metrics import JUDGE_SCALE, METRICS, UNBOUNDED, measure
from rarl.evaluation.paired import changes_between, summarise_changes
from rarl.evaluation.self_consistency import Sampled, self_consistency
from rarl.intervals import Clustered, Z, fraction_intervals95, intervals95
from rarl.samples import Sample

BySeed = Mapping[int, Sequence[Sample]]
GROUPS = ("all", "answer_type", "modality", "organ", ABILITY)
TABLE = ["model", "data", "by", "group", "metric", "n", "units", "mean", "low", "high", "seeds"]
TABLE += ["ranked", "rest", "p"]
IN_FORM = "accuracy_in_form"  # a difference's metric, see `differences`
Z_POWER = 0.841621  # the normal quantile of 80 %
FEWEST_QUESTIONS = 20  # under which nothing is called clear
WITH_IMAGE = "with image"  # a control's partner: the same model and prompt, with the image


def results(
    replies: Mapping[tuple[str, str], BySeed],
    by: Sequence[str] = GROUPS,
    compared: Sequence[str] = (),
) -> pd.DataFrame:
    """Returns one row for each mean: model, data, by, group, metric, n, units, mean, low, high,
    seeds, ranked, rest, p.

    `replies` holds samples by (model, data set) and seed. `by` and `compared` name text fields of
    Example, further columns of the user's own table, or ABILITY; "all" is the one group of
    everything. All metrics are given of "all", the accuracy alone of other groups, GROUP_METRICS of
    those that are `compared`. `n` counts replies and `units` the patients, or images where these
    are not known. `mean` is over all seeds' replies, in [0, 1] or the unit of the metric, with its
    95 % interval over units; `seeds` maps each seed to its own mean.

    Of groups that are `compared` there is a row more for each metric, whose group is GAP: the
    largest mean minus the smallest of the groups that are `ranked`, with the interval of
    `Contrast`. `rest` is how far a ranked group is above the others in a metric of TESTED, and `p`
    tells whether that is more than chance, by Holm over all groups of a model on a data set.
    """
    rows: list[dict[str, Any]] = []
    columns: list[Clustered] = []
    for (model, data), by_seed in replies.items():
        samples, seeds, units, measured = measured_of(by_seed)
        tested: dict[str, list[dict[str, Any]]] = {metric: [] for metric in TESTED}
        for name in dict.fromkeys([*by, *compared]):
            groups = pd.Series(groups_of(samples, name), dtype=object)
            for metric in metrics_of_groups(name, compared):
                known = measured[metric].dropna()
                start, key = len(rows), {"model": model, "data": data, "by": name, "metric": metric}
                for group, own in known.groupby(groups):
                    by_seed_here = own.groupby(seeds[own.index], sort=False)
                    means = {seed: mean_of(part) for seed, part in by_seed_here}
                    its = units[own.index].tolist()
                    counts = {"n": len(own), "units": len(set(its)), "mean": mean_of(own)}
                    rows.append(key | counts | {"group": group, "seeds": means})
                    columns.append((own, its))
                labels = groups[known.index].dropna()
                if name in compared and (found := contrast_of(known, units, labels, metric)):
                    for row in rows[start:]:
                        row["ranked"] = row["group"] in found.rest
                    if metric in tested:
                        tested[metric] += with_tests(rows[start:], found)
                    counts = {"n": len(labels), "units": len(set(units[labels.index]))}
                    ends = {"mean": found.gap, "low": found.low, "high": found.high}
                    rows.append(key | counts | ends | {"group": GAP, "seeds": {}})
        for family in tested.values():
            adjust(family)
    table = pd.DataFrame(rows, columns=TABLE).astype({"low": float, "high": float, "p": float})
    table["ranked"] = table["ranked"].eq(True)
    is_mean = (table["group"] != GAP).to_numpy()
    counted = table["metric"].isin(list(UNBOUNDED)).to_numpy()
    places = np.cumsum(is_mean) - 1  # of a row of means among the columns
    for chosen, intervals in ((counted, intervals95), (~counted, fraction_intervals95)):
        its = chosen & is_mean
        ends_of_all = intervals([columns[place] for place in places[its]])
        table.loc[its, ["low", "high"]] = np.array(ends_of_all).reshape(-1, 2)
    return table


def measured_of(
    by_seed: BySeed,
) -> tuple[list[Sample], NDArray[Any], NDArray[np.object_], pd.DataFrame]:
    """Returns the replies of all seeds, the seed and the unit (patient or image) of each, and a
    column of each metric, with a row for each reply."""
    samples = [one for own in by_seed.values() for one in own]
    seeds = np.array([seed for seed, own in by_seed.items() for _ in own])
    units = np.array([one.example.unit for one in samples], dtype=object)
    if not same_questions(by_seed):  # equal ids are then other images
        units = np.array([f"{seed}/{its}" for seed, its in zip(seeds, units, strict=True)])
    together = [fits for own in by_seed.values() for fits in consistency(own)]
    found = [measure(one) | fits for one, fits in zip(samples, together, strict=True)]
    return samples, seeds, units, pd.DataFrame(found, columns=list(METRICS))


def metrics_of_groups(name: str, compared: Sequence[str]) -> Sequence[str]:
    """Returns the metrics that the table has of the groups of a column."""
    if name == "all":
        return list(METRICS)
    if name in compared:
        return GROUP_METRICS
    return ["accuracy", "reasoning", "option_margin"] if name == ABILITY else ["accuracy"]


def contrast_of(
    known: pd.Series[float], units: NDArray[np.object_], labels: pd.Series[Any], metric: str
) -> Contrast | None:
    """Returns how the groups of a column lie apart in a metric."""
    values, its = known[labels.index], units[labels.index].tolist()
    return contrast(values, its, labels.tolist(), metric not in UNBOUNDED)


def mean_of(values: Iterable[float]) -> float:
    """Returns the mean, which rounding does not bring outside its interval."""
    known = list(values)
    return math.fsum(known) / len(known)


def same_questions(by_seed: BySeed) -> bool:
    """Tells whether all seeds measure on the same questions; otherwise each has drawn its own."""
    questions = [questions_of(samples) for samples in by_seed.values()]
    return all(one == questions[0] for one in questions)


def differences(
    pairs: Mapping[tuple[str, str, str], tuple[BySeed, BySeed]],
    metrics: Sequence[str] = ("accuracy", IN_FORM, "reasoning"),
) -> pd.DataFrame:
    """Returns one row for each difference: model, against, data, metric, n, questions, points, low,
    high, won, lost, p. `points` is how far `model` is above `against` in the `n` pairs of replies;
    see `Paired`. The metric IN_FORM is the accuracy in those pairs of which both replies have the
    form that was asked for: the part of a difference in accuracy that form cannot make.

    `pairs` maps (model, against, data set) to the replies of `against` and of `model`. Only those
    seeds are compared in which both answered the same questions; without any there is no row.
    """
    found = {}
    for key, (before, after) in pairs.items():
        runs = {
            seed: (before[seed], after[seed])
            for seed in before
            if seed in after and questions_of(before[seed]) == questions_of(after[seed])
        }
        shared = same_questions({seed: own for seed, (_, own) in runs.items()})
        for metric in metrics:
            grade = "correct" if metric in ("accuracy", IN_FORM) else metric
            changes = changes_between(list(runs.values()), grade, shared, metric == IN_FORM)
            if changes.values:
                found[*key, metric] = changes
    names = ["model", "against", "data", "metric", "n", "questions", "points", "low", "high"]
    rows = [
        (*key, one.pairs, one.questions, one.points, *one.ci95, one.won, one.lost, one.p)
        for key, one in zip(found, summarise_changes(list(found.values())), strict=True)
    ]
    return pd.DataFrame(rows, columns=[*names, "won", "lost", "p"])


def clear_sign(questions: int, low: float, high: float) -> int:
    """Returns 1 or -1 if the whole interval of a difference is above or below zero, and there are
    enough questions to call it clear; else 0."""
    return ((low > 0) - (high < 0)) * (questions >= FEWEST_QUESTIONS)


def detectable(low: float, high: float) -> float:
    """Returns the difference that a comparison with such a 95 % interval calls clear four times in
    five, in the interval's unit."""
    return (Z + Z_POWER) / Z * (high - low) / 2


def questions_needed(points: float, questions: int, low: float, high: float) -> int:
    """Returns about how many questions, about as many more images, would show a difference of so
    many points four times in five: the interval narrows with the root of their number."""
    return math.ceil(questions * (detectable(low, high) / points) ** 2)


def points_of_form(points: float, n: int, in_form: tuple[float, int] | None) -> float:
    """Returns how many of the points of a difference in accuracy over `n` pairs come from pairs of
    which a reply has not the form that was asked for; `in_form` are points and number of the
    others."""
    return points if in_form is None else points - in_form[0] * in_form[1] / n


def is_mostly_form(points: float, form: float) -> bool:
    """Tells whether more than half of a difference comes with the form."""
    return points != 0 and form / points > 0.5


def summary_of(
    base: Mapping[str, Sequence[Sample]],
    trained: Mapping[str, Sequence[Sample]],
    skipped_rows: Mapping[str, int],
    by: Sequence[str] = (),
    **others: Mapping[str, Mapping[str, Sequence[Sample]]],
) -> dict[str, Any]:
    """Returns what summary.json holds of the measurements before and after training, by data set.
    If several samples were drawn for a question, the first counts, and `self_consistency` tells of
    all. `others` are further replies to the same questions, by data set and by what they are:
    `floors`, and the base's to `other_prompts`. The model that was trained, or else the base, is
    compared with each. `by` names the columns whose groups are compared."""
    summary: dict[str, Any] = {"base": {}, "trained": {}, "difference": {}}
    for label, measured in (("base", base), ("trained", trained)):
        for name, samples in measured.items():
            summary[label][name] = summarise(first_samples(samples), by)
            if any(one.number for one in samples):
                summary[label][name]["self_consistency"] = summarise_samples(samples)
    for name, samples in trained.items():
        change = difference(first_samples(base[name]), first_samples(samples))
        summary["difference"][name] = change
    for kind, by_data in others.items():
        summary[kind] = {}
        for name, own in by_data.items():
            model = first_samples(trained.get(name) or base[name])
            summary[kind][name] = {
                what: summarise(replies) | {"model_minus_this": difference(replies, model)}
                for what, replies in own.items()
            }
    return summary | {"skipped_rows": dict(skipped_rows)}


def first_samples(samples: Sequence[Sample]) -> list[Sample]:
    """Returns the first reply to each question."""
    return [one for one in samples if not one.number]


def summarise(samples: Sequence[Sample], by: Sequence[str] = ()) -> dict[str, Any]:
    """Returns `n`, `accuracy` (exactly right, over all types of questions) and its `ci95` as
    fractions; the share of well-formed replies; the same by answer type, and by modality, organ and
    ability if there is more than one; `by_column`: the same by each further column of the user's
    own table that has at most MOST_GROUPS values; the reasoning score and the judge's, if there are
    any; `metrics`: `n`, `mean` and `ci95` by the names of METRICS, of those that apply to any
    reply; `groups`: what `groups_json` has of the groups by each column of `by`."""
    columns = grouping_columns(samples)
    whole = results({("", ""): {0: samples}}, (*GROUPS, *columns), by)
    table = [row for row in whole.to_dict("records") if row["group"] != GAP]
    overall = {row["metric"]: row for row in table if row["by"] == "all"}
    metrics = {name: in_summary(row) for name, row in overall.items() if name != "accuracy"}
    summary = in_summary(overall["accuracy"], "accuracy") | {
        "well_formed": metrics["format"]["mean"] if "format" in metrics else None,
        "reasoning": metrics.get("reasoning"),
        "metrics": metrics,
    }
    for name in (*GROUPS[1:], *columns):
        groups = [row for row in table if row["by"] == name and row["metric"] == "accuracy"]
        parts = {row["group"]: in_summary(row, "accuracy") for row in groups}
        if name == ABILITY:
            for row in table:
                if row["by"] == name and row["metric"] != "accuracy":
                    further = parts[row["group"]].setdefault("metrics", {})
                    further[row["metric"]] = in_summary(row)
        if name in columns:
            summary.setdefault("by_column", {})[name] = parts
        elif len(groups) > 1 or name == "answer_type":
            summary[f"by_{name.removeprefix('answer_')}"] = parts
    if by:
        unit = unit_of(samples)
        summary["groups"] = {name: groups_json(groups_in(whole, name, unit)) for name in by}
    statuses = [one.verdict.status for one in samples if one.verdict is not None]
    if statuses:
        known = overall.get("judge_correctness")
        summary["judge"] = {
            "correctness": known and in_summary(known, scale=JUDGE_SCALE),
            "explanation": metrics.get("judge_explanation"),
            "unparsable": statuses.count("unparsable"),
            "unreachable": statuses.count("unreachable"),
        }
    return summary


def in_summary(
    row: Mapping[Hashable, Any], mean: str = "mean", scale: float = 1.0
) -> dict[str, Any]:
    """Returns a row of the table as summary.json has it."""
    interval = [scale * row["low"], scale * row["high"]]
    return {"n": row["n"], mean: scale * row["mean"], "ci95": interval}


def difference(before: Sequence[Sample], after: Sequence[Sample]) -> dict[str, Any]:
    """Returns the paired difference in percentage points: of the accuracy, with the pairs `n`, the
    questions `won` and `lost`, the `p` of `Paired`, whether it is `clear`, and what of it is
    `form`; and of the reasoning score if both have it. Raises ValueError if the questions
    differ."""
    if questions_of(before) != questions_of(after):
        raise ValueError("the two evaluations are not of the same questions in the same order")
    rows = differences({("", "", ""): ({0: before}, {0: after})}).to_dict("records")
    points = {
        row["metric"]: {"n": row["n"], "points": row["points"], "ci95": [row["low"], row["high"]]}
        for row in rows
    }
    whole, in_form = rows[0], points.get(IN_FORM)
    known = (in_form["points"], in_form["n"]) if in_form else None
    form = points_of_form(whole["points"], whole["n"], known)
    return points["accuracy"] | {
        **{name: whole[name] for name in ("won", "lost", "p")},
        "clear": clear_sign(whole["questions"], whole["low"], whole["high"]) != 0,
        "form": {
            "points": form,
            "mostly": is_mostly_form(whole["points"], form),
            "both_well_formed": in_form,
        },
        "reasoning": points.get("reasoning"),
    }


def summarise_samples(samples: Sequence[Sample]) -> dict[str, Any]:
    """Returns the majority's accuracy, the agreement, and what abstaining gains."""
    found = self_consistency([Sampled.of(group) for group in in_groups(samples)])
    curve = found.abstention
    return {
        "n": found.n,
        "samples": len(samples) / found.n,
        "accuracy": found.accuracy,
        "agreement": found.agreement,
        "abstention": dict(zip(map(str, curve.coverage), curve.accuracy, strict=True)),
        "aurc": curve.aurc,
    }


def compare_models(
    models: Sequence[TableLine], data_sets: Sequence[str], reference: str, by: Sequence[str] = ()
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the results of all lines, and the differences in accuracy (also among well-formed
    replies) and in reasoning that the tables show: the lead of the line named `reference` over each
    other, and of each line over its own controls. `by` names the columns whose groups are
    compared."""
    replies: dict[tuple[str, str], BySeed] = {}
    pairs: dict[tuple[str, str, str], tuple[BySeed, BySeed]] = {}
    named = {one.name: one for one in models}
    for data in data_sets:
        for model in models:
            if own := model.replies.get(data):
                replies[model.name, data] = own
                if model.with_image.get(data):
                    pairs[WITH_IMAGE, model.name, data] = (own, model.with_image[data])
                best = named[reference].replies.get(data) if reference in named else None
                if best and model.name != reference:
                    pairs[reference, model.name, data] = (own, best)
    return results(replies, ("all", ABILITY), by), differences(pairs)
