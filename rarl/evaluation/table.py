"""The table of a comparison, as the papers print it: base and models by data set, seeds pooled, as
Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rarl.evaluation.intervals import interval95
from rarl.evaluation.metrics import METRICS
from rarl.evaluation.pairs import Paired, compare_pairs_pooled
from rarl.evaluation.prediction import Prediction, load_predictions
from rarl.evaluation.seeds import images_of, same_questions
from rarl.files import write_text

ABOUT = (
    "Greedy answers in %; seeds pooled, as far as they are in the column of the seeds (accuracy / reasoning). Brackets "
    "are 95 % bootstrap intervals over images, which leave out what other seeds would have given: see that column. "
    "`base` is the model before training, asked with the prompt in brackets. Accuracy is exact, over all types of "
    "question; closed, choice and open ones stand beside it. `reasoning` is the reward of that name (docs/rewards.md), "
    "which an answer alone does not have. The last three columns are paired by question: the lead in accuracy, the "
    "questions won and lost, and McNemar's exact p."
)


@dataclass(frozen=True)
class Line:
    """A model: where its replies are, by seed, and the end of the files' names."""

    name: str
    title: str
    folders: dict[int, Path]
    suffix: str


@dataclass(frozen=True)
class Replies:
    """One line of one data set, by seed."""

    name: str
    title: str
    by_seed: dict[int, list[Prediction]]

    @property
    def all(self) -> list[Prediction]:
        return [p for predictions in self.by_seed.values() for p in predictions]


@dataclass(frozen=True)
class Column:
    """`of` gives a reply's value, None where it does not apply; shown times `scale`."""

    title: str
    of: Callable[[Prediction], float | None]
    scale: float = 100.0


COLUMNS = (
    Column("accuracy", lambda p: float(p.correct)),
    Column("closed", METRICS["closed"].of),
    Column("choice", METRICS["choice"].of),
    Column("open, exact", METRICS["open_exact"].of),
    Column("open, F1", METRICS["open_f1"].of),
    Column("reasoning", METRICS["reasoning"].of),
    Column("judge: correctness", METRICS["judge_correctness"].of),
    Column("judge: explanation", METRICS["judge_explanation"].of),
    Column("well formed", METRICS["format"].of),
    Column("tokens", METRICS["completion_tokens"].of, scale=1.0),
)


