"""The charts of a report, as SVG text that can stand inside a page: the comparison with its
intervals, and the course of training."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup, escape
from numpy.typing import NDArray

from rarl.evaluation.report.gather import Report, Run
from rarl.training.log import PHASES

Values = NDArray[np.float64]

STEP_PHASES = (*PHASES, "other")
COLOURS = ("#2563a8", "#c2571a", "#2f7d55", "#7d4fa3", "#a8324a", "#0f7c88", "#8a6a12", "#4b5563")
GREY = "#7b8592"
MOST_POINTS = 400  # of one line
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: small, and in the page's own font
    "svg.hashsalt": "rarl",  # the same chart, the same file
    "text.parse_math": False,  # names may hold dollar signs
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": "#aab2bd",
    "axes.labelcolor": "#3f4a58",
    "xtick.color": "#3f4a58",
    "ytick.color": "#3f4a58",
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "axes.linewidth": 0.8,
}
SMOOTHING = 10  # steps
SMOOTHED = f"Strong: mean of the last {SMOOTHING} steps."
# The metrics that have a chart of their own: key, title, note, methods that have it.
CURVES = (
    ("loss", "Loss (supervised)", "Cross-entropy of the target, in nats a token.", ["sft"]),
    ("completion_tokens", "Length of replies", "Mean tokens.", ["grpo"]),
    ("kl", "KL to the base model", "Estimated, nats a token.", ["grpo", "sft"]),
    ("sampler_mismatch", "Sampler mismatch", "Mean |Δ log-prob|: rounding only.", ["grpo", "sft"]),
)


@dataclass(frozen=True)
class Curve:
    """One curve: `values` by step, NaN where a step has none."""

    label: str
    colour: str
    values: pd.Series[float]


@dataclass(frozen=True)
class Chart:
    """`about` is what a reader who cannot see it is told; `legend` pairs a name with its colour."""

    title: str
    note: str
    about: str
    legend: list[tuple[str, str]]
    svg: Markup

    @property
    def file_text(self) -> str:
        """The SVG as a file that stands by itself."""
        opening = '<svg xmlns="http://www.w3.org/2000/svg"'
        return str(self.svg).replace("<svg", opening, 1) + "\n"


def colours_of(report: Report) -> dict[str, str]:
    """Returns one colour for each model throughout the page."""
    trained = [model.name for model in report.models if not model.is_base]
    runs = [run.name for run in report.runs] if report.is_comparison else []
    names = dict.fromkeys([*trained, *runs])
    colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(names)}
    return colours if report.is_comparison else {report.runs[0].name: COLOURS[0]} | colours


def curves(report: Report) -> list[Chart]:
    """Returns the charts of what `metrics.jsonl` of the runs holds; one whose metric nobody wrote
    is left out."""
    runs, colours = [run for run in report.runs if run.metrics], colours_of(report)
    written = dict.fromkeys(key for run in runs for row in run.metrics for key in row)
    parts = [key for key in written if key.startswith("reward/")]
    parts.sort(key="reward/mean".__ne__)  # the sum comes first
    charts: list[Chart | None] = []
    if len(runs) == 1 and parts:
        metrics, lines = metrics_of(runs), []
        for place, key in enumerate(parts):
            title = key.removeprefix("reward/").replace("mean", "sum, weighted")
            lines.append(Curve(title, COLOURS[place % len(COLOURS)], metrics[key]))
        charts.append(line_chart("Reward and its parts", SMOOTHED, lines))
        title, note = "Accuracy while training", "Of sampled replies."
        charts.append(metric_chart(runs, colours, "reward/accuracy", title, note))
        parts = []
    # The sum has no chart of its own: it is weighted otherwise in every model.
    for key in (one for one in parts if one != "reward/mean"):
        title, note = f"Reward: {key.removeprefix('reward/')}", "Of sampled replies, by model."
        charts.append(metric_chart(runs, colours, key, title, note))
    for key in (one for one in written if re.fullmatch("eval/.+/accuracy", one)):
        title = f"Accuracy on {key.split('/', 1)[1].removesuffix('/accuracy')} on the way"
        note = "Greedy, of some of its questions, with 95 % intervals."
        charts.append(interim_chart(runs, colours, key, title, note))
    for key, title, note, methods in CURVES:
        own = [run for run in runs if run.config.method in methods]
        charts.append(metric_chart(own, colours, key, title, note))
    return [chart for chart in [*charts, seconds_chart(runs)] if chart is not None]


def metrics_of(runs: Sequence[Run]) -> pd.DataFrame:
    """Returns the metrics by step, a column for each: the mean over the runs that have a value."""
    rows = pd.DataFrame([row for run in runs for row in run.metrics])
    return rows.apply(pd.to_numeric, errors="coerce").groupby("step").mean()


def metric_chart(
    runs: Sequence[Run], colours: Mapping[str, str], key: str, title: str, note: str
) -> Chart | None:
    """Draws one line for each model: the mean over its seeds."""
    log = key == "sampler_mismatch"
    lines = []
    for name in dict.fromkeys(run.name for run in runs):
        metrics = metrics_of([run for run in runs if run.name == name])
        if key in metrics and (metrics[key] > 0 if log else metrics[key].notna()).any():
            lines.append(Curve(name, colours[name], metrics[key]))
    seeds = " Mean over seeds." if len(runs) > len(lines) > 0 else ""
    several = len(set(colours.values())) > 1
    return line_chart(title, note + seeds, lines, log, named=several) if lines else None


def line_chart(
    title: str, note: str, lines: Sequence[Curve], log: bool = False, named: bool = True
) -> Chart:
    """Draws each line faint as measured and strong as the mean of the last steps; `named` asks for
    a legend."""
    with drawing(4.4, 2.35) as (axes, as_svg):
        if log:
            positive = pd.concat([line.values[line.values > 0] for line in lines])
            # else a logarithmic axis would have one tick
            decades = bool(len(positive) and positive.max() >= 30 * positive.min())
            axes.set_yscale("log" if decades else "linear")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:.2g}")
        told = []
        for line in lines:
            values = line.values.where(line.values > 0) if log else line.values
            smoothed = values.rolling(SMOOTHING, min_periods=1).mean()
            faint, strong = {"alpha": 0.25, "linewidth": 0.8}, {"linewidth": 1.7}
            axes.plot(*decimate(values), color=line.colour, **faint)
            axes.plot(*decimate(smoothed), color=line.colour, **strong)
            known = line.values.dropna().tolist()
            course = f"from {known[0]:.3g} to {known[-1]:.3g}" if known else "no values"
            told.append(f"{line.label}: {course}.")
        axes.set_xlabel("step")
        axes.grid(axis="y", color="#e6e9ee", linewidth=0.8)
        axes.margins(x=0.01)
        about = f"{title} over the steps. {' '.join(told)}"
        legend = list(dict.fromkeys((line.label, line.colour) for line in lines)) if named else []
        return Chart(title, note, about, legend, as_svg(about))


def interim_chart(
    runs: Sequence[Run], colours: Mapping[str, str], key: str, title: str, note: str
) -> Chart | None:
    """Draws what was measured on the way: the mean over the seeds, and the interval where there is
    one seed."""
    told, legend = [], []
    with drawing(4.4, 2.35) as (axes, as_svg):
        for name in dict.fromkeys(run.name for run in runs):
            own = [run for run in runs if run.name == name]
            metrics = metrics_of(own)
            known = metrics[metrics[key].notna()] if key in metrics else metrics[:0]
            if known.empty:
                continue
            axes.plot(known.index, known[key], color=colours[name], linewidth=1.7, marker=".")
            ends = [f"{key}/low", f"{key}/high"]
            if len(own) == 1 and all(end in known for end in ends):
                low, high = (known[end] for end in ends)
                axes.fill_between(known.index, low, high, color=colours[name], alpha=0.15, lw=0)
            legend.append((name, colours[name]))
            told.append(f"{name}: from {known[key].iloc[0]:.3g} to {known[key].iloc[-1]:.3g}.")
        axes.set_xlabel("step")
        axes.grid(axis="y", color="#e6e9ee", linewidth=0.8)
        about = f"{title} over the steps. {' '.join(told)}"
        several = legend if len(set(colours.values())) > 1 else []
        return Chart(title, note, about, several, as_svg(about)) if told else None


def seconds_chart(runs: Sequence[Run]) -> Chart | None:
    """Draws where the time goes: over the steps for one run, on average for several."""
    spent = {}
    for name in dict.fromkeys(run.name for run in runs):
        metrics = metrics_of([run for run in runs if run.name == name])
        metrics.columns = metrics.columns.str.removeprefix("seconds/")
        spent[name] = metrics.reindex(columns=list(STEP_PHASES)).fillna(0.0)
    phases = [one for one in STEP_PHASES if any(table[one].any() for table in spent.values())]
    if not phases:
        return None
    colours = [COLOURS[place % len(COLOURS)] for place in range(len(phases))]
    title, legend = "Seconds per phase", list(zip(phases, colours, strict=True))
    height = 2.35 if len(runs) == 1 else 0.7 + 0.32 * len(spent)
    with drawing(4.4, height) as (axes, as_svg):
        if len(runs) == 1:
            [table] = spent.values()
            drawn = [decimate(table[phase], most=120) for phase in phases]
            axes.stackplot(drawn[0][0], [one[1] for one in drawn], colors=colours, linewidth=0)
            axes.set_xlabel("step")
            axes.margins(x=0.01)
            told = [f"{phase}: mean {table[phase].mean():.3g}" for phase in phases]
            about = f"{title} over the steps. {', '.join(told)}"
            return Chart(title, "Of each step.", about, legend, as_svg(about))
        names = [name for name, table in spent.items() if table.any(axis=None)]
        left = np.zeros(len(names))
        for phase, colour in legend:
            means = np.array([spent[name][phase].mean() for name in names])
            axes.barh(np.arange(len(names)), means, left=left, color=colour, height=0.6)
            left += means
        axes.set_yticks(np.arange(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlabel("seconds a step")
        totals = [f"{name} {total:.3g}" for name, total in zip(names, left, strict=True)]
        about = f"{title}: {', '.join(totals)}"
        return Chart(title, "Mean over steps and seeds.", about, legend, as_svg(about))


def dot_chart(title: str, rows: Sequence[tuple[str, float, float, float, str]]) -> Chart:
    """Draws a dot with its interval for each row (name, mean, low, high, colour), in per cent."""
    with drawing(5.0, 0.65 + 0.34 * len(rows)) as (axes, as_svg):
        for place, (_, mean, low, high, colour) in enumerate(rows):
            line = {"color": colour, "linewidth": 2.2, "solid_capstyle": "round"}
            axes.plot([low, high], [place, place], **line)
            axes.plot([mean], [place], "o", color=colour, markersize=6.5, markeredgecolor="white")
            right = {"xycoords": ("axes fraction", "data"), "va": "center", "fontsize": 9}
            axes.annotate(f"{mean:.1f}", (1.015, place), **right)
        axes.set_yticks(np.arange(len(rows)), [row[0] for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        lowest, highest = min(row[2] for row in rows), max(row[3] for row in rows)
        axes.set_xlim(max(0, lowest - 6), min(100.5, highest + 4))
        axes.set_xlabel("%")
        axes.grid(axis="x", color="#e6e9ee", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines["left"].set_visible(False)
        told = [f"{name} {mean:.1f} ({low:.1f} to {high:.1f})" for name, mean, low, high, _ in rows]
        about = f"{title}: {', '.join(told)}"
        return Chart(title, "Per cent, with 95 % intervals.", about, [], as_svg(about))


@contextmanager
def drawing(width: float, height: float) -> Iterator[tuple[Any, Callable[[str], Markup]]]:
    """Yields axes of this many inches, and the function that turns them into SVG. It does without
    pyplot, so that nothing stays."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)

        def as_svg(about: str) -> Markup:
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
            return inline(buffer.getvalue(), about)

        yield axes, as_svg


