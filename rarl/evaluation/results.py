"""The one table of results: means with intervals by model, data set and group, and the paired
differences of two models. The terminal, summary.json, results.md, .csv and .tex and the report are
renderings of it."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rarl.evaluation.measurements import Measurement, in_groups, questions_of, read_finished
from rarl.evaluation.metrics import JUDGE_SCALE, METRICS, WORDS, measure
from rarl.evaluation.paired import changes_between, summarise_changes
from rarl.evaluation.self_consistency import Sampled, self_consistency
from rarl.files import write_text
from rarl.intervals import intervals95
from rarl.samples import Sample

BySeed = Mapping[int, Sequence[Sample]]
GROUPS = ("all", "answer_type", "modality", "organ")
UNKNOWN = "unknown"  # the group of what has no modality or organ, beside those that have
MOST_GROUPS = 12  # of a further column, such as wards; more are no groups, such as ages
COLUMNS: dict[str, str] = WORDS["columns"]  # a comparison's metrics, with their titles there


def results(replies: Mapping[tuple[str, str], BySeed], by: Sequence[str] = GROUPS) -> pd.DataFrame:
    """Returns one row for each mean: model, data, by, group, metric, n, mean, low, high, seeds.

    `replies` holds samples by (model, data set) and seed. `by` names text fields of Example, or
    further columns of the user's own table; "all" is the one group of everything. All metrics are
    given of "all", the accuracy alone of other groups. `mean` is over all seeds' replies, in [0, 1]
    or tokens, with its 95 % interval over images; `seeds` maps each seed to its own mean.
    """
    rows, columns = [], []
    for (model, data), by_seed in replies.items():
        samples = [one for own in by_seed.values() for one in own]
        seeds = np.array([seed for seed, own in by_seed.items() for _ in own])
        units = np.array([one.example.image_id for one in samples], dtype=object)
        if not same_questions(by_seed):  # equal ids are then other images
            units = np.array([f"{seed}/{its}" for seed, its in zip(seeds, units, strict=True)])
        measured = pd.DataFrame([measure(one) for one in samples], columns=list(METRICS))
        for name in by:
            groups = pd.Series(groups_of(samples, name), dtype=object)
            for metric in METRICS if name == "all" else ["accuracy"]:
                for group, known in measured[metric].dropna().groupby(groups):
                    by_seed_here = known.groupby(seeds[known.index], sort=False)
                    own = {seed: mean_of(part) for seed, part in by_seed_here}
                    key = (model, data, name, group, metric)
                    rows.append((*key, len(known), mean_of(known), own))
                    columns.append((known, units[known.index].tolist()))
    names = ["model", "data", "by", "group", "metric", "n", "mean", "seeds", "low", "high"]
    whole = [(*row, *interval) for row, interval in zip(rows, intervals95(columns), strict=True)]
    return pd.DataFrame(whole, columns=names)


def mean_of(values: Iterable[float]) -> float:
    """Returns the mean, which rounding does not bring outside its interval."""
    known = list(values)
    return math.fsum(known) / len(known)


def groups_of(samples: Sequence[Sample], name: str) -> list[str | None]:
    """Returns the group that each sample belongs to. It is None for all if only some values are
    known, and only one of them: whether the rest has another is not."""
    if name == "all":
        return ["all"] * len(samples)
    examples = [one.example for one in samples]
    values = [getattr(one, name, None) or one.extra.get(name) for one in examples]
    if None in values and len(set(values)) < 3:
        return [None] * len(values)
    return [UNKNOWN if value is None else str(value) for value in values]


def grouping_columns(samples: Sequence[Sample]) -> list[str]:
    """Returns the further columns of the user's own table that part the questions into groups."""
    values: dict[str, set[str]] = {}
    for sample in samples:
        for name, value in sample.example.extra.items():
            if value is not None and not hasattr(sample.example, name) and name != "all":
                values.setdefault(name, set()).add(value)
    return [name for name, known in values.items() if 2 <= len(known) <= MOST_GROUPS]


def same_questions(by_seed: BySeed) -> bool:
    """Tells whether all seeds measure on the same questions; otherwise each has drawn its own."""
    questions = [questions_of(samples) for samples in by_seed.values()]
    return all(one == questions[0] for one in questions)


