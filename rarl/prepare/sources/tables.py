"""Rows of CSV, JSON, JSON-lines and Parquet files, each with the place that messages name."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from rarl.data.columns import open_parquet
from rarl.errors import UserError
from rarl.prepare.sources.files import Files
from rarl.prepare.sources.record import Row

TABLE_PATTERNS = ("*.csv", "*.tsv", "*.jsonl", "*.json", "*.parquet")
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}  # of equally frequent ones, the first
# characters; a quote that is never closed would otherwise take the rest of the file
MAX_CELL = 10_000_000


def read_table(
    files: Files, name: str, required: Sequence[str] = (), known: Sequence[str] = ()
) -> Iterator[Row]:
    """By the file's ending. Columns are taken for those of `known` whatever their case and the
    blanks around them. Raises UserError where the file as a whole cannot be read or lacks a column
    or all rows."""
    readers = {
        ".csv": csv_rows,
        ".tsv": csv_rows,
        ".json": json_rows,
        ".jsonl": jsonl_rows,
        ".parquet": parquet_rows,
    }
    ending = PurePosixPath(name).suffix.lower()
    if ending not in readers:
        raise UserError(
            f"{files.entries[name]}: not a table that can be read; known are {', '.join(readers)}"
        )
    empty = True
    for row in readers[ending](files, name, required, known):
        empty = False
        yield row
    if empty:
        raise UserError(f"{files.entries[name]}: holds no rows")


def csv_rows(
    files: Files, name: str, required: Sequence[str], known: Sequence[str]
) -> Iterator[Row]:
    where = files.entries[name]
    csv.field_size_limit(MAX_CELL)
    content = files.read_text(name)
    first = content.split("\n", 1)[0]
    separator = max(SEPARATORS, key=first.count)
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=separator, strict=True)
    try:
        header = [known_name(column, known) for column in next(reader, [])]
        require_columns(str(where), header, required)
        for number, cells in enumerate(row for row in reader if row):
            place = f"{where}: row {number} (line {reader.line_num})"
            ragged = f"has {len(cells)} cells where the header has {len(header)}"
            if len(cells) > len(header):
                ragged += f"; put texts with {SEPARATORS[separator]} in quotes"
            fault = ragged if len(cells) != len(header) else None
            yield Row(place, number, dict(zip(header, cells, strict=False)), fault)
    except csv.Error as error:
        raise UserError(
            f"{where}: line {reader.line_num}: not valid CSV ({error}); check its quotes"
        ) from None


def json_rows(
    files: Files, name: str, required: Sequence[str], known: Sequence[str]
) -> Iterator[Row]:
    where = files.entries[name]
    try:
        records = json.loads(files.read_text(name))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not readable as JSON: {error}") from None
    if not isinstance(records, list):
        raise UserError(f"{where}: expected a list of records, found {type(records).__name__}")
    for number, record in enumerate(records):
        yield object_row(f"{where}: record {number}", number, record, required, known)


def jsonl_rows(
    files: Files, name: str, required: Sequence[str], known: Sequence[str]
) -> Iterator[Row]:
    where = files.entries[name]
    for number, line in enumerate(files.read_text(name).split("\n")):
        if not line.strip():
            continue
        place = f"{where}: line {number + 1}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Row(place, number, {}, f"not readable as JSON: {error}")
            continue
        yield object_row(place, number, record, required, known)


def object_row(
    place: str, number: int, record: Any, required: Sequence[str], known: Sequence[str]
) -> Row:
    if not isinstance(record, dict):
        return Row(place, number, {}, f"expected an object, found {type(record).__name__}")
    try:
        require_whole_characters(record)
    except (ValueError, RecursionError) as error:
        return Row(place, number, {}, str(error))
    names = [known_name(key, known) for key in record]
    twice = repeated(names)
    if twice is not None:
        return Row(place, number, {}, f"key '{twice}' is there twice")
    record = dict(zip(names, record.values(), strict=True))
    missing = [key for key in required if key not in record]
    return Row(place, number, record, f"key '{missing[0]}' is missing" if missing else None)


def require_whole_characters(value: Any) -> None:
    """Raises ValueError where a JSON text escapes half of a surrogate pair, which no file in UTF-8
    can hold."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ord(error.object[error.start])
        raise ValueError(
            f"holds half of a character (\\u{half:04x} alone); write the character as a whole"
        ) from None


def parquet_rows(
    files: Files, name: str, required: Sequence[str], known: Sequence[str]
) -> Iterator[Row]:
    path = files.on_disk(name)
    file = open_parquet(path, required=())
    names = [known_name(column, known) for column in file.schema_arrow.names]
    require_columns(str(path), names, required)
    number = 0
    try:
        for batch in file.iter_batches(batch_size=32):  # rows may hold images
            for values in batch.rename_columns(names).to_pylist():
                yield Row(f"{path}: row {number}", number, values)
                number += 1
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: damaged after row {number}: {str(error).splitlines()[0]}; fetch it again"
        ) from None


def require_columns(where: str, header: Sequence[str], required: Sequence[str]) -> None:
    if not any(header):
        raise UserError(f"{where}: is empty; its first line must name the columns")
    twice = repeated(header)
    if twice is not None:
        raise UserError(f"{where}: column '{twice}' is there twice")
    missing = [column for column in required if column not in header]
    if missing:
        raise UserError(f"{where}: column '{missing[0]}' is missing (it has: {', '.join(header)})")


def known_name(column: str, known: Sequence[str]) -> str:
    plain = column.strip()
    return plain.lower() if plain.lower() in known else plain


def repeated(names: Sequence[str]) -> str | None:
    """The first that is there twice."""
    return next((name for name, count in Counter(names).items() if count > 1), None)
