"""The one table of results: means with intervals by model, data set and group, and the paired
differences of two models. The terminal, summary.json, results.md, .csv and .tex and the report are
renderings of it."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, product
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from rarl.evaluation.intervals import Changes, changes_between, intervals95, summarise_changes
from rarl.evaluation.measurements import Measurement, in_groups, questions_of, read_finished
from rarl.evaluation.metrics import JUDGE_SCALE, METRICS, measure
from rarl.evaluation.self_consistency import Sampled, self_consistency
from rarl.files import write_text
from rarl.samples import Sample

BySeed = Mapping[int, Sequence[Sample]]
GROUPS = ("all", "answer_type", "modality", "organ")
UNKNOWN = "unknown"  # the group of what has no modality or organ, beside those that have


def results(replies: Mapping[tuple[str, str], BySeed], by: Sequence[str] = GROUPS) -> pd.DataFrame:
    """Returns one row for each mean: model, data, by, group, metric, n, mean, low, high, seeds.

    `replies` holds samples by (model, data set) and seed. `by` names text fields of Example; "all"
    is the one group of everything. All metrics are given of "all", the accuracy alone of other
    groups. `mean` is over all seeds' replies, in [0, 1] or tokens, with its 95 % interval over
    images; `seeds` maps each seed to its own mean.
    """
    rows, columns = [], []
    for (model, data), by_seed in replies.items():
        seeds = [seed for seed, samples in by_seed.items() for _ in samples]
        samples = [one for own in by_seed.values() for one in own]
        units = units_of(by_seed)
        measured = [measure(one) for one in samples]
        for name in by:
            groups = groups_of(samples, name)
            metrics = list(METRICS) if name == "all" else ["accuracy"]
            for metric, group in product(
                metrics, sorted({one for one in groups if one is not None})
            ):
                known = [
                    (seed, found[metric], unit)
                    for seed, found, unit, its in zip(seeds, measured, units, groups, strict=True)
                    if its == group and metric in found
                ]
                if known:
                    values = [value for _, value, _ in known]
                    own = {
                        seed: mean_of(value for _, value, _ in part)
                        for seed, part in groupby(known, key=itemgetter(0))
                    }
                    key = (model, data, name, group, metric)
                    rows.append((*key, len(known), mean_of(values), own))
                    columns.append((values, [unit for _, _, unit in known]))
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
    values = [getattr(one.example, name) for one in samples]
    if None in values and len(set(values)) < 3:
        return [None] * len(values)
    return [UNKNOWN if value is None else str(value) for value in values]


def same_questions(by_seed: BySeed) -> bool:
    """Tells whether all seeds measure on the same questions; otherwise each has drawn its own."""
    questions = [questions_of(samples) for samples in by_seed.values()]
    return all(one == questions[0] for one in questions)


def units_of(by_seed: BySeed) -> list[str]:
    """Returns the bootstrap's unit for each reply: its image. If each seed has made its own data,
    equal ids are other images."""
    shared = same_questions(by_seed)
    return [
        one.example.image_id if shared else f"{seed}/{one.example.image_id}"
        for seed, own in by_seed.items()
        for one in own
    ]


def differences(
    pairs: Mapping[tuple[str, str, str], tuple[BySeed, BySeed]],
    metrics: Sequence[Literal["accuracy", "reasoning"]] = ("accuracy", "reasoning"),
) -> pd.DataFrame:
    """Returns one row for each difference: model, against, data, metric, n, points, low, high, won,
    lost, p. `points` is how far `model` is above `against`; see `Paired`.

    `pairs` maps (model, against, data set) to the replies of `against` and of `model`. Only those
    seeds are compared in which both answered the same questions; without any there is no row.
    """
    keys: list[tuple[str, ...]] = []
    found: list[Changes] = []
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
                keys.append((*key, metric))
                found.append(changes)
    names = ["model", "against", "data", "metric", "n", "points", "low", "high", "won", "lost", "p"]
    rows = [
        (*key, one.pairs, one.points, *one.ci95, one.won, one.lost, one.p)
        for key, one in zip(keys, summarise_changes(found), strict=True)
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
    organ if there is more than one; the reasoning score and the judge's, if there are any;
    `metrics`: `n`, `mean` and `ci95` by the names of METRICS, of those that apply to any reply."""
    table = results({("", ""): {0: samples}}).to_dict("records")
    overall = {row["metric"]: row for row in table if row["by"] == "all"}
    metrics = {name: in_summary(row) for name, row in overall.items() if name != "accuracy"}
    summary = in_summary(overall["accuracy"], "accuracy") | {
        "well_formed": metrics["format"]["mean"],
        "reasoning": metrics.get("reasoning"),
        "metrics": metrics,
    }
    for name in ("answer_type", "modality", "organ"):
        groups = [row for row in table if row["by"] == name]
        if len(groups) > 1 or name == "answer_type":
            summary[f"by_{name.removeprefix('answer_')}"] = {
                row["group"]: in_summary(row, "accuracy") for row in groups
            }
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
        models = {line.title: line.read("trained", data) for line in lines}
        for line in lines:
            if base := line.read("base", data):
                replies.setdefault((f"base ({line.prompt})", data), base)
        replies |= {(title, data): own for title, own in models.items() if own}
    pairs = {
        (reference, title, data): (own, replies[reference, data])
        for (title, data), own in replies.items()
        if title != reference and (reference, data) in replies
    }
    return results(replies, ("all",)), differences(pairs, ("accuracy",))


