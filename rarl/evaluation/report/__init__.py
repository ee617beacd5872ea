"""The report: one HTML file that shows what a run, or a comparison of runs, came to. Nothing in it
is fetched from anywhere, so that a browser without a network shows it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rarl.config import dump_config
from rarl.evaluation.report.charts import GREY, Chart, colours_of, curves, dot_chart
from rarl.evaluation.report.examples import examples_json, safe_json
from rarl.evaluation.report.gather import Report, data_cards, gather
from rarl.evaluation.results import BySeed, differences, results
from rarl.files import write_text

HERE = Path(__file__).parent
METHODS = {"grpo": "reinforcement learning (GRPO)", "sft": "supervised fine-tuning"}


@dataclass(frozen=True)
class Measure:
    """A mean over `n` questions in per cent, or a difference in points, with its 95 % interval."""

    n: int
    mean: float
    low: float
    high: float
    seeds: dict[int, float]

    @property
    def sign(self) -> int:
        """Of a difference: 1 or -1 if the whole interval is on one side of zero, else 0."""
        return (self.low > 0) - (self.high < 0)


@dataclass(frozen=True)
class Row:
    """One model on one data set: its means by metric, and by answer type if there are several. The
    differences are those to its own base, and of the best model to this one."""

    model: str
    is_base: bool
    means: dict[str, Measure]
    by_type: dict[str, Measure]
    change: Measure | None
    reasoning_change: Measure | None
    lead: Measure | None

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that it was measured with."""
        return tuple(self.means["accuracy"].seeds)


@dataclass(frozen=True)
class Table:
    """One data set: a row for each model, and the difference of every two trained ones."""

    data_set: str
    best: str
    rows: list[Row]
    pairs: list[tuple[str, str, Measure]]

    def row(self, model: str) -> Row | None:
        """Returns the row of a model."""
        return next((row for row in self.rows if row.model == model), None)


def make_tables(report: Report) -> list[Table]:
    """Returns the results of a report for its page."""
    replies: dict[tuple[str, str], BySeed] = {}
    pairs: dict[tuple[str, str, str], tuple[BySeed, BySeed]] = {}
    best = report.best
    trained = [model for model in report.models if not model.is_base]
    for data in report.data_sets:
        measured = [model for model in trained if data in model.replies]
        for model in report.models:
            if data in model.replies:
                replies[model.name, data] = dict(sorted(model.replies[data].items()))
        for model in measured:
            pairs[model.name, "", data] = (model.before[data], model.replies[data])
        for first, second in [*combinations(measured, 2), *((best, other) for other in measured)]:
            if first is not second and not best.is_base and data in first.replies:
                pairs[first.name, second.name, data] = (second.replies[data], first.replies[data])
    means: dict[tuple[str, ...], Measure] = {}
    for row in results(replies, ("all", "answer_type")).to_dict("records"):
        key = tuple(row[name] for name in ("model", "data", "by", "group", "metric"))
        mean, low, high = (100.0 * row[name] for name in ("mean", "low", "high"))
        seeds = {seed: 100.0 * own for seed, own in row["seeds"].items()}
        means[key] = Measure(row["n"], mean, low, high, seeds)
    gains: dict[tuple[str, ...], Measure] = {}
    for row in differences(pairs).to_dict("records"):
        key = tuple(row[name] for name in ("model", "against", "data", "metric"))
        gains[key] = Measure(row["n"], row["points"], row["low"], row["high"], {})
    return [make_table(report, data, means, gains) for data in report.data_sets]


def make_table(
    report: Report,
    data: str,
    means: Mapping[tuple[str, ...], Measure],
    gains: Mapping[tuple[str, ...], Measure],
) -> Table:
    """Returns the table of one data set."""
    rows = []
    for model in report.models:
        own = {key[2:]: one for key, one in means.items() if key[:2] == (model.name, data)}
        by_type = {group: one for (by, group, _), one in own.items() if by == "answer_type"}
        if own:
            rows.append(
                Row(
                    model.name,
                    model.is_base,
                    {metric: one for (by, _, metric), one in own.items() if by == "all"},
                    by_type if len(by_type) > 1 else {},
                    gains.get((model.name, "", data, "accuracy")),
                    gains.get((model.name, "", data, "reasoning")),
                    gains.get((report.best.name, model.name, data, "accuracy")),
                )
            )
    trained = [row.model for row in rows if not row.is_base]
    pairs = [
        (first, second, gains[first, second, data, "accuracy"])
        for first, second in combinations(trained, 2)
        if (first, second, data, "accuracy") in gains
    ]
    return Table(data, report.best.name, rows, pairs)


