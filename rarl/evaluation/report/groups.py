"""What the page shows of groups and of related questions: which group is the worst, and whether
that is more than chance; how the replies about one image fit together; perception and reasoning
apart."""

from __future__ import annotations

from dataclasses import dataclass, field

from rarl.data.parquet import ParquetRows
from rarl.errors import UserError
from rarl.evaluation.consistency import ABILITIES
from rarl.evaluation.group_table import Group, Groups, Value
from rarl.evaluation.lines import TableLine
from rarl.evaluation.metrics import RELATED
from rarl.evaluation.report.charts import COLOURS, GREY, Chart, dot_chart
from rarl.evaluation.report.gather import Report
from rarl.evaluation.report.numbers import Measure, Numbers
from rarl.evaluation.ways import question_of
from rarl.prepare.floors import read_questions
from rarl.prepare.followed import corrected, follow

WORST = "#a12d2d"
MOST_SHOWN = 24  # groups of a column in the chart and the table; the rest is in results.csv
# The metrics of a group that have a column in its table, with their titles.
SHOWN = {
    "judge_correctness": "Judge: correct",
    "reasoning": "Reasoning",
    "true_positive_rate": "True-positive rate",
}


@dataclass(frozen=True)
class Column:
    """The groups of one column for the model that the report is about, a chart of them, those that
    are shown, the metrics that any of these has, and, of every model, its own groups."""

    chart: Chart | None
    groups: Groups
    shown: list[Group]
    metrics: dict[str, str]
    others: list[tuple[str, Groups]]

    def gap(self, metric: str) -> Value | None:
        """Returns how far the ranked groups lie apart in a metric."""
        return self.groups.gaps.get(metric)


@dataclass(frozen=True)
class Related:
    """What one data set's questions have to do with each other. `fits` has the metrics of RELATED
    for each model, `abilities` accuracy and margin by ability."""

    model: str
    columns: list[Column]
    fits: list[tuple[str, dict[str, Measure]]]
    abilities: list[tuple[str, dict[str, dict[str, Measure]]]]
    warnings: list[str] = field(default_factory=list)

    @property
    def has_margins(self) -> bool:
        """Whether the likelihood of options was measured."""
        return any("option_margin" in its for _, own in self.abilities for its in own.values())


def related_tables(report: Report, numbers: Numbers) -> dict[str, Related]:
    """Returns what is to be shown of each data set, by name; those without anything are left
    out."""
    found = {}
    for data in report.data_sets:
        measured = [one for one in report.models if data in one.replies]
        if not measured:
            continue
        model = report.best if report.best in measured else measured[-1]
        columns = [
            column_of(one, measured, numbers, data)
            for one in numbers.groups.get((model.name, data), [])
        ]
        fits, abilities = fits_of(measured, numbers, data), abilities_of(report, numbers, data)
        if columns or fits or abilities:
            warnings = follow_warnings(report, model, data) if columns else []
            found[data] = Related(model.name, columns, fits, abilities, warnings)
    return found


def column_of(groups: Groups, models: list[TableLine], numbers: Numbers, data: str) -> Column:
    """Returns what the page shows of the groups of a column."""
    shown = groups.groups[:MOST_SHOWN]
    metrics = {
        metric: title
        for metric, title in SHOWN.items()
        if any(metric in one.values for one in shown)
    }
    others = [
        (one.name, its)
        for one in models
        for its in numbers.groups.get((one.name, data), [])
        if its.column == groups.column
    ]
    return Column(
        chart=group_chart(groups, shown, data),
        groups=groups,
        shown=shown,
        metrics=metrics,
        others=others if len(others) > 1 else [],
    )


def group_chart(groups: Groups, shown: list[Group], data: str) -> Chart | None:
    """Draws the accuracy of each group with its interval, from the worst on: the worst in red where
    it is behind by more than chance, and grey what is too small for a rank."""
    rows = []
    for one in shown:
        colour = COLOURS[0] if one.ranked else GREY
        if one is groups.worst and groups.is_behind:
            colour = WORST
        name = f"{one.name} ({one.accuracy.units} {groups.unit})"
        its = one.accuracy
        rows.append((name, 100.0 * its.mean, 100.0 * its.low, 100.0 * its.high, colour))
    return dot_chart(f"{data}: accuracy by {groups.column}", rows) if rows else None


def fits_of(
    models: list[TableLine], numbers: Numbers, data: str
) -> list[tuple[str, dict[str, Measure]]]:
    """Returns the metrics of related questions of each model that has any."""
    found = []
    for one in models:
        known = {name: numbers.mean(one.name, data, name) for name in RELATED}
        if own := {name: its for name, its in known.items() if its}:
            found.append((one.name, own))
    return found


def abilities_of(
    report: Report, numbers: Numbers, data: str
) -> list[tuple[str, dict[str, dict[str, Measure]]]]:
    """Returns accuracy and margin by ability of each line that was measured, where questions are of
    more than one."""
    found = []
    for one in report.lines:
        own = {
            ability: {
                metric: its
                for metric in ("accuracy", "option_margin")
                if (its := numbers.abilities.get((one.name, data, ability, metric)))
            }
            for ability in ABILITIES
        }
        if all(own.values()):
            found.append((one.name, own))
    return found


def follow_warnings(report: Report, model: TableLine, data: str) -> list[str]:
    """Returns a warning for each of the columns that the training answers follow, by the questions
    that were measured; none where the training data are not to be found any more."""
    run = next((one for one in report.runs if data in one.measured and one.train_path), None)
    if run is None:
        return []
    try:
        train = read_questions(ParquetRows(str(run.train_path)))
    except UserError:
        return []
    samples = next(iter(model.replies[data].values()))
    asked = [question_of(one.example) for one in samples if not one.number]
    columns = dict.fromkeys(["site", *report.by])
    known = [follow(train, asked, name) for name in columns]
    return [one.told() for one in corrected([its for its in known if its]) if one.is_clear]
