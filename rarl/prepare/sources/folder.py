"""Your own images with a table (CSV, TSV, JSON lines, JSON or Parquet) of `image`, `question` and
`answer`.

`image` is a file's path below the folder (PNG, JPEG, DICOM, …) or, in Parquet, its bytes. Further
columns are optional: `id`, `options`, `rationale`, `modality`, `organ`, `split`, and `frame` of a
DICOM file with several.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rarl.errors import UserError
from rarl.prepare.sources.files import Files
from rarl.prepare.sources.hub_parquet import embedded_image
from rarl.prepare.sources.options import answer_among, read_options
from rarl.prepare.sources.record import (
    SPLITS,
    Choices,
    Fault,
    Item,
    Record,
    Row,
    each,
    optional_text,
    text,
)
from rarl.prepare.sources.tables import TABLE_PATTERNS, read_table

REQUIRED = ("image", "question", "answer")
COLUMNS = (*REQUIRED, "id", "options", "rationale", "modality", "organ", "split", "frame")
WORKBOOKS = ("*.xlsx", "*.xls", "*.ods")
# what others call it
SPLIT_NAMES = {"val": "validation", "valid": "validation", "dev": "validation"}


def read_folder(files: Files, choices: Choices) -> Iterator[Item]:
    names = [name for name in files.find(*TABLE_PATTERNS) if "/" not in name]
    workbooks = [name for name in files.find(*WORKBOOKS) if "/" not in name]
    if not names and workbooks:
        raise UserError(
            f"{files.entries[workbooks[0]]}: a workbook cannot be read; export it as CSV UTF-8"
        )
    if not names:
        raise UserError(
            f"{files.named}: holds no table (a CSV, TSV, JSON-lines, JSON or Parquet file) beside images"
        )
    if len(names) > 1:
        raise UserError(
            f"{files.named}: holds {len(names)} tables ({', '.join(names)}); name the one that is meant"
        )
    rows = read_table(files, names[0], REQUIRED, known=COLUMNS)
    yield from each(rows, lambda row: folder_record(row, files))


def folder_record(row: Row, files: Files) -> Record:
    value, name = row.values["image"], ""
    if isinstance(value, dict | bytes):
        encoded, name = embedded_image(value)
        image = lambda: encoded
    else:
        name = text(row.values, "image")
        image = files.image(name)
    options = read_options(row.values.get("options"))
    answer, options, mended = answer_among(text(row.values, "answer"), options)
    return Record(
        where=row.where,
        id=optional_text(row.values, "id") or f"row-{row.number}",
        image=image,
        image_name=name,
        question=text(row.values, "question"),
        answer=answer,
        options=options,
        rationale=optional_text(row.values, "rationale"),
        modality=optional_text(row.values, "modality"),
        organ=optional_text(row.values, "organ"),
        split=read_split(row),
        frame=read_frame(row.values.get("frame")),
        mended=mended,
        unused=tuple(column for column in row.values if column and column not in COLUMNS),
    )


def read_split(row: Row) -> str:
    given = optional_text(row.values, "split") or "train"
    return SPLIT_NAMES.get(given.lower(), given.lower() if given.lower() in SPLITS else given)


def read_frame(value: Any) -> int:
    """From 0. Raises Fault."""
    if value is None or value != value or value == "":
        return 0
    try:
        frame = float(value)
    except (TypeError, ValueError, OverflowError):
        frame = -1.0
    if frame < 0 or not frame.is_integer():  # infinity is none either
        raise Fault(f"frame '{value}' is not a number from 0")
    return int(frame)
