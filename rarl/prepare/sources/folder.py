"""Your own images with a table of `image` (a path below the folder or, in Parquet, the bytes),
`question` and `answer`. Further columns are optional: `id`, `options`, `split`, `frame` of a DICOM
file with several, and the text fields of `rarl.schema.Example`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from string import ascii_uppercase
from typing import Any

from rarl.data.parquet import MORE_TEXTS
from rarl.errors import UserError
from rarl.prepare import rows as tables
from rarl.prepare.files import Fault, Files
from rarl.prepare.rows import SPLITS, Choices, Item, Record, Row, cleaned, each, is_scalar
from rarl.prepare.sources.published import embedded_image

REQUIRED = ("image", "question", "answer")
COLUMNS = (*REQUIRED, "id", "options", "split", "frame", *MORE_TEXTS)
WORKBOOKS = ("*.xlsx", "*.xls", "*.ods")
# What others call a split.
SPLIT_NAMES = {"val": "validation", "valid": "validation", "dev": "validation"}
SPLIT_NAMES |= {split: split for split in SPLITS}
LETTERED = re.compile(r"([A-Za-z])[.)]\s*(\S.*)", re.DOTALL)  # B. Liver, B) Liver


def read_folder(files: Files, _: Choices) -> Iterator[Item]:
    names = [name for name in files.find(*tables.TABLE_PATTERNS) if "/" not in name]
    workbooks = [name for name in files.find(*WORKBOOKS) if "/" not in name]
    if not names and workbooks:
        workbook = files.entries[workbooks[0]]
        raise UserError(f"{workbook}: a workbook cannot be read; export it as CSV UTF-8")
    if not names:
        kinds = "a CSV, TSV, JSON-lines, JSON or Parquet file"
        raise UserError(f"{files.named}: holds no table ({kinds}) beside images")
    if len(names) > 1:
        listed = f"holds {len(names)} tables ({', '.join(names)})"
        raise UserError(f"{files.named}: {listed}; name the one that is meant")
    rows = tables.read_table(files, names[0], REQUIRED, known=COLUMNS)
    yield from each(rows, partial(folder_record, files=files, split=files.split_of(names[0])))


def folder_record(row: Row, files: Files, split: str) -> Record:
    """`split` is what the table's name tells, for rows that name none."""
    value = row.values["image"]
    held = isinstance(value, dict | bytes)
    options = read_options(row.values.get("options"))
    answer, options, mended = answer_among(row.text("answer"), options)
    given = row.optional("split") or split
    return Record(
        where=row.where,
        id=row.optional("id") or f"row-{row.number}",
        image=embedded_image(value) if held else files.image(row.text("image")),
        question=row.text("question"),
        answer=answer,
        options=options,
        texts={name: row.optional(name) for name in MORE_TEXTS},
        split=SPLIT_NAMES.get(given.lower(), given),
        frame=read_frame(row.values.get("frame")),
        mended=mended,
        unused=tuple(column for column in row.values if column and column not in COLUMNS),
    )


def read_frame(value: Any) -> int:
    """Returns the number of a DICOM frame, from 0. Raises Fault."""
    try:
        frame = float(cleaned(value) or 0)
    except ValueError:
        frame = -1.0
    if frame < 0 or not frame.is_integer():  # infinity is none either
        raise Fault(f"frame '{value}' is not a number from 0")
    return int(frame)


def read_options(value: Any) -> tuple[str, ...] | None:
    """Returns the options of a list, a JSON list, or texts separated by |. Raises Fault."""
    if value is None or value != value or value == "" or value == []:
        return None
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            listed = json.loads(value)
        except (ValueError, RecursionError):
            listed = None
        if listed is None or tables.half_character(listed):
            raise Fault(f"options {value!r} look like a JSON list but are none")
        value = listed
    elif isinstance(value, str) and "|" in value:
        value = value.split("|")
    if isinstance(value, str):
        raise Fault(f"options '{value}' are one text; give a list, or texts separated by |")
    if not isinstance(value, list) or not all(is_scalar(option) for option in value):
        raise Fault(f"options {value!r} are not a list of texts")
    return tuple(cleaned(option) for option in value)


def answer_among(
    answer: str, options: tuple[str, ...] | None
) -> tuple[str, tuple[str, ...] | None, tuple[str, ...]]:
    """Returns (answer, options, notes): both without letters before them, and the answer as its
    option is written. An answer that fits no option, or several, stays: the checks find that."""
    if not options:
        return answer, options, ()
    notes: tuple[str, ...] = ()
    found = [match for option in options if (match := LETTERED.fullmatch(option))]
    letters = "".join(match[1].upper() for match in found)
    # Only if all options have one, in order: `A. baumannii` alone is a name.
    if len(options) > 1 and len(found) == len(options) and ascii_uppercase.startswith(letters):
        options = tuple(match[2] for match in found)
        notes = ("questions had letters before their options, which were taken away",)
    named, note = as_option(answer, options)
    return named, options, notes + note


def as_option(answer: str, options: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """Returns the option that an answer names, and what was put right in it."""
    alike = [option for option in options if folded(option) == folded(answer)]
    if answer in options or len(alike) > 1:
        return answer, ()
    if alike:
        return alike[0], ("answers differed from their option in case or blanks",)
    letters = dict(zip(ascii_uppercase, options, strict=False))
    if answer.upper() in letters:
        return letters[answer.upper()], ("answers were an option's letter and are now its text",)
    lettered = LETTERED.fullmatch(answer)
    option = letters.get(lettered[1].upper()) if lettered else None
    if lettered and option and folded(option) == folded(lettered[2]):  # else they disagree
        return option, ("answers had their option's letter before them, which was taken away",)
    return answer, ()


def folded(text: str) -> str:
    return " ".join(text.casefold().split())
