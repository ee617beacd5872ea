"""Your own images with a table (CSV, JSON lines, JSON or Parquet) of `image`, `question` and `answer`.

`image` is a file's path below the folder (PNG, JPEG, DICOM, …) or, in Parquet, its bytes. Further columns are optional:
`id`, `options`, `rationale`, `modality`, `organ`, `split`, and `frame` of a DICOM file with several.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from rarl.data.sources.files import Files
from rarl.data.sources.hub_parquet import embedded_image
from rarl.data.sources.record import Choices, Fault, Item, Record, Row, each, optional_text, scalar_text, text
from rarl.data.sources.tables import TABLE_PATTERNS, read_table, require_whole_characters
from rarl.errors import UserError


def read_folder(files: Files, choices: Choices) -> Iterator[Item]:
    names = [name for name in files.find(*TABLE_PATTERNS) if "/" not in name]
    if not names:
        raise UserError(f"{files.named}: holds no table (a CSV, JSON-lines, JSON or Parquet file) beside its images")
    if len(names) > 1:
        raise UserError(f"{files.named}: holds {len(names)} tables ({', '.join(names)}); name the one that is meant")
    yield from each(read_table(files, names[0], ("image", "question", "answer")), lambda row: folder_record(row, files))


def folder_record(row: Row, files: Files) -> Record:
    value, name = row.values["image"], ""
    if isinstance(value, dict | bytes):
        encoded, name = embedded_image(value)
        image = lambda: encoded  # noqa: E731
    else:
        name = text(row.values, "image")
        image = files.image(name)
    options = read_options(row.values.get("options"))
    answer, mended = letter_as_text(text(row.values, "answer"), options)
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
        split=optional_text(row.values, "split") or "train",
        frame=read_frame(row.values.get("frame")),
        mended=mended,
    )


def read_options(value: Any) -> tuple[str, ...] | None:
    """A list, a list written as JSON, or texts separated by |. Raises Fault."""
    if value is None or value != value or value == "" or value == []:
        return None
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
            require_whole_characters(value)
        except (ValueError, RecursionError):
            raise Fault(f"options {value!r} look like a JSON list but are none") from None
    elif isinstance(value, str) and "|" in value:
        value = value.split("|")
    if isinstance(value, str):
        raise Fault(f"options '{value}' are one text; give a list, or texts separated by |")
    if not isinstance(value, list) or not all(is_scalar(option) for option in value):
        raise Fault(f"options {value!r} are not a list of texts")
    return tuple(scalar_text(option) for option in value)


def is_scalar(value: Any) -> bool:
    """A text or number that is there; True and NaN are neither, as in every other column."""
    return isinstance(value, str | int | float) and not isinstance(value, bool) and value == value


def letter_as_text(answer: str, options: tuple[str, ...] | None) -> tuple[str, tuple[str, ...]]:
    """An answer that is only an option's letter becomes that option's text."""
    if options and answer not in options and len(answer) == 1 and "A" <= answer <= "Z":
        place = ord(answer) - ord("A")
        if place < len(options):
            return options[place], ("answers were an option's letter and are now its text",)
    return answer, ()


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