def comparison_charts(report: Report, table: Table) -> list[Chart]:
    """Draws the means of one data set."""
    colours, charts = colours_of(report), []
    for metric, what in (("accuracy", "accuracy"), ("reasoning", "reasoning score")):
        rows = []
        for row in table.rows:
            if found := row.means.get(metric):
                colour = GREY if row.is_base else colours[row.model]
                rows.append((row.model, found.mean, found.low, found.high, colour))
        if rows:
            charts.append(dot_chart(f"{table.data_set}: {what}", rows))
    return charts


def headline(report: Report) -> str:
    """Returns what the report is about."""
    trained = [model for model in report.models if not model.is_base]
    if not trained:
        return f"{report.folder.name}: the base model, before training"
    if not report.is_comparison:
        return f"{report.folder.name}: before and after training"
    if len(trained) == 1:
        return f"{trained[0].name} beside its base"
    return f"{len(trained)} ways of training, compared"


def verdict(report: Report, table: Table) -> str:
    """Returns what the numbers of one data set come to, in plain words: the first thing that a
    reader sees. Nothing if the best model was not measured there."""
    row = table.row(report.best.name)
    if row is None:
        return ""
    who = "the model" if not report.is_comparison or row.is_base else row.model
    accuracy, reasoning = row.means["accuracy"], row.means.get("reasoning")
    right = f"On {table.data_set}, {who} answers {accuracy.mean:.1f} % of the questions right"
    if row.change is None:
        return right + "."
    clear = {1: "a clear gain", 0: "no clear change", -1: "a clear loss"}[row.change.sign]
    parts = [f"{right}, {in_words(row.change)} against its base: {clear}."]
    change = row.reasoning_change
    if reasoning and change:
        verb = {1: "rises", -1: "falls"}.get(change.sign)
        parts.append(
            f"Its reasoning score {verb} by {abs(change.mean):.1f} points to {reasoning.mean:.1f}."
            if verb
            else f"Its reasoning score does not clearly change ({signed(change.mean)} points)."
        )
    others = [one for one in table.rows if not one.is_base and one is not row and one.lead]
    if others:
        following = max(others, key=lambda one: one.means["accuracy"].mean)
        assert following.lead is not None
        clear = {1: "clearly ahead of", 0: "not clearly apart from", -1: "clearly behind"}[
            following.lead.sign
        ]
        parts.append(f"It is {clear} {following.model}: {in_words(following.lead)}.")
    return " ".join(parts)


def in_words(change: Measure) -> str:
    """Returns a difference with its interval."""
    low, high = signed(change.low), signed(change.high)
    return f"{signed(change.mean)} points (95 % interval {low} to {high})"


def signed(value: float) -> str:
    """Returns a number with a minus sign, not a hyphen, and no sign before zero."""
    text = f"{value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def facts(report: Report) -> list[tuple[str, str]]:
    """Returns what a reader wants to know before the numbers."""
    runs = report.runs

    def listed(values: list[Any]) -> str:
        return ", ".join(dict.fromkeys(map(str, values)))

    found = [
        ("Model", listed([run.config.model.path for run in runs])),
        ("Method", listed([METHODS.get(run.config.method, run.config.method) for run in runs])),
        ("Seeds", listed(sorted(run.seed for run in runs))),
        ("Steps", listed([run.config.train.steps for run in runs])),
    ]
    summaries = [run.summary for run in runs if run.summary]
    seconds = [one["seconds"]["train"] for one in summaries if "seconds" in one]
    if seconds:
        each = "" if len(seconds) == 1 else f" in {len(seconds)} runs"
        found.append(("Training time", f"{sum(seconds) / 60:.1f} min{each}"))
    return found


def write_report(folder: Path) -> Path:
    """Writes `report.html` into a run directory, or into a folder of run directories NAME-SEED, and
    returns its path. Raises UserError if `folder` is neither, and if nothing in it was measured."""
    report = gather(folder)
    path = report.folder / "report.html"
    write_text(path, render(report))
    return path


def render(report: Report) -> str:
    """Returns the page. Jinja escapes all values but those marked here, which are our own files,
    charts, and JSON made safe for HTML."""
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["signed"] = signed
    tables, examples = make_tables(report), examples_json(report)
    script, style = (
        (HERE / name).read_text(encoding="utf-8") for name in ("script.js", "style.css")
    )
    first = {run.name: run for run in reversed(report.runs)}  # of each model, the first seed
    # The only script that the page lets run: whatever a reply smuggles in does not.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("template.html.jinja").render(
        report=report,
        headline=headline(report),
        verdict=[sentence for table in tables if (sentence := verdict(report, table))],
        tables=tables,
        colours=colours_of(report),
        comparison={table.data_set: comparison_charts(report, table) for table in tables},
        curves=curves(report),
        cards=data_cards(report),
        configurations=[
            (run.path.name, dump_config(run.config)) for _, run in sorted(first.items())
        ],
        facts=facts(report),
        examples=examples,
        data=Markup(safe_json(examples)),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        style=Markup(style),
        version=version("rarl"),
    )
