"""`rarl data show`: what is in a prepared data set, for a person: tables, floors, and a picture of
some examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from rarl.data.parquet import ParquetRows
from rarl.errors import UserError
from rarl.prepare.contact_sheet import draw_contact_sheet, sheet_path
from rarl.prepare.fingerprint import text_key
from rarl.prepare.floors import Asked, floors, hold_out
from rarl.prepare.leaks import named_parts

COMMON_ANSWERS = 8
BAR = 30  # characters


def show_dataset(path: Path) -> Iterator[Table | str]:
    """Tables and lines to print, the path of the contact sheet last. Raises UserError."""
    splits = {name: ParquetRows(part) for part, name in named_parts([path])}
    asked = {name: read_questions(rows) for name, rows in splits.items()}
    yield counts_table(splits)
    for name, questions in asked.items():
        yield histogram(name, questions)
        yield answers_table(name, questions)
    yield from floor_tables(asked)
    yield shown_sheet(splits, sheet_path(path))


def shown_sheet(splits: dict[str, ParquetRows], sheet: Path) -> str:
    shown = splits.get("train") or next(iter(splits.values()))
    try:
        drawn = draw_contact_sheet(shown, sheet)
    except OSError as error:
        raise UserError(
            f"{sheet}: cannot be written: {error.strerror or error}; make room for it there"
        ) from None
    return f"{drawn} random examples with their questions: {sheet}"


def read_questions(rows: ParquetRows) -> list[Asked]:
    columns = [rows.column(name) for name in ("question", "answer", "answer_type", "image_id")]
    return [Asked(*values) for values in zip(*columns, strict=True)]


class PlainTable(Table):
    """Shows texts as they are: what is in brackets is no markup."""

    def add_row(self, *cells: RenderableType | None, **how: Any) -> None:
        super().add_row(*(escape(cell) if isinstance(cell, str) else cell for cell in cells), **how)


def plain_table(title: str, *columns: str) -> Table:
    table = PlainTable(
        title=escape(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD
    )
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    return table


def counts_table(splits: dict[str, ParquetRows]) -> Table:
    table = plain_table("questions", "split", "questions", "images", "with rationale", "modalities")
    for name, rows in splits.items():
        images, rationales = (
            len(set(rows.column("image_id"))),
            sum(bool(r) for r in rows.column("rationale")),
        )
        modalities = Counter(m for m in rows.column("modality") if m)
        listed = ", ".join(f"{m} {n:,}" for m, n in modalities.most_common(4)) or "not given"
        table.add_row(name, f"{len(rows):,}", f"{images:,}", f"{rationales:,}", listed)
    return table


def histogram(name: str, asked: list[Asked]) -> Table:
    table = plain_table(f"{name}: answer types", "type", "questions", "share", "")
    for kind, count in Counter(one.answer_type for one in asked).most_common():
        share = count / len(asked)
        table.add_row(kind, f"{count:,}", f"{100 * share:.1f} %", "█" * round(BAR * share))
    table.columns[-1].justify = "left"
    return table


def answers_table(name: str, asked: list[Asked]) -> Table:
    """Case and punctuation do not count."""
    table = plain_table(
        f"{name}: most frequent answers", "answer", "type", "questions", "share of type"
    )
    totals = Counter(one.answer_type for one in asked)
    counts = Counter((text_key(one.answer), one.answer_type) for one in asked)
    for (answer, kind), count in counts.most_common(COMMON_ANSWERS):
        table.add_row(answer, kind, f"{count:,}", f"{100 * count / totals[kind]:.1f} %")
    return table


def floor_tables(asked: dict[str, list[Asked]]) -> Iterator[Table | str]:
    """Of the test split by the training split; where one is missing, of a fifth of the images by
    the rest."""
    if "train" in asked and "test" in asked:
        train, test, title = (
            asked["train"],
            asked["test"],
            "floors of test, from train, without looking",
        )
    else:
        name = max(asked, key=lambda name: len(asked[name]))
        train, test = hold_out(asked[name])
        title = f"floors of a fifth of {name}'s images, from the rest, without looking"
    if not train or not test:
        yield "floors need questions about at least two images"
        return
    table = plain_table(title, "type", "questions", "majority answer", "nearest training question")
    for floor in floors(train, test):
        values = (f"{100 * value:.1f} %" for value in (floor.majority, floor.nearest))
        table.add_row(floor.answer_type, f"{floor.n:,}", *values)
    yield table
