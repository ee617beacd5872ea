"""The report: one HTML file that shows what a run, or a comparison of runs, came to. Nothing in it
is fetched from anywhere, so that a browser without a network shows it."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from importlib.metadata import version
from itertools import combinations
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rarl.config import dump_config
from rarl.evaluation.report.charts import GREY, Chart, colours_of, curves, dot_chart
from rarl.evaluation.report.examples import examples_json, safe_json
from rarl.evaluation.report.gather import Report, data_cards, gather
from rarl.evaluation.results import BySeed, differences, results
from rarl.files import write_text

HERE = Path(__file__).parent


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
class Numbers:
    """The results of a report. `means` are by (model, data set, group, metric), where a group is
    "all" or an answer type; `gains` are by (model, data set, metric, the model that it is compared
    with), "" being its own base."""

    means: dict[tuple[str, ...], Measure]
    gains: dict[tuple[str, ...], Measure]

    def mean(
        self, model: str, data: str, metric: str = "accuracy", group: str = "all"
    ) -> Measure | None:
        """Returns None for what was not measured."""
        return self.means.get((model, data, group, metric))

    def gain(
        self, model: str, data: str, metric: str = "accuracy", against: str = ""
    ) -> Measure | None:
        """Returns the difference paired by question; None if there is no such pair."""
        return self.gains.get((model, data, metric, against))

    def kinds(self, data: str) -> list[str]:
        """Returns the answer types of a data set, if there are several."""
        kinds = sorted({group for _, its, group, _ in self.means if its == data and group != "all"})
        return kinds if len(kinds) > 1 else []


def numbers_of(report: Report) -> Numbers:
    """Computes everything that the page says in numbers."""
    replies: dict[tuple[str, str], BySeed] = {}
    pairs: dict[tuple[str, str, str], tuple[BySeed, BySeed]] = {}
    for data in report.data_sets:
        measured = [model for model in report.models if data in model.replies]
        trained = [model for model in measured if not model.is_base]
        for model in measured:
            replies[model.name, data] = dict(sorted(model.replies[data].items()))
        for model in trained:
            pairs[model.name, "", data] = (model.before[data], model.replies[data])
        best = [(report.best, model) for model in trained if report.best in trained]
        for first, second in [*combinations(trained, 2), *best]:
            if first is not second:
                pairs[first.name, second.name, data] = (second.replies[data], first.replies[data])
    means: dict[tuple[str, ...], Measure] = {}
    for row in results(replies, ("all", "answer_type")).to_dict("records"):
        mean, low, high = (100.0 * row[name] for name in ("mean", "low", "high"))
        seeds = {seed: 100.0 * own for seed, own in row["seeds"].items()}
        key = (row["model"], row["data"], row["group"], row["metric"])
        means[key] = Measure(row["n"], mean, low, high, seeds)
    gains: dict[tuple[str, ...], Measure] = {}
    for row in differences(pairs).to_dict("records"):
        key = (row["model"], row["data"], row["metric"], row["against"])
        gains[key] = Measure(row["n"], row["points"], row["low"], row["high"], {})
    return Numbers(means, gains)


def comparison_charts(report: Report, numbers: Numbers, data: str) -> list[Chart]:
    """Draws the means of one data set."""
    colours, charts = colours_of(report), []
    for metric, what in (("accuracy", "accuracy"), ("reasoning", "reasoning score")):
        measured = [(model, numbers.mean(model.name, data, metric)) for model in report.models]
        rows = [
            (
                model.name,
                one.mean,
                one.low,
                one.high,
                GREY if model.is_base else colours[model.name],
            )
            for model, one in measured
            if one
        ]
        if rows:
            charts.append(dot_chart(f"{data}: {what}", rows))
    return charts


def signed(value: float) -> str:
    """Returns a number with a minus sign, not a hyphen, and no sign before zero."""
    text = f"{value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def write_report(folder: Path) -> Path:
    """Writes `report.html` into a run directory, or into a folder of run directories NAME-SEED, and
    returns its path. Raises UserError if `folder` is neither, and if nothing in it was measured."""
    report = gather(folder)
    path = report.folder / "report.html"
    write_text(path, render(report))
    return path


def render(report: Report) -> str:
    """Returns the page; its words are in the template. Jinja escapes all values but those marked
    here, which are our own files, charts, and JSON made safe for HTML."""
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["signed"] = signed
    numbers, examples = numbers_of(report), examples_json(report)
    script, style = (
        (HERE / name).read_text(encoding="utf-8") for name in ("script.js", "style.css")
    )
    # of each model, the first seed
    first = sorted({run.name: run for run in reversed(report.runs)}.items())
    # The only script that the page lets run: whatever a reply smuggles in does not.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("template.html.jinja").render(
        report=report,
        numbers=numbers,
        colours=colours_of(report),
        comparison={one: comparison_charts(report, numbers, one) for one in report.data_sets},
        curves=curves(report),
        cards=data_cards(report),
        configurations=[(run.path.name, dump_config(run.config)) for _, run in first],
        examples=examples,
        data=Markup(safe_json(examples)),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        style=Markup(style),
        version=version("rarl"),
    )
