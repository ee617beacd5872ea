"""How much each method learns from how many examples: the charts of a comparison that names several
numbers of them, in the report and as files beside it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from rarl.evaluation.report.charts import COLOURS, GREY, Chart, drawing
from rarl.evaluation.report.gather import Report
from rarl.evaluation.report.numbers import Numbers
from rarl.files import write_text

METRICS = {"accuracy": "accuracy", "reasoning": "reasoning score"}
FILE = "examples-{data}-{metric}.svg"


class Point(NamedTuple):
    """Means over questions and seeds in per cent."""

    examples: int
    mean: float
    low: float
    high: float


def examples_charts(report: Report, numbers: Numbers, data: str) -> dict[str, Chart]:
    """Returns a chart for each metric that was measured on a data set, by its name; none where the
    comparison has no numbers of examples."""
    charts = {}
    for metric, what in METRICS.items() if report.sizes else ():
        courses: dict[str, list[Point]] = {}
        for title, (method, examples) in report.sizes.items():
            found = numbers.mean(title, data, metric)
            if found and found.has_interval:
                point = Point(examples, found.mean, found.low, found.high)
                courses.setdefault(method, []).append(point)
        if courses:
            names = [one.name for one in report.models if one.is_base and one.is_usual]
            bases = [numbers.mean(name, data, metric) for name in names]
            base = max((one.mean for one in bases if one), default=None)
            charts[metric] = examples_chart(f"{data}: {what} by examples", courses, base)
    return charts


def examples_chart(title: str, courses: dict[str, list[Point]], base: float | None) -> Chart:
    """Draws a line with intervals for each method over the number of examples, and the base's mean
    as a level."""
    with drawing(5.0, 2.9) as (axes, as_svg):
        told = []
        for (method, points), colour in zip(courses.items(), COLOURS, strict=False):
            counts, means, lows, highs = zip(*sorted(points), strict=True)
            below = [mean - low for mean, low in zip(means, lows, strict=True)]
            above = [high - mean for mean, high in zip(means, highs, strict=True)]
            drawn = {"color": colour, "marker": "o", "capsize": 2, "linewidth": 1.7}
            axes.errorbar(counts, means, (below, above), label=method, **drawn)
            course = ", ".join(f"{one.mean:.1f} with {one.examples}" for one in sorted(points))
            told.append(f"{method}: {course}.")
        if base is not None:
            axes.axhline(base, color=GREY, linestyle="--", linewidth=1.2, label="base")
            told.append(f"base: {base:.1f}.")
        known = sorted({one.examples for points in courses.values() for one in points})
        axes.set_xscale("log")
        axes.set_xticks(known, [str(one) for one in known])
        axes.minorticks_off()
        axes.set_xlabel("training examples")
        axes.set_ylabel("%")
        axes.grid(axis="y", color="#e6e9ee", linewidth=0.8)
        axes.legend(frameon=False, fontsize=8)
        about = f"{title}. {' '.join(told)}"
        return Chart(title, "Per cent, with 95 % intervals.", about, [], as_svg(about))


def write_charts(folder: Path, charts: dict[str, dict[str, Chart]]) -> None:
    """Writes each chart, by data set and metric, as an SVG file that stands by itself."""
    for data, by_metric in charts.items():
        for metric, chart in by_metric.items():
            write_text(folder / FILE.format(data=data, metric=metric), chart.file_text)
