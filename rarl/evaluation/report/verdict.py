"""What the numbers come to, in plain words: the first thing a reader sees."""

from __future__ import annotations

from rarl.evaluation.report.gather import Report
from rarl.evaluation.report.tables import Measure, Row, Table

WORDS = {1: "a clear gain", 0: "no clear change", -1: "a clear loss"}


def headline(report: Report) -> str:
    trained = [model for model in report.models if not model.is_base]
    if not trained:
        return f"{report.folder.name}: the base model, before training"
    if not report.is_comparison:
        return f"{report.folder.name}: before and after training"
    if len(trained) == 1:
        return f"{trained[0].name} beside its base"
    return f"{len(trained)} ways of training, compared"


def verdict(report: Report, tables: list[Table]) -> list[str]:
    """One sentence or two a data set."""
    return [sentence for table in tables for sentence in [describe(report, table)] if sentence]


def describe(report: Report, table: Table) -> str:
    row = table.row(report.best.name)
    if row is None:
        return ""
    who = "the model" if not report.is_comparison or row.is_base else row.model
    right = f"On {table.data_set}, {who} answers {row.accuracy.mean:.1f} % of the questions right"
    if row.change is None:
        return right + "."
    parts = [f"{right}, {in_words(row.change)} against its base: {WORDS[row.change.sign]}."]
    if row.reasoning and row.reasoning_change:
        parts.append(reasoning_in_words(row.reasoning, row.reasoning_change))
    return " ".join([*parts, against_next(table, row)]).strip()


def reasoning_in_words(value: Measure, change: Measure) -> str:
    if not change.sign:
        return f"Its reasoning score does not clearly change ({signed(change.mean)} points)."
    verb = "rises" if change.sign > 0 else "falls"
    return f"Its reasoning score {verb} by {abs(change.mean):.1f} points to {value.mean:.1f}."


def against_next(table: Table, best: Row) -> str:
    """How far the next trained model is behind the one that is best overall."""
    others = [row for row in table.rows if not row.is_base and row.model != best.model and row.lead]
    if not others:
        return ""
    following = max(others, key=lambda row: row.accuracy.mean)
    assert following.lead is not None
    clear = {1: "clearly ahead of", 0: "not clearly apart from", -1: "clearly behind"}[
        following.lead.sign
    ]
    return f"It is {clear} {following.model}: {in_words(following.lead)}."


def in_words(change: Measure) -> str:
    return f"{signed(change.mean)} points (95 % interval {signed(change.low)} to {signed(change.high)})"


def signed(value: float) -> str:
    """With a minus sign, not a hyphen; no sign before zero."""
    text = f"{value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")
