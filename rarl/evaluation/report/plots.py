"""Small line, area and dot charts as SVG text that can stand inside a page."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from rarl.training.log import smooth

Values = NDArray[np.float64]

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


@dataclass(frozen=True)
class Line:
    """One curve. `values` holds NaN where a step has none."""

    label: str
    colour: str
    steps: Values
    values: Values


@dataclass(frozen=True)
class Chart:
    """`about` is what a reader who cannot see it is told; `legend` pairs a name with its colour."""

    title: str
    note: str
    about: str
    legend: list[tuple[str, str]]
    svg: Markup


def line_chart(
    title: str, note: str, lines: Sequence[Line], log: bool = False, named: bool = True
) -> Chart:
    """Each line faint as measured and strong as the mean of the last steps; `named` asks for a
    legend."""
    with drawing(4.4, 2.35) as (axes, as_svg):
        if log:
            axes.set_yscale("log" if spans_decades(lines) else "linear")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:.2g}")
        for line in lines:
            values = np.where(line.values > 0, line.values, np.nan) if log else line.values
            steps, raw = decimate(line.steps, values)
            _, smoothed = decimate(line.steps, np.array(smooth(values), dtype=float))
            axes.plot(steps, raw, color=line.colour, alpha=0.25, linewidth=0.8)
            axes.plot(steps, smoothed, color=line.colour, linewidth=1.7)
        axes.set_xlabel("step")
        axes.grid(axis="y", color="#e6e9ee", linewidth=0.8)
        axes.margins(x=0.01)
        about = f"{title} over the steps. " + " ".join(describe(line) for line in lines)
        legend = list(dict.fromkeys((line.label, line.colour) for line in lines)) if named else []
        return Chart(title, note, about, legend, as_svg(about))


def area_chart(title: str, note: str, steps: Values, parts: dict[str, Values]) -> Chart:
    """Parts on top of one another."""
    with drawing(4.4, 2.35) as (axes, as_svg):
        decimated = [decimate(steps, values, most=120)[1] for values in parts.values()]
        colours = [COLOURS[i % len(COLOURS)] for i in range(len(parts))]
        axes.stackplot(decimate(steps, steps, most=120)[0], decimated, colors=colours, linewidth=0)
        axes.set_xlabel("step")
        axes.margins(x=0.01)
        about = f"{title} over the steps. " + ", ".join(
            f"{n}: mean {v.mean():.3g}" for n, v in parts.items()
        )
        return Chart(title, note, about, list(zip(parts, colours, strict=True)), as_svg(about))


def bar_chart(title: str, note: str, rows: Sequence[str], parts: dict[str, list[float]]) -> Chart:
    """One horizontal bar a row, its parts one behind another."""
    with drawing(4.4, 0.7 + 0.32 * len(rows)) as (axes, as_svg):
        left = np.zeros(len(rows))
        colours = [COLOURS[i % len(COLOURS)] for i in range(len(parts))]
        for values, colour in zip(parts.values(), colours, strict=True):
            axes.barh(np.arange(len(rows)), values, left=left, color=colour, height=0.6)
            left += np.array(values)
        axes.set_yticks(np.arange(len(rows)), rows)
        axes.invert_yaxis()
        axes.set_xlabel("seconds a step")
        about = f"{title}: " + ", ".join(
            f"{row} {total:.3g}" for row, total in zip(rows, left, strict=True)
        )
        return Chart(title, note, about, list(zip(parts, colours, strict=True)), as_svg(about))


def dot_chart(title: str, note: str, rows: Sequence[tuple[str, float, float, float, str]]) -> Chart:
    """A dot with its interval a row: (name, mean, low, high, colour)."""
    with drawing(5.0, 0.65 + 0.34 * len(rows)) as (axes, as_svg):
        for place, (_, mean, low, high, colour) in enumerate(rows):
            axes.plot(
                [low, high], [place, place], color=colour, linewidth=2.2, solid_capstyle="round"
            )
            axes.plot([mean], [place], "o", color=colour, markersize=6.5, markeredgecolor="white")
            axes.annotate(
                f"{mean:.1f}",
                (1.015, place),
                xycoords=("axes fraction", "data"),
                va="center",
                fontsize=9,
            )
        axes.set_yticks(np.arange(len(rows)), [row[0] for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        lowest, highest = min(row[2] for row in rows), max(row[3] for row in rows)
        axes.set_xlim(max(0, lowest - 6), min(100.5, highest + 4))
        axes.set_xlabel("%")
        axes.grid(axis="x", color="#e6e9ee", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines["left"].set_visible(False)
        about = f"{title}: " + ", ".join(
            f"{n} {m:.1f} ({low:.1f} to {high:.1f})" for n, m, low, high, _ in rows
        )
        return Chart(title, note, about, [], as_svg(about))


@contextmanager
def drawing(width: float, height: float) -> Iterator[tuple[Any, Callable[[str], Markup]]]:
    """Axes of this many inches, and the function that turns them into SVG. Without pyplot, so that
    nothing stays."""
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
    """Matplotlib's file as an element: scalable, described, and without what only a file needs."""
    body = text[text.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->\s*", "", body, flags=re.DOTALL)
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


def decimate(steps: Values, values: Values, most: int = MOST_POINTS) -> tuple[Values, Values]:
    """At most `most` points, each the mean of as many neighbours; gaps stay gaps."""
    every = -(-len(steps) // most) if len(steps) else 1
    if every == 1:
        return steps, values
    cuts = range(0, len(steps), every)
    means = [
        np.nan if np.isnan(part := values[start : start + every]).all() else float(np.nanmean(part))
        for start in cuts
    ]
    return np.array([steps[start : start + every].mean() for start in cuts]), np.array(means)


def spans_decades(lines: Sequence[Line]) -> bool:
    """Whether a logarithmic axis would have more than one tick."""
    known = np.concatenate([line.values[line.values > 0] for line in lines])
    return bool(len(known) and known.max() >= 30 * known.min())


def describe(line: Line) -> str:
    known = line.values[~np.isnan(line.values)]
    return (
        f"{line.label}: from {known[0]:.3g} to {known[-1]:.3g}."
        if len(known)
        else f"{line.label}: no values."
    )
