"""Rows of CSV, JSON, JSON-lines and Parquet files, each with the place that messages name."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from rarl.data.parquet import open_parquet
from rarl.errors import UserError
from rarl.prepare.files import Files
from rarl.prepare.record import Row

TABLE_PATTERNS = ("*.csv", "*.tsv", "*.jsonl", "*.json", "*.parquet")
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}  # of equally frequent ones, the first
# In characters: a quote that is never closed would otherwise take the rest of the file.
MAX_CELL = 10_000_000


@dataclass(frozen=True)
class Columns:
    """The columns that a table must have, and those that are known whatever their case and the
    blanks around them."""

    required: Sequence[str] = ()
    known: Sequence[str] = ()

    def names(self, given: Sequence[str]) -> tuple[list[str], str | None]:
        """Returns the names as RARL knows them, and the first that is there twice."""
        plain = [name.strip() for name in given]
        names = [name.lower() if name.lower() in self.known else name for name in plain]
        return names, next((name for name, count in Counter(names).items() if count > 1), None)

    def header(self, where: object, given: Sequence[str]) -> list[str]:
        """Returns the names of a header. Raises UserError if it lacks one or has one twice."""
        names, twice = self.names(given)
        if not any(names):
            raise UserError(f"{where}: is empty; its first line must name the columns")
        if twice is not None:
            raise UserError(f"{where}: column '{twice}' is there twice")
        missing = [column for column in self.required if column not in names]
        if missing:
            has = ", ".join(names)
            raise UserError(f"{where}: column '{missing[0]}' is missing (it has: {has})")
        return names

    def row(self, where: str, number: int, record: Any) -> Row:
        """Returns a JSON object as a row."""
        if not isinstance(record, dict):
            return Row(where, number, {}, f"expected an object, found {type(record).__name__}")
        names, twice = self.names(list(record))
        values = dict(zip(names, record.values(), strict=True))
        missing = [key for key in self.required if key not in values]
        fault = half_character(record)
        if fault is None and twice is not None:
            fault = f"key '{twice}' is there twice"
        if fault is None and missing:
            fault = f"key '{missing[0]}' is missing"
        return Row(where, number, values, fault)


def read_table(
    files: Files, name: str, required: Sequence[str] = (), known: Sequence[str] = ()
) -> Iterator[Row]:
    """Yields the rows of a file, which is read by its ending. Raises UserError if the file as a
    whole cannot be read or lacks a column or all rows."""
    readers: dict[str, Callable[[Files, str, Columns], Iterator[Row]]] = {
        ".csv": csv_rows,
        ".tsv": csv_rows,
        ".json": json_rows,
        ".jsonl": jsonl_rows,
        ".parquet": parquet_rows,
    }
    ending = PurePosixPath(name).suffix.lower()
    if ending not in readers:
        known_endings = f"not a table that can be read; known are {', '.join(readers)}"
        raise UserError(f"{files.entries[name]}: {known_endings}")
    row = None
    for row in readers[ending](files, name, Columns(required, known)):
        yield row
    if row is None:
        raise UserError(f"{files.entries[name]}: holds no rows")


def csv_rows(files: Files, name: str, columns: Columns) -> Iterator[Row]:
    where, content = files.entries[name], files.read_text(name)
    csv.field_size_limit(MAX_CELL)
    separator = max(SEPARATORS, key=content.split("\n", 1)[0].count)
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=separator, strict=True)
    try:
        header = columns.header(where, next(reader, []))
        for number, cells in enumerate(row for row in reader if row):
            fault = None
            if len(cells) != len(header):
                fault = f"has {len(cells)} cells where the header has {len(header)}"
            if len(cells) > len(header):
                fault = f"{fault}; put texts with {SEPARATORS[separator]} in quotes"
            place = f"{where}: row {number} (line {reader.line_num})"
            yield Row(place, number, dict(zip(header, cells, strict=False)), fault)
    except csv.Error as error:
        reason = f"not valid CSV ({error}); check its quotes"
        raise UserError(f"{where}: line {reader.line_num}: {reason}") from None


def json_rows(files: Files, name: str, columns: Columns) -> Iterator[Row]:
    where = files.entries[name]
    try:
        records = json.loads(files.read_text(name))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not readable as JSON: {error}") from None
    if not isinstance(records, list):
        raise UserError(f"{where}: expected a list of records, found {type(records).__name__}")
    for number, record in enumerate(records):
        yield columns.row(f"{where}: record {number}", number, record)


def jsonl_rows(files: Files, name: str, columns: Columns) -> Iterator[Row]:
    for number, line in enumerate(files.read_text(name).split("\n")):
        place = f"{files.entries[name]}: line {number + 1}"
        if not line.strip():
            continue
        try:
            yield columns.row(place, number, json.loads(line))
        except (ValueError, RecursionError) as error:
            yield Row(place, number, {}, f"not readable as JSON: {error}")


def half_character(value: Any) -> str | None:
    """Returns what is wrong if a JSON text escapes half of a surrogate pair, which no file in UTF-8
    can hold."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ord(error.object[error.start])
        return f"holds half of a character (\\u{half:04x} alone); write the character as a whole"
    except RecursionError as error:
        return str(error)
    return None


def parquet_rows(files: Files, name: str, columns: Columns) -> Iterator[Row]:
    path = files.on_disk(name)
    file = open_parquet(path, required=())
    names = columns.header(path, file.schema_arrow.names)
    number = 0
    try:
        for batch in file.iter_batches(batch_size=32):  # rows may hold images
            for values in batch.rename_columns(names).to_pylist():
                yield Row(f"{path}: row {number}", number, values)
                number += 1
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        reason = f"damaged after row {number}: {str(error).splitlines()[0]}; fetch it again"
        raise UserError(f"{path}: {reason}") from None