@dataclass(frozen=True)
class Cell:
    """A mean and its 95 % interval, in the column's unit."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.1f} [{self.low:.1f}, {self.high:.1f}]"


@dataclass(frozen=True)
class Row:
    """`lead` is the reference model's over this one; None for itself, and where it has no common
    seeds."""

    title: str
    n: int
    cells: list[Cell | None]
    by_seed: str
    lead: Paired | None


@dataclass(frozen=True)
class DataTable:
    """One data set. A column that no line has a value in is left out."""

    data_set: str
    columns: list[Column]
    rows: list[Row]
    reference: str


def write_tables(
    out: Path, command: str, lines: Sequence[Line], data_sets: Sequence[str], reference: str
) -> None:
    """`results.md`, `results.csv` and `results.tex` in the folder `out`."""
    tables = [made for name in data_sets if (made := data_table(lines, name, reference))]
    write_text(out / "results.md", to_markdown(tables, command))
    write_text(out / "results.csv", to_csv(tables))
    write_text(out / "results.tex", to_latex(tables))


def data_table(lines: Sequence[Line], data_set: str, reference: str) -> DataTable | None:
    """None where nothing has been measured on this data set yet."""
    models = [read_replies(line, data_set, "trained", line.title) for line in lines]
    if not any(model.by_seed for model in models):
        return None
    bases: dict[str, Replies] = {}
    for line in lines:
        base = read_replies(line, data_set, "base", "base")
        if base.by_seed:
            family = base.all[0].wording.split("/")[0]
            bases.setdefault(family, Replies("base", f"base ({family})", base.by_seed))
    found = [*bases.values(), *(model for model in models if model.by_seed)]
    columns = [
        c for c in COLUMNS if any(c.of(p) is not None for replies in found for p in replies.all)
    ]
    leader = next((model for model in models if model.name == reference), None)
    rows = [make_row(replies, columns, leader) for replies in found]
    return DataTable(data_set, columns, rows, leader.title if leader else reference)


def read_replies(line: Line, data_set: str, label: str, title: str) -> Replies:
    by_seed = {}
    for seed, folder in line.folders.items():
        path = folder / f"{label}-{data_set}{line.suffix}.parquet"
        if path.is_file() and (folder / f"trained-{data_set}{line.suffix}.parquet").is_file():
            by_seed[seed] = load_predictions(path)
    return Replies(line.name, title, by_seed)


def make_row(replies: Replies, columns: Sequence[Column], leader: Replies | None) -> Row:
    images = images_of(replies.by_seed)
    cells = [make_cell(column, replies.all, images) for column in columns]
    return Row(
        replies.title, len(replies.all), cells, describe_seeds(replies), lead_over(replies, leader)
    )


def make_cell(
    column: Column, predictions: Sequence[Prediction], images: Sequence[str]
) -> Cell | None:
    known = [
        (column.scale * value, image)
        for p, image in zip(predictions, images, strict=True)
        if (value := column.of(p)) is not None
    ]
    if not known:
        return None
    values, clusters = zip(*known, strict=True)
    low, high = interval95(values, clusters)
    return Cell(sum(values) / len(values), low, high)


def lead_over(replies: Replies, leader: Replies | None) -> Paired | None:
    if leader is None or leader.name == replies.name:
        return None
    seeds = [seed for seed in replies.by_seed if seed in leader.by_seed]
    pairs = [(replies.by_seed[seed], leader.by_seed[seed]) for seed in seeds]
    shared = same_questions([before for before, _ in pairs])
    return compare_pairs_pooled(pairs, shared_images=shared) if pairs else None


def describe_seeds(replies: Replies) -> str:
    """Accuracy / reasoning of each."""
    texts = []
    for seed, predictions in replies.by_seed.items():
        known = [p.reasoning for p in predictions if p.reasoning is not None]
        reasoning = f" / {100 * sum(known) / len(known):.1f}" if known else ""
        texts.append(
            f"{seed}: {100 * sum(p.correct for p in predictions) / len(predictions):.1f}{reasoning}"
        )
    return "; ".join(texts)


def to_markdown(tables: Sequence[DataTable], command: str) -> str:
    lines = ["# Results", "", f"`{command}`, {machine()}.", "", ABOUT]
    for table in tables:
        lead = f"{table.reference} − this"
        head = ["", "n", *(c.title for c in table.columns), "by seed", lead, "won / lost", "p"]
        lines += [
            "",
            f"## {table.data_set}",
            "",
            f"| {' | '.join(head)} |",
            f"|{' --- |' * len(head)}",
        ]
        for row in table.rows:
            cells = [
                row.title,
                str(row.n),
                *(str(c) if c else "–" for c in row.cells),
                row.by_seed,
                *paired_cells(row),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def paired_cells(row: Row) -> list[str]:
    if row.lead is None:
        return ["", "", ""]
    low, high = row.lead.ci95
    p = f"{row.lead.p:.3f}" if row.lead.p >= 0.001 else "< 0.001"
    return [
        f"{row.lead.points:+.1f} [{low:+.1f}, {high:+.1f}]",
        f"{row.lead.won} / {row.lead.lost}",
        p,
    ]


def to_csv(tables: Sequence[DataTable]) -> str:
    """One line for each number: data set, model, metric, n, mean and interval."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["data_set", "model", "metric", "n", "mean", "low95", "high95", "won", "lost", "p"]
    )
    for table in tables:
        for row in table.rows:
            for column, cell in zip(table.columns, row.cells, strict=True):
                if cell is not None:
                    numbers = [round(value, 4) for value in (cell.mean, cell.low, cell.high)]
                    writer.writerow(
                        [table.data_set, row.title, column.title, row.n, *numbers, "", "", ""]
                    )
            if row.lead is not None:
                numbers = [round(value, 4) for value in (row.lead.points, *row.lead.ci95)]
                won = [row.lead.won, row.lead.lost, f"{row.lead.p:.4g}"]
                writer.writerow(
                    [table.data_set, row.title, f"{table.reference} - this", row.n, *numbers, *won]
                )
    return text.getvalue()


def to_latex(tables: Sequence[DataTable]) -> str:
    """One table: accuracy and reasoning with their intervals, a pair of columns for each data set
    (booktabs)."""
    shown = ("accuracy", "reasoning")
    titles = list(dict.fromkeys(row.title for table in tables for row in table.rows))
    lines = [f"\\begin{{tabular}}{{l{'rr' * len(tables)}}}", "\\toprule"]
    lines.append(
        " & ".join(["", *(f"\\multicolumn{{2}}{{c}}{{{escape(t.data_set)}}}" for t in tables)])
        + " \\\\"
    )
    lines += [" & ".join(["model", *(list(shown) * len(tables))]) + " \\\\", "\\midrule"]
    for title in titles:
        cells = [latex_cell(table, title, name) for table in tables for name in shown]
        lines.append(" & ".join([escape(title), *cells]) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def latex_cell(table: DataTable, title: str, name: str) -> str:
    row = next((row for row in table.rows if row.title == title), None)
    position = next((i for i, column in enumerate(table.columns) if column.title == name), None)
    cell = row.cells[position] if row and position is not None else None
    return f"{cell.mean:.1f} {{\\scriptsize [{cell.low:.1f}, {cell.high:.1f}]}}" if cell else "--"


def escape(text: str) -> str:
    return "".join(f"\\{char}" if char in "&%$#_{}" else char for char in text)


def machine() -> str:
    """What the figures were made on."""
    info = Path("/proc/cpuinfo")
    names = (
        [line for line in info.read_text().splitlines() if "model name" in line]
        if info.is_file()
        else []
    )
    name = names[0].split(":")[1].strip() if names else platform.processor()
    return f"{os.cpu_count()} cores of {name}"