def differences(
    pairs: Mapping[tuple[str, str, str], tuple[BySeed, BySeed]],
    metrics: Sequence[str] = ("accuracy", "reasoning"),
) -> pd.DataFrame:
    """Returns one row for each difference: model, against, data, metric, n, points, low, high, won,
    lost, p. `points` is how far `model` is above `against`; see `Paired`.

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
            grade = "correct" if metric == "accuracy" else metric
            changes = changes_between(list(runs.values()), grade, shared)
            if changes.values:
                found[*key, metric] = changes
    names = ["model", "against", "data", "metric", "n", "points", "low", "high", "won", "lost", "p"]
    rows = [
        (*key, one.pairs, one.points, *one.ci95, one.won, one.lost, one.p)
        for key, one in zip(found, summarise_changes(list(found.values())), strict=True)
    ]
    return pd.DataFrame(rows, columns=names)


def summary_of(
    base: Mapping[str, Sequence[Sample]],
    trained: Mapping[str, Sequence[Sample]],
    skipped_rows: Mapping[str, int],
) -> dict[str, Any]:
    """Returns what summary.json holds of the measurements before and after training, by data set.
    If several samples were drawn for a question, the first counts, and `self_consistency` tells of
    all."""
    summary: dict[str, Any] = {"base": {}, "trained": {}, "difference": {}}
    for label, measured in (("base", base), ("trained", trained)):
        for name, samples in measured.items():
            summary[label][name] = summarise(first_samples(samples))
            if any(one.number for one in samples):
                summary[label][name]["self_consistency"] = summarise_samples(samples)
    for name, samples in trained.items():
        change = difference(first_samples(base[name]), first_samples(samples))
        summary["difference"][name] = change
    return summary | {"skipped_rows": dict(skipped_rows)}


def first_samples(samples: Sequence[Sample]) -> list[Sample]:
    """Returns the first reply to each question."""
    return [one for one in samples if not one.number]


def summarise(samples: Sequence[Sample]) -> dict[str, Any]:
    """Returns `n`, `accuracy` (exactly right, over all types of questions) and its `ci95` as
    fractions; the share of well-formed replies; the same by answer type, and by modality and by
    organ if there is more than one; `by_column`: the same by each further column of the user's own
    table that has at most MOST_GROUPS values; the reasoning score and the judge's, if there are
    any; `metrics`: `n`, `mean` and `ci95` by the names of METRICS, of those that apply to any
    reply."""
    columns = grouping_columns(samples)
    table = results({("", ""): {0: samples}}, (*GROUPS, *columns)).to_dict("records")
    overall = {row["metric"]: row for row in table if row["by"] == "all"}
    metrics = {name: in_summary(row) for name, row in overall.items() if name != "accuracy"}
    summary = in_summary(overall["accuracy"], "accuracy") | {
        "well_formed": metrics["format"]["mean"],
        "reasoning": metrics.get("reasoning"),
        "metrics": metrics,
    }
    for name in (*GROUPS[1:], *columns):
        groups = [row for row in table if row["by"] == name]
        parts = {row["group"]: in_summary(row, "accuracy") for row in groups}
        if name in columns:
            summary.setdefault("by_column", {})[name] = parts
        elif len(groups) > 1 or name == "answer_type":
            summary[f"by_{name.removeprefix('answer_')}"] = parts
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
    """Returns the paired difference in percentage points: of the accuracy, with the questions `won`
    and `lost` and the `p` of `Paired`, and of the reasoning score if both have it. Raises
    ValueError if the questions differ."""
    if questions_of(before) != questions_of(after):
        raise ValueError("the two evaluations are not of the same questions in the same order")
    rows = differences({("", "", ""): ({0: before}, {0: after})}).to_dict("records")
    points = {
        row["metric"]: {"points": row["points"], "ci95": [row["low"], row["high"]]} for row in rows
    }
    tests = {name: rows[0][name] for name in ("won", "lost", "p")}
    return points["accuracy"] | tests | {"reasoning": points.get("reasoning")}


def summarise_samples(samples: Sequence[Sample]) -> dict[str, Any]:
    """Returns the majority's accuracy, the agreement, and what abstaining gains."""
    questions = []
    for group in in_groups(samples):
        answers, example = [one.reply.answer for one in group], group[0].example
        questions.append(Sampled(answers, example.answer, example.options))
    found = self_consistency(questions)
    curve = found.abstention
    return {
        "n": found.n,
        "samples": len(samples) / found.n,
        "accuracy": found.accuracy,
        "agreement": found.agreement,
        "abstention": dict(zip(map(str, curve.coverage), curve.accuracy, strict=True)),
        "aurc": curve.aurc,
    }


@dataclass(frozen=True)
class Line:
    """A model of a comparison: the folders with its measurements by seed, and the family of prompts
    and the judge that these were made with."""

    title: str
    folders: Mapping[int, Path]
    prompt: str
    judge: str = "none"

    def read(self, label: str, data: str) -> dict[int, list[Sample]]:
        """Returns the replies of "base" or "trained" by seed, if "trained" is complete there."""
        found = {}
        for seed, folder in self.folders.items():
            replies, trained = (
                read_finished(folder, Measurement(one, data, self.prompt, judge=self.judge))
                for one in (label, "trained")
            )
            if replies is not None and trained is not None:
                found[seed] = replies
        return found