# The metrics in a comparison's table, with their titles there.
COLUMNS = {
    "accuracy": "accuracy",
    "closed": "closed",
    "choice": "choice",
    "open_exact": "open, exact",
    "open_f1": "open, F1",
    "reasoning": "reasoning",
    "judge_correctness": "judge: correctness",
    "judge_explanation": "judge: explanation",
    "format": "well formed",
    "completion_tokens": "tokens",
}
ABOUT = (
    "Greedy answers in %; seeds pooled, as far as they are in the column of the seeds (accuracy / "
    "reasoning). Brackets are 95 % bootstrap intervals over images, which leave out what other "
    "seeds would have given: see that column. `base` is the model before training, asked with the "
    "prompt in brackets. Accuracy is exact, over all types of question; closed, choice and open "
    "ones stand beside it. `reasoning` is the reward of that name (docs/rewards.md), which an "
    "answer alone does not have. The last three columns are paired by question: the lead in "
    "accuracy, the questions won and lost, and McNemar's exact p."
)
Row = dict[Hashable, Any]  # of `results` or `differences`


def write_tables(out: Path, command: str, means: pd.DataFrame, leads: pd.DataFrame) -> None:
    """Writes `results.md`, `results.csv` and `results.tex` into the folder `out`."""
    rows, ahead = means.to_dict("records"), leads.to_dict("records")
    text = ["# Results", "", f"`{command}`, {machine()}.", "", ABOUT]
    for data in dict.fromkeys(row["data"] for row in rows):
        own, lead = ([row for row in side if row["data"] == data] for side in (rows, ahead))
        table = comparison_table(own, lead).to_markdown(index=False, disable_numparse=True)
        text += ["", f"## {data}", "", table]
    write_text(out / "results.md", "\n".join(text) + "\n")
    write_text(out / "results.csv", to_csv(rows, ahead))
    write_text(out / "results.tex", to_latex(rows))


def shown(row: Row | None, form: str = "{:.1f} [{:.1f}, {:.1f}]", missing: str = "–") -> str:
    """Returns mean and interval in per cent, or in tokens."""
    if row is None:
        return missing
    scale = 1.0 if row["metric"] == "completion_tokens" else 100.0
    return form.format(*(scale * row[name] for name in ("mean", "low", "high")))


def comparison_table(rows: list[Row], leads: list[Row]) -> pd.DataFrame:
    """Returns one data set's table as text: a line for each model, a column for each metric that
    any has. `leads` are those of the reference model."""
    cells = {(row["model"], row["metric"]): row for row in rows}
    models = list(dict.fromkeys(model for model, _ in cells))
    metrics = [name for name in COLUMNS if any((model, name) in cells for model in models)]
    table = []
    for model in models:
        accuracy, reasoning = cells[model, "accuracy"], cells.get((model, "reasoning"))
        seeds = [
            f"{seed}: {100 * mean:.1f}"
            + (f" / {100 * reasoning['seeds'][seed]:.1f}" if reasoning else "")
            for seed, mean in accuracy["seeds"].items()
        ]
        line = {"": model, "n": str(accuracy["n"])}
        line |= {COLUMNS[name]: shown(cells.get((model, name))) for name in metrics}
        line["by seed"] = "; ".join(seeds)
        for lead in leads:
            found = lead["against"] == model
            points, low, high = (lead[name] for name in ("points", "low", "high"))
            p = f"{lead['p']:.3f}" if lead["p"] >= 0.001 else "< 0.001"
            name = f"{lead['model']} − this"
            if found or name not in line:
                line[name] = f"{points:+.1f} [{low:+.1f}, {high:+.1f}]" if found else ""
                line["won / lost"] = f"{lead['won']} / {lead['lost']}" if found else ""
                line["p"] = p if found else ""
        table.append(line)
    return pd.DataFrame(table)


def to_csv(rows: list[Row], leads: list[Row]) -> str:
    """Returns one line for each number: data set, model, metric, n, mean and interval."""
    table = []
    for row in rows:
        if row["metric"] in COLUMNS:
            scale = 1.0 if row["metric"] == "completion_tokens" else 100.0
            numbers = [round(scale * row[name], 4) for name in ("mean", "low", "high")]
            table.append([row["data"], row["model"], COLUMNS[row["metric"]], row["n"], *numbers])
    for row in leads:
        numbers = [round(row[name], 4) for name in ("points", "low", "high")]
        key = [row["data"], row["against"], f"{row['model']} - this", row["n"]]
        table.append([*key, *numbers, row["won"], row["lost"], f"{row['p']:.4g}"])
    names = ["data_set", "model", "metric", "n", "mean", "low95", "high95", "won", "lost", "p"]
    frame = pd.DataFrame(table, columns=names if leads else names[:7])
    whole = {name: "Int64" for name in ("won", "lost") if leads}
    return str(frame.astype(whole).to_csv(index=False, lineterminator="\n"))


def to_latex(rows: list[Row]) -> str:
    """Returns one table: accuracy and reasoning with their intervals, a pair of columns for each
    data set (booktabs)."""
    form = "{:.1f} {{\\scriptsize [{:.1f}, {:.1f}]}}"
    cells = {(row["data"], row["metric"], row["model"]): row for row in rows}
    models = list(dict.fromkeys(model for _, _, model in cells))
    columns = {
        (escape(data), metric): [
            shown(cells.get((data, metric, model)), form, "--") for model in models
        ]
        for data in dict.fromkeys(data for data, _, _ in cells)
        for metric in ("accuracy", "reasoning")
    }
    frame = pd.DataFrame(columns, index=[escape(model) for model in models])
    form = "l" + "r" * len(columns)
    return str(frame.to_latex(column_format=form, multicolumn_format="c", escape=False))


def escape(text: str) -> str:
    """Returns a text for LaTeX."""
    return "".join(f"\\{char}" if char in "&%$#_{}" else char for char in text)


def machine() -> str:
    """Returns what the figures were made on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return f"{os.cpu_count()} cores of {names[0] if names else platform.processor()}"
