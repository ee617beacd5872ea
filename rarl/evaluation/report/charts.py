"""Which charts a report has: the course of training, and the comparison with its intervals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from rarl.evaluation.report.gather import Report, Run
from rarl.evaluation.report.plots import (
    COLOURS,
    GREY,
    Chart,
    Line,
    Values,
    area_chart,
    bar_chart,
    dot_chart,
    line_chart,
)
from rarl.evaluation.report.tables import Measure, Row, Table
from rarl.training.log import PHASES as TIMED

PHASES = (*TIMED, "other")
SMOOTHED = "Strong: mean of the last 10 steps."


def comparison_charts(report: Report, table: Table) -> list[Chart]:
    """Of one data set."""
    colours = colours_of(report)
    charts = []
    wanted: tuple[tuple[str, Callable[[Row], Measure | None]], ...] = (
        ("accuracy", lambda row: row.accuracy),
        ("reasoning score", lambda row: row.reasoning),
    )
    for what, measure in wanted:
        rows = [
            (row.model, m.mean, m.low, m.high, GREY if row.is_base else colours[row.model])
            for row in table.rows
            if (m := measure(row)) is not None
        ]
        if rows:
            charts.append(
                dot_chart(f"{table.data_set}: {what}", "Per cent, with 95 % intervals.", rows)
            )
    return charts


def curves(report: Report) -> list[Chart]:
    """What `metrics.jsonl` of the runs holds; a chart whose metric nobody wrote is left out."""
    runs = [run for run in report.runs if run.metrics]
    colours = colours_of(report)
    charts = [one_run_rewards(runs[0])] if len(runs) == 1 else reward_charts(report, runs)
    charts += [
        metric_chart(
            runs, colours, "reward/accuracy", "Accuracy while training", "Of sampled replies."
        )
        if len(runs) == 1
        else None,
        metric_chart(
            sft(runs),
            colours,
            "loss",
            "Loss (supervised)",
            "Cross-entropy of the target, in nats a token.",
        ),
        metric_chart(rl(runs), colours, "completion_tokens", "Length of replies", "Mean tokens."),
        metric_chart(runs, colours, "kl", "KL to the base model", "Estimated, nats a token."),
        metric_chart(
            runs,
            colours,
            "sampler_mismatch",
            "Sampler mismatch",
            "Mean |Δ log-prob|: rounding only.",
            log=True,
        ),
        seconds_chart(runs),
    ]
    return [chart for chart in charts if chart is not None]


def colours_of(report: Report) -> dict[str, str]:
    """One colour a model throughout the page."""
    if not report.is_comparison:
        return dict.fromkeys(["trained", report.runs[0].name], COLOURS[0])
    names = dict.fromkeys(
        [m.name for m in report.models if not m.is_base] + [run.name for run in report.runs]
    )
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}


def sft(runs: list[Run]) -> list[Run]:
    return [run for run in runs if run.config.method == "sft"]


def rl(runs: list[Run]) -> list[Run]:
    return [run for run in runs if run.config.method != "sft"]


def one_run_rewards(run: Run) -> Chart | None:
    keys = reward_keys([run])
    lines = [
        Line(
            key.removeprefix("reward/").replace("mean", "sum, weighted"),
            COLOURS[i % len(COLOURS)],
            *series(run, key),
        )
        for i, key in enumerate(keys)
    ]
    return line_chart("Reward and its parts", SMOOTHED, lines) if lines else None


def reward_charts(report: Report, runs: list[Run]) -> list[Chart | None]:
    """The sum has no chart: it is weighted otherwise in every model."""
    colours = colours_of(report)
    parts = [key for key in reward_keys(runs) if key != "reward/mean"]
    return [
        metric_chart(
            runs,
            colours,
            key,
            f"Reward: {key.removeprefix('reward/')}",
            "Of sampled replies, by model.",
        )
        for key in parts
    ]


def reward_keys(runs: list[Run]) -> list[str]:
    """`reward/mean` first."""
    keys = dict.fromkeys(
        key for run in runs for row in run.metrics for key in row if key.startswith("reward/")
    )
    return sorted(keys, key=lambda key: key != "reward/mean")


def metric_chart(
    runs: list[Run], colours: dict[str, str], key: str, title: str, note: str, log: bool = False
) -> Chart | None:
    """One line a model: the mean over its seeds."""
    lines = []
    for name in dict.fromkeys(run.name for run in runs):
        steps, values = mean_of([series(run, key) for run in runs if run.name == name])
        if not np.isnan(values).all() and not (log and not (values > 0).any()):
            lines.append(Line(name, colours[name], steps, values))
    seeds = " Mean over seeds." if len(runs) > len(lines) > 0 else ""
    several = len(set(colours.values())) > 1
    return line_chart(title, note + seeds, lines, log, named=several) if lines else None


def series(run: Run, key: str) -> tuple[Values, Values]:
    """Steps and values, NaN where there is none."""
    steps = np.array([row["step"] for row in run.metrics], dtype=float)
    return steps, np.array([number(row.get(key)) for row in run.metrics], dtype=float)


def number(value: Any) -> float:
    return np.nan if value is None else float(value)


def mean_of(curves_: list[tuple[Values, Values]]) -> tuple[Values, Values]:
    """Over the curves that have a value at a step."""
    by_step: dict[float, list[float]] = {}
    for steps, values in curves_:
        for step, value in zip(steps.tolist(), values.tolist(), strict=True):
            by_step.setdefault(step, [])
            if not np.isnan(value):
                by_step[step].append(value)
    ordered = sorted(by_step)
    return np.array(ordered), np.array(
        [np.mean(by_step[s]) if by_step[s] else np.nan for s in ordered], dtype=float
    )


def seconds_chart(runs: list[Run]) -> Chart | None:
    """Where the time goes: over the steps for one run, on average for several."""
    timed = [run for run in runs if any("seconds/step" in row for row in run.metrics)]
    if not timed:
        return None
    title = "Seconds per phase"
    if len(timed) == 1:
        parts = {phase: np.nan_to_num(series(timed[0], f"seconds/{phase}")[1]) for phase in PHASES}
        shown = {phase: values for phase, values in parts.items() if values.any()}
        return (
            area_chart(title, "Of each step.", series(timed[0], "step")[0], shown)
            if shown
            else None
        )
    names = list(dict.fromkeys(run.name for run in timed))
    means = {
        phase: [
            float(
                np.mean(np.concatenate([phase_of(run, phase) for run in timed if run.name == name]))
            )
            for name in names
        ]
        for phase in PHASES
    }
    return bar_chart(
        title, "Mean over steps and seeds.", names, {p: v for p, v in means.items() if any(v)}
    )


def phase_of(run: Run, phase: str) -> Values:
    return np.nan_to_num(series(run, f"seconds/{phase}")[1])