def compare_lines(
    lines: Sequence[Line], data_sets: Sequence[str], reference: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the results of all lines and of their bases, one for each family of prompts, and the
    lead of the line titled `reference` over each. Data sets without a measurement are left out."""
    replies: dict[tuple[str, str], BySeed] = {}
    for data in data_sets:
        for line in lines:
            if base := line.read("base", data):
                replies.setdefault((f"base ({line.prompt})", data), base)
        for line in lines:
            if own := line.read("trained", data):
                replies[line.title, data] = own
    pairs = {
        (reference, title, data): (own, replies[reference, data])
        for (title, data), own in replies.items()
        if title != reference and (reference, data) in replies
    }
    return results(replies, ("all",)), differences(pairs, ("accuracy",))


def write_tables(out: Path, command: str, means: pd.DataFrame, leads: pd.DataFrame) -> None:
    """Writes `results.md`, `results.csv` and `results.tex` into the folder `out`, from what
    `compare_lines` returns; they were made by `command`."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    machine = f"{os.cpu_count()} cores of {names[0] if names else platform.processor()}"
    text = ["# Results", "", f"`{command}`, {machine}.", "", WORDS["about"]]
    for data in means["data"].unique():
        own, lead = (side[side["data"] == data] for side in (means, leads))
        table = comparison_table(own, lead).to_markdown(index=False, disable_numparse=True)
        text += ["", f"## {data}", "", table]
    write_text(out / "results.md", "\n".join(text) + "\n")
    write_text(out / "results.csv", to_csv(means, leads))
    write_text(out / "results.tex", to_latex(means))


def shown(means: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows that a comparison shows, in per cent but for the tokens, with the titles of
    their metrics."""
    rows = means[means["metric"].isin(COLUMNS.keys())].copy()
    scale = np.where(rows["metric"] == "completion_tokens", 1.0, 100.0)
    for name in ("mean", "low", "high"):
        rows[name] *= scale
    return rows.assign(metric=rows["metric"].map(COLUMNS))


def texts(rows: pd.DataFrame, form: str) -> list[str]:
    """Returns mean and interval of each row in a form such as "{:.1f} [{:.1f}, {:.1f}]"."""
    columns = (rows[name] for name in ("mean", "low", "high"))
    return [form.format(*numbers) for numbers in zip(*columns, strict=True)]


def comparison_table(means: pd.DataFrame, leads: pd.DataFrame) -> pd.DataFrame:
    """Returns one data set's table as text: a line for each model, a column for each metric that
    any has. `leads` are those of the reference model."""
    rows = shown(means)
    rows["text"] = texts(rows, "{:.1f} [{:.1f}, {:.1f}]")
    table = rows.pivot(index="model", columns="metric", values="text").fillna("–")
    table = table[[title for title in COLUMNS.values() if title in table]]
    accuracy, reasoning = (
        means[means["metric"] == metric].set_index("model") for metric in ("accuracy", "reasoning")
    )
    table = table.loc[accuracy.index]
    table.insert(0, "n", accuracy["n"].astype(str))
    for model, by_seed in accuracy["seeds"].items():
        further = reasoning["seeds"].get(model, {})
        seeds = [
            f"{seed}: {100 * mean:.1f}" + (f" / {100 * further[seed]:.1f}" if further else "")
            for seed, mean in by_seed.items()
        ]
        table.loc[model, "by seed"] = "; ".join(seeds)
    for _, lead in leads.iterrows():
        points, low, high = lead[["points", "low", "high"]]
        cells = (
            f"{points:+.1f} [{low:+.1f}, {high:+.1f}]",
            f"{lead['won']} / {lead['lost']}",
            f"{lead['p']:.3f}" if lead["p"] >= 0.001 else "< 0.001",
        )
        table.loc[lead["against"], [f"{lead['model']} − this", "won / lost", "p"]] = cells
    return table.fillna("").rename_axis(index="", columns=None).reset_index()


def to_csv(means: pd.DataFrame, leads: pd.DataFrame) -> str:
    """Returns one line for each number: data set, model, metric, n, mean and interval."""
    ahead = leads.assign(metric=leads["model"] + " - this", model=leads["against"])
    ahead["p"] = [f"{p:.4g}" for p in leads["p"]]
    table = pd.concat([shown(means), ahead.rename(columns={"points": "mean"})])
    names = {"data": "data_set", "model": "model", "metric": "metric", "n": "n", "mean": "mean"}
    names |= {"low": "low95", "high": "high95"}
    if len(leads):
        names |= {name: name for name in ("won", "lost", "p")}
        table = table.astype({"won": "Int64", "lost": "Int64"})
    table = table[list(names)].rename(columns=names).round(4)
    return str(table.to_csv(index=False, lineterminator="\n"))


def to_latex(means: pd.DataFrame) -> str:
    """Returns one table: accuracy and reasoning with their intervals, a pair of columns for each
    data set (booktabs)."""
    rows = shown(means)
    rows["text"] = texts(rows, "{:.1f} {{\\scriptsize [{:.1f}, {:.1f}]}}")
    columns = [(data, one) for data in means["data"].unique() for one in ("accuracy", "reasoning")]
    table = rows.pivot(index="model", columns=["data", "metric"], values="text")
    table = table.reindex(index=means["model"].unique(), columns=columns).fillna("--")
    table = table.rename(index=escape, columns=escape, level=0).rename_axis((None, None), axis=1)
    form = "l" + "r" * len(columns)
    table = table.rename_axis(None)
    return str(table.to_latex(column_format=form, multicolumn_format="c", escape=False))


def escape(text: str) -> str:
    """Returns a text for LaTeX."""
    return "".join(f"\\{char}" if char in "&%$#_{}" else char for char in text)
