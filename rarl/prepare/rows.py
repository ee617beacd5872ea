"""Rows of CSV, JSON, JSON-lines and Parquet files, and the records that a source makes of them."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from rarl.data.parquet import open_parquet
from rarl.errors import UserError
from rarl.prepare.files import Fault, Files, ImageFile
from rarl.schema import AnswerType

SPLITS = ("train", "validation", "test")
MISSING_WORDS = ("nan", "null", "<na>", "#n/a")  # what programs write for a missing value
TABLE_PATTERNS = ("*.csv", "*.tsv", "*.jsonl", "*.json", "*.parquet")
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}  # of equally frequent ones, the first
MAX_CELL = 10_000_000  # characters: a quote that is never closed takes no more


class Omitted(Exception):
    """A row is sound but was not asked for, such as one in another language."""


@dataclass(frozen=True)
class Choices:
    """What a user may choose of a source, see `Source.takes`."""

    phrases: tuple[str, ...] = ("freeform", "para")  # vqa-rad: phrase types to keep
    language: str = "en"  # slake: en, zh or all
    images: str = "first"  # medxpertqa: of several images, the first or all side by side
    version: int | None = None  # pmc-vqa: 1 or 2, if the files of both are there


@dataclass(frozen=True)
class Row:
    """A row of a table. `fault` is set if the table itself is broken there."""

    where: str  # file and row, for messages
    number: int  # from 0, within its file
    values: dict[str, Any]
    fault: str | None = None

    def text(self, key: str) -> str:
        """Returns a required text. Raises Fault if it is missing or of a kind that is not text."""
        value, name = self.values.get(key), key.lower()
        if value != value:
            raise Fault(f"{name} is NaN")
        if not cleaned(value):
            raise Fault(f"{name} is empty")
        if not is_scalar(value):
            raise Fault(f"{name} is of type {type(value).__name__}, not text")
        text = cleaned(value)
        if text.lower() in MISSING_WORDS:
            raise Fault(f"{name} is '{text}', which programs write for a missing value")
        return text

    def optional(self, key: str) -> str | None:
        """Returns a text that may be absent or empty."""
        return cleaned(self.values.get(key)) or None


def cleaned(value: Any) -> str:
    """Returns the text of a cell without blanks around it, empty if it is missing. Programs make
    1.0 of 1 in a column with gaps; here it is 1 again."""
    if value is None or value != value:
        return ""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()


def is_scalar(value: Any) -> bool:
    """Returns whether it is a text or number that is there; True and NaN are neither."""
    return isinstance(value, str | int | float) and not isinstance(value, bool) and value == value


@dataclass(frozen=True)
class Record:
    """A row as its source understands it."""

    where: str  # file and row, for messages
    id: str
    image: ImageFile
    question: str
    answer: str
    answer_type: AnswerType | None = None  # choice with options, closed for yes and no, else open
    options: tuple[str, ...] | None = None
    texts: dict[str, str | None] = field(default_factory=dict)  # of `Example` by name: organ, …
    split: str = ""  # empty if neither the row nor the name of a file or folder tells
    image_id: str | None = None  # None: from the image's content
    frame: int = 0  # of a DICOM image
    mended: tuple[str, ...] = ()  # what was put right, in words that fit "3 answers: …"
    unused: tuple[str, ...] = ()  # columns of a table of your own that say nothing to RARL


@dataclass(frozen=True)
class BadRecord:
    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


@dataclass(frozen=True)
class LeftOut:
    """A row that was not asked for."""

    reason: str


Item = Record | BadRecord | LeftOut


def each(rows: Iterable[Row], make: Callable[[Row], Record]) -> Iterator[Item]:
    """Yields `make` of every row, with its Fault and Omitted as items."""
    for row in rows:
        try:
            if row.fault:
                raise Fault(row.fault)
            yield make(row)
        except Fault as fault:
            yield BadRecord(row.where, str(fault))
        except Omitted as reason:
            yield LeftOut(str(reason))


@dataclass(frozen=True)
class Columns:
    """The columns that a table must have, and those that are known in any case, with blanks."""

    required: Sequence[str] = ()
    known: Sequence[str] = ()

    def names(self, given: Iterable[str]) -> tuple[list[str], str | None]:
        """Returns the names as RARL knows them, and the first that is there twice."""
        plain = [name.strip() for name in given]
        names = [name.lower() if name.lower() in self.known else name for name in plain]
        return names, next((name for name, count in Counter(names).items() if count > 1), None)

    def header(self, where: object, given: Iterable[str]) -> list[str]:
        """Returns the names of a header. Raises UserError if it lacks one or has one twice."""
        names, twice = self.names(given)
        if not any(names):
            raise UserError(f"{where}: is empty; its first line must name the columns")
        if twice is not None:
            raise UserError(f"{where}: column '{twice}' is there twice")
        missing, has = next((n for n in self.required if n not in names), None), ", ".join(names)
        if missing is not None:
            raise UserError(f"{where}: column '{missing}' is missing (it has: {has})")
        return names

    def row(self, where: str, number: int, record: Any) -> Row:
        """Returns a JSON object as a row."""
        if not isinstance(record, dict):
            return Row(where, number, {}, f"expected an object, found {type(record).__name__}")
        names, twice = self.names(record)
        faults = [f"key '{key}' is missing" for key in self.required if key not in names]
        if twice is not None:
            faults.insert(0, f"key '{twice}' is there twice")
        values = dict(zip(names, record.values(), strict=True))
        return Row(where, number, values, half_character(record) or next(iter(faults), None))


def read_table(
    files: Files, name: str, required: Sequence[str] = (), known: Sequence[str] = ()
) -> Iterator[Row]:
    """Yields the rows of a file, which is read by its ending. Raises UserError if the file as a
    whole cannot be read or lacks a column or all rows."""
    readers = {".csv": csv_rows, ".tsv": csv_rows, ".json": json_rows, ".jsonl": json_rows}
    readers[".parquet"] = parquet_rows
    ending = PurePosixPath(name).suffix.lower()
    if ending not in readers:
        endings = ", ".join(readers)
        raise UserError(f"{files.entries[name]}: not a table that can be read; known are {endings}")
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
        line = f"{where}: line {reader.line_num}"
        raise UserError(f"{line}: not valid CSV ({error}); check its quotes") from None


def json_rows(files: Files, name: str, columns: Columns) -> Iterator[Row]:
    """JSON is one list of objects, JSON lines are an object in each line."""
    where, text = files.entries[name], files.read_text(name)
    if name.lower().endswith(".jsonl"):
        for number, line in enumerate(text.split("\n")):
            place = f"{where}: line {number + 1}"
            try:
                if line.strip():
                    yield columns.row(place, number, json.loads(line))
            except (ValueError, RecursionError) as error:
                yield Row(place, number, {}, f"not readable as JSON: {error}")
        return
    try:
        records = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not readable as JSON: {error}") from None
    if not isinstance(records, list):
        raise UserError(f"{where}: expected a list of records, found {type(records).__name__}")
    for number, record in enumerate(records):
        yield columns.row(f"{where}: record {number}", number, record)


def half_character(value: Any) -> str | None:
    """Says so if JSON escapes half of a surrogate pair, which no file in UTF-8 can hold."""
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
    names, number = columns.header(path, file.schema_arrow.names), 0
    try:
        for batch in file.iter_batches(batch_size=32):  # rows may hold images
            for values in batch.rename_columns(names).to_pylist():
                yield Row(f"{path}: row {number}", number, values)
                number += 1
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        reason = f"damaged after row {number}: {str(error).splitlines()[0]}; fetch it again"
        raise UserError(f"{path}: {reason}") from None
