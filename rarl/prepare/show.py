"""`rarl data show`: what is in a prepared data set: tables, floors, and a picture of some examples.
The floors are what can be scored without looking, which a model must beat (see `floors.py`)."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from rarl.data.images import BadImage, decode_image, side_by_side
from rarl.data.parquet import ParquetRows
from rarl.errors import UserError
from rarl.files import replacing
from rarl.prepare.card import sheet_path, split_counts
from rarl.prepare.fingerprint import text_key
from rarl.prepare.floors import FloorQuestion, floors, hold_out, read_questions
from rarl.prepare.followed import Followed, follows
from rarl.prepare.leaks import named_parts
from rarl.prepare.report import fact_lines
from rarl.schema import Example

COUNTS = ("questions", "images", "rationales", "with_1_facts")
COMMON_ANSWERS = 8
BAR = 30  # characters
COLUMNS, ROWS = 4, 3  # of the picture
CELL = (3.2, 3.9)  # inches
LINE, LINES = 38, 4  # characters of a caption's line, and lines


def show_dataset(path: Path) -> Iterator[Table | str]:
    """Yields tables and lines to print, the path of the contact sheet last. Raises UserError."""
    splits = {name: ParquetRows(part) for part, name in named_parts([path])}
    asked = {}
    for name, rows in splits.items():
        asked[name] = read_questions(rows)
    yield counts_table(splits)
    for name, rows in splits.items():
        yield from fact_lines(name, rows)
    for name, questions in asked.items():
        yield from answer_tables(name, questions)
    yield floor_table(asked)
    found = follows(asked)
    if found:
        yield follow_table(found)
    yield from (one.told() for one in found if one.is_clear)
    shown, sheet = splits.get("train") or next(iter(splits.values())), sheet_path(path)
    try:
        drawn = draw_contact_sheet(shown, sheet)
    except OSError as error:
        reason = f"cannot be written: {error.strerror or error}; make room for it there"
        raise UserError(f"{sheet}: {reason}") from None
    yield f"{drawn} random examples with their questions: {sheet}"


class PlainTable(Table):
    """Shows texts as they are: what is in brackets is no markup."""

    def __init__(self, title: str, *columns: str) -> None:
        super().__init__(
            title=escape(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD
        )
        for number, column in enumerate(columns):
            self.add_column(column, justify="left" if number == 0 else "right")

    def add_row(self, *cells: RenderableType | None, **how: Any) -> None:
        super().add_row(*(escape(cell) if isinstance(cell, str) else cell for cell in cells), **how)


def counts_table(splits: dict[str, ParquetRows]) -> Table:
    table = PlainTable(
        "questions", "split", "questions", "images", "with rationale", "with facts", "modalities"
    )
    for name, rows in splits.items():
        counts = split_counts(rows, range(len(rows)))
        numbers = [f"{counts[kind]:,}" for kind in COUNTS]
        modalities = list(counts["modalities"].items())[:4]
        listed = ", ".join(f"{modality} {count:,}" for modality, count in modalities)
        table.add_row(name, *numbers, listed or "not given")
    return table


def answer_tables(name: str, questions: list[FloorQuestion]) -> Iterator[Table]:
    """Yields a table of the answer types and one of the most frequent answers, whose case and
    punctuation do not count."""
    table = PlainTable(f"{name}: answer types", "type", "questions", "share", "")
    totals = Counter(one.answer_type for one in questions)
    for kind, count in totals.most_common():
        share = count / len(questions)
        table.add_row(kind, f"{count:,}", f"{100 * share:.1f} %", "█" * round(BAR * share))
    table.columns[-1].justify = "left"
    yield table
    title = f"{name}: most frequent answers"
    table = PlainTable(title, "answer", "type", "questions", "share of type")
    counts = Counter((text_key(one.answer), one.answer_type) for one in questions)
    for (answer, kind), count in counts.most_common(COMMON_ANSWERS):
        table.add_row(answer, kind, f"{count:,}", f"{100 * count / totals[kind]:.1f} %")
    yield table


def floor_table(asked: dict[str, list[FloorQuestion]]) -> Table | str:
    """Returns the floors of the test split by the training split; if one is missing, those of a
    fifth of the images by the rest."""
    if "train" in asked and "test" in asked:
        train, test = asked["train"], asked["test"]
        title = "floors of test, from train, without looking"
    else:
        name = max(asked, key=lambda name: len(asked[name]))
        train, test = hold_out(asked[name])
        title = f"floors of a fifth of {name}'s images, from the rest, without looking"
    if not train or not test:
        return "floors need questions about at least two images"
    table = PlainTable(title, "type", "questions", "majority answer", "nearest training question")
    for kind, count, *shares in floors(train, test):
        table.add_row(kind, f"{count:,}", *(f"{100 * share:.1f} %" for share in shares))
    return table


def follow_table(found: Sequence[Followed]) -> Table:
    """Returns what the most frequent answer to the same question is worth, over all groups of a
    column and in the question's own."""
    title = "the most frequent answer to the same question, by who was asked"
    table = PlainTable(title, "column", "questions", "over all", "in the own group", "p")
    for one in found:
        shares = (f"{100 * share:.1f} %" for share in (one.over_all, one.in_group))
        table.add_row(one.column, f"{one.questions:,}", *shares, f"{one.p:.3f}")
    return table


def draw_contact_sheet(rows: ParquetRows, path: Path, seed: int = 0) -> int:
    """Writes a PNG of random examples with their questions and answers; returns their number."""
    from matplotlib.figure import Figure  # takes a second to import

    count = min(COLUMNS * ROWS, len(rows))
    chosen = np.random.default_rng(seed).permutation(len(rows))[:count]
    columns = min(COLUMNS, count)
    lines = -(-count // columns)
    figure = Figure(figsize=(CELL[0] * columns, CELL[1] * lines), layout="constrained")
    for place, example in enumerate(rows.read(sorted(chosen.tolist())), start=1):
        axes = figure.add_subplot(lines, columns, place)
        axes.set_axis_off()
        try:
            pictures = [decode_image(image) for image in example.images]
            for picture in pictures:
                picture.thumbnail((512, 512))
            if pictures:
                axes.imshow(np.asarray(side_by_side(pictures)))
        except BadImage as error:
            how: dict[str, Any] = {"ha": "center", "va": "center", "wrap": True}
            axes.text(0.5, 0.5, f"image {error}", transform=axes.transAxes, **how)
        text = caption(example)
        axes.set_title(text, fontsize=8, loc="left", y=-0.05, va="top", parse_math=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
    return count


def caption(example: Example) -> str:
    text = textwrap.wrap(example.question, LINE)
    if example.options:
        text += textwrap.wrap(" | ".join(example.options), LINE)
    shown = text[:LINES] + (["…"] if len(text) > LINES else [])
    answer = textwrap.wrap(f"→ {example.answer} ({example.answer_type})", LINE)[:2]
    return "\n".join([*shown, *answer])
