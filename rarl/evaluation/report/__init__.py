"""The report: one HTML file that shows what a run, or a comparison of runs, came to. Nothing in it
is fetched from anywhere, so that a browser without a network shows it."""

from __future__ import annotations

import base64
import hashlib
from importlib.metadata import version
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rarl.config import dump_config
from rarl.evaluation.metrics import WORDS
from rarl.evaluation.report.by_examples import examples_charts, write_charts
from rarl.evaluation.report.charts import GREY, Chart, colours_of, curves, dot_chart
from rarl.evaluation.report.examples import examples_json, safe_json
from rarl.evaluation.report.gather import Report, data_cards, gather
from rarl.evaluation.report.groups import related_tables
from rarl.evaluation.report.numbers import Numbers, numbers_of
from rarl.evaluation.report.verdict import signed, verdict
from rarl.files import write_text

HERE = Path(__file__).parent


def comparison_charts(report: Report, numbers: Numbers, data: str) -> list[Chart]:
    """Draws the means of one data set, with their intervals."""
    colours, charts = colours_of(report), []
    for metric, what in (("accuracy", "accuracy"), ("reasoning", "reasoning score")):
        plain = [one for one in report.lines if one.way.is_plain]
        measured = [(model, numbers.mean(model.name, data, metric)) for model in plain]
        rows = [
            (
                f"{model.name} (n {one.n})",
                one.mean,
                one.low,
                one.high,
                GREY if model.is_base else colours[model.name],
            )
            for model, one in measured
            if one and one.has_interval
        ]
        if rows:
            charts.append(dot_chart(f"{data}: {what}", rows))
    return charts


def write_report(folder: Path) -> Path:
    """Writes `report.html` into a run directory, or into a folder of run directories NAME-SEED, and
    returns its path. Raises UserError if `folder` is neither, and if nothing in it was measured."""
    report = gather(folder)
    numbers, path = numbers_of(report), report.folder / "report.html"
    sized = {one: examples_charts(report, numbers, one) for one in report.data_sets}
    write_charts(report.folder, sized)
    write_text(path, page_of(report, numbers, sized))
    return path


def page_of(report: Report, numbers: Numbers, sized: dict[str, dict[str, Chart]]) -> str:
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
    environment.filters["sentence"] = lambda text: text[:1].upper() + text[1:]
    examples = examples_json(report)
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
        claims_words=WORDS["claims"],
        colours=colours_of(report),
        verdicts={one: verdict(report, numbers, one) for one in report.data_sets},
        comparison={
            one: [*sized[one].values(), *comparison_charts(report, numbers, one)]
            for one in report.data_sets
        },
        related=related_tables(report, numbers),
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