def inline(text: str, about: str) -> Markup:
    """Returns Matplotlib's file as an element: scalable, described, and without what only a file
    needs."""
    body = text[text.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->\s*", "", body, flags=re.DOTALL)
    opening, rest = body[: body.index(">") + 1], body[body.index(">") + 1 :]
    box = re.search(r'viewBox="[^"]*"', opening)
    assert box is not None
    # ids are of the page: no two charts may share one
    prefix = f"c{zlib.crc32((about + rest).encode()):x}-"
    rest = re.sub(r' id="([^"]+)"', rf' id="{prefix}\1"', rest)
    rest = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}", rest)
    rest = re.sub(r"\n\s*", "\n", rest)
    link = 'xmlns:xlink="http://www.w3.org/1999/xlink"'
    return Markup(f'<svg {link} {box[0]} role="img" aria-label="{escape(about)}">{rest}')


def decimate(values: pd.Series[float], most: int = MOST_POINTS) -> tuple[Values, Values]:
    """Returns steps and values of at most `most` points, each the mean of as many neighbours; gaps
    stay gaps."""
    every = -(-len(values) // most)
    table = pd.DataFrame({"step": values.index, "value": values.to_numpy()})
    means = table.groupby(np.arange(len(table)) // max(1, every)).mean()
    return means["step"].to_numpy(dtype=float), means["value"].to_numpy(dtype=float)
