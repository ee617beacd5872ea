"""`report.html`: one file with everything in it, for a browser without a network."""

from __future__ import annotations

import base64
import hashlib
from importlib.metadata import version
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rarl.config import dump_config
from rarl.evaluation.report.charts import colours_of, comparison_charts, curves
from rarl.evaluation.report.data_card import data_cards
from rarl.evaluation.report.examples import examples_json, safe_json
from rarl.evaluation.report.gather import Report, gather
from rarl.evaluation.report.tables import make_tables
from rarl.evaluation.report.verdict import headline, signed, verdict
from rarl.files import write_text

HERE = Path(__file__).parent


def write_report(folder: Path) -> Path:
    """Writes `report.html` into a run directory, or into a folder of run directories NAME-SEED, and
    returns its path. Raises UserError where `folder` is neither, or nothing in it was measured."""
    report = gather(folder)
    path = report.folder / "report.html"
    write_text(path, render(report))
    return path


def render(report: Report) -> str:
    """Jinja escapes all values but those marked here, which are our own files, charts, and JSON
    made safe for HTML."""
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["signed"] = signed
    tables = make_tables(report)
    script, style = (
        (HERE / name).read_text(encoding="utf-8") for name in ("script.js", "style.css")
    )
    examples = examples_json(report)
    return environment.get_template("template.html.jinja").render(
        report=report,
        headline=headline(report),
        verdict=verdict(report, tables),
        tables=tables,
        colours=colours_of(report),
        comparison={table.data_set: comparison_charts(report, table) for table in tables},
        curves=curves(report),
        cards=data_cards(report),
        configurations=configurations(report),
        facts=facts(report),
        examples=examples,
        data=Markup(safe_json(examples)),
        script=Markup(script),
        script_hash=csp_hash(script),
        style=Markup(style),
        version=version("rarl"),
    )


def csp_hash(script: str) -> str:
    """The only script that the page lets run: whatever a reply smuggles in does not."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def configurations(report: Report) -> list[tuple[str, str]]:
    """The YAML of each model, of its first seed."""
    first = {run.name: run for run in reversed(report.runs)}
    return [(run.path.name, dump_config(run.config)) for _, run in sorted(first.items())]


def facts(report: Report) -> list[tuple[str, str]]:
    """What a reader wants to know before the numbers."""
    runs = report.runs
    seconds = [
        run.summary["seconds"]["train"] for run in runs if run.summary and "seconds" in run.summary
    ]
    methods = {"grpo": "reinforcement learning (GRPO)", "sft": "supervised fine-tuning"}
    found = [
        ("Model", ", ".join(dict.fromkeys(run.config.model.path for run in runs))),
        (
            "Method",
            ", ".join(
                dict.fromkeys(methods.get(run.config.method, run.config.method) for run in runs)
            ),
        ),
        ("Seeds", ", ".join(map(str, sorted({run.seed for run in runs})))),
        ("Steps", ", ".join(dict.fromkeys(str(run.config.train.steps) for run in runs))),
    ]
    if seconds:
        each = "" if len(seconds) == 1 else f" in {len(seconds)} runs"
        found.append(("Training time", f"{sum(seconds) / 60:.1f} min{each}"))
    return found
