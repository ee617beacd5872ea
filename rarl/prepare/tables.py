"""The rows of CSV, JSON, JSON-lines and Parquet files and of Excel workbooks, with their places as
the user's editor counts them."""

from __future__ import annotations

import ast
import csv
import difflib
import io
import json
import re
import shlex
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from rarl.data.parquet import open_parquet
from rarl.errors import UserError
from rarl.prepare.files import MAX_FILE_BYTES, Fault, Files
from rarl.prepare.rows import Row, cleaned

TABLE_PATTERNS = ("*.csv", "*.tsv", "*.jsonl", "*.json", "*.parquet", "*.xlsx")
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}  # of equally frequent ones, the first
MAX_CELL = 10_000_000  # characters: a quote that is never closed takes no more
# Texts without a comma between, as NumPy shows them; Python would make one text of them.
JOINED = re.compile(r"""['"]\s+['"]""")

# What others call a column that RARL reads, beside its own name.
ALSO_CALLED = {
    "image": ("img", "file", "filename", "path", "picture", "dicom"),
    "question": ("query", "prompt"),
    "answer": ("label", "response", "reply"),
    "options": ("choices", "alternatives"),
    "rationale": ("explanation", "reasoning"),
    "split": ("subset", "partition"),
    "patient": ("subject", "mrn", "pid"),
    "study": ("accession", "exam"),
    "site": ("hospital", "institution", "centre", "center"),
}


def near_column(wanted: str, given: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Returns the column that is probably meant: one that has the wanted name, or another word for
    it, among its words; else one that is spelt alike (difflib's ratio is at least `cutoff`)."""
    words = {name: re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower() for name in given}
    for word in (wanted, *ALSO_CALLED.get(wanted, ())):
        for name, text in words.items():
            if word in re.split(r"[\W\d_]+", text):
                return name
    alike = {name.lower(): name for name in words}
    close = difflib.get_close_matches(wanted, alike, n=1, cutoff=cutoff)
    return alike[close[0]] if close else None


def as_map(names: Mapping[str, str]) -> str:
    """Returns the options that name a table's own columns, to be pasted into a shell."""
    return " ".join(f"--map {name}={shlex.quote(theirs)}" for name, theirs in names.items())


@dataclass(frozen=True)
class Columns:
    """The columns that a table must have, and those that are known in any case, with blanks.
    `mapped` gives for some of them what the table calls them."""

    required: Sequence[str] = ()
    known: Sequence[str] = ()
    mapped: Mapping[str, str] = field(default_factory=dict)

    def names(self, given: Iterable[Any]) -> tuple[list[str], str | None]:
        """Returns the names as RARL knows them, and the first that is there twice. A column without
        a name, or in whose place --map names another, has the empty one."""
        plain = [cleaned(name) for name in given]
        folded = [name.casefold() for name in plain]
        names = [name.lower() if name.lower() in self.known else name for name in plain]
        for name, theirs in self.mapped.items():
            names = ["" if one == name else one for one in names]
            if theirs in plain:
                names[plain.index(theirs)] = name
            elif theirs.casefold() in folded:
                names[folded.index(theirs.casefold())] = name
        counts = Counter(name for name in names if name)
        return names, next((name for name, count in counts.items() if count > 1), None)

    def missing(self, names: Sequence[str], given: Sequence[str], what: str) -> str | None:
        """Returns a sentence if a required column or key is missing, with those that may be it.
        `given` are the names as they are written there."""
        missing = [name for name in self.required if name not in names]
        if not missing:
            return None
        called = ", ".join(f"'{self.mapped.get(name, name)}'" for name in missing)
        lacks = (
            f"{what} {called} is missing" if len(missing) == 1 else f"{what}s {called} are missing"
        )
        told = f"{lacks} (it has: {', '.join(filter(None, given))})"
        others = [name for name in names if name and name not in self.known]
        near = {name: found for name in missing if (found := near_column(name, others))}
        if near:
            told += f"; did you mean {', '.join(map(repr, near.values()))}?"
        if self.known:
            asked = as_map({name: near.get(name, "COLUMN") for name in missing})
            told += f" Then add {asked}" if near else f"; name it with {asked}"
        return told

    def header(self, where: object, given: Iterable[Any]) -> list[str]:
        """Returns the names of a header. Raises UserError if it lacks one or has one twice."""
        plain = [cleaned(name) for name in given]
        names, twice = self.names(plain)
        if not any(names):
            raise UserError(f"{where}: is empty; its first line must name the columns")
        if twice is not None:
            raise UserError(f"{where}: column '{twice}' is there twice")
        for name, theirs in self.mapped.items():
            if name not in names:
                near = near_column(theirs.lower(), plain)
                advice = f"; did you mean {as_map({name: near})}?" if near else ""
                fault = f"has no column '{theirs}' (it has: {', '.join(filter(None, plain))})"
                raise UserError(f"{where}: {fault}{advice}")
        missing = self.missing(names, plain, "column")
        if missing is not None:
            raise UserError(f"{where}: {missing}")
        return names

    def row(self, where: str, number: int, record: Any, line: int | None = None) -> Row:
        """Returns a JSON object as a row."""
        if not isinstance(record, dict):
            return Row(where, number, {}, f"expected an object, found {type(record).__name__}")
        names, twice = self.names(record)
        fault = half_character(record) or self.missing(names, list(record), "key")
        if twice is not None:
            fault = f"key '{twice}' is there twice"
        values = dict(zip(names, record.values(), strict=True))
        lacking = [theirs for name, theirs in self.mapped.items() if name not in names]
        mended = tuple(f"records have no key '{theirs}', which --map names" for theirs in lacking)
        return Row(where, number, values, fault, line, mended)


def read_list(text: str, column: str) -> Any:
    """Returns what a text that looks like a list holds. Raises Fault, which names the column."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        try:
            value = None if JOINED.search(text) else ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            value = None
    if value is None or half_character(value):
        raise Fault(f"{column} {text!r} look like a JSON or Python list but are none")
    return value


def read_table(
    files: Files,
    name: str,
    required: Sequence[str] = (),
    known: Sequence[str] = (),
    mapped: Mapping[str, str] | None = None,
) -> Iterator[Row]:
    """Yields the rows of a file, which is read by its ending. Raises UserError if the file as a
    whole cannot be read or lacks a column or all rows."""
    readers = {".csv": csv_rows, ".tsv": csv_rows, ".json": json_rows, ".jsonl": json_rows}
    readers |= {".parquet": parquet_rows, ".xlsx": xlsx_rows}
    ending = PurePosixPath(name).suffix.lower()
    if ending not in readers:
        endings = ", ".join(readers)
        raise UserError(f"{files.entries[name]}: not a table that can be read; known are {endings}")
    row = None
    for row in readers[ending](files, name, Columns(required, known, mapped or {})):
        yield row
    if row is None:
        raise UserError(f"{files.entries[name]}: holds no rows")


def csv_rows(files: Files, name: str, columns: Columns) -> Iterator[Row]:
    where, (content, mended) = files.entries[name], files.read_table_text(name)
    csv.field_size_limit(MAX_CELL)
    separator = max(SEPARATORS, key=content.split("\n", 1)[0].count)
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=separator, strict=True)
    following, number = 1, 0  # the line in which the next row begins
    try:
        header = columns.header(where, next(reader, []))
        following = reader.line_num + 1
        for in_sheet, cells in enumerate(reader, start=2):
            line, following = following, reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            fault = None
            if len(cells) != len(header):
                fault = f"has {len(cells)} cells where the header has {len(header)}"
            if len(cells) > len(header):
                fault = f"{fault}; put texts with {SEPARATORS[separator]} in quotes"
            # They differ below a cell of several lines.
            counted = f" (row {in_sheet} of a spreadsheet)" if in_sheet != line else ""
            values = dict(zip(header, cells, strict=False))
            yield Row(f"{where}: line {line}{counted}", number, values, fault, line, mended)
            number += 1
    except csv.Error as error:
        begun = f"{where}: the row that begins in line {following}"
        raise UserError(f"{begun}: not valid CSV ({error}); check its quotes") from None


def xlsx_rows(files: Files, name: str, columns: Columns) -> Iterator[Row]:
    """Of several sheets, the one that has the columns is read."""
    where, sheets = files.entries[name], read_sheets(files, name)
    filled = {title: rows for title, rows in sheets.items() if rows}
    fitting = [
        title
        for title, rows in filled.items()
        if columns.missing(columns.names(rows[0][1])[0], (), "column") is None
    ]
    if len(fitting) > 1:
        both = f"the sheets {', '.join(map(repr, fitting))} all have the columns"
        raise UserError(f"{where}: {both}; save the one that is meant as a file of its own")
    title = next(iter(fitting or filled), "")
    place = f"{where}: sheet '{title}'" if len(sheets) > 1 and title else str(where)
    (_, given), *rows = filled.get(title, [(1, [])])
    header = columns.header(place, given)
    for number, (line, cells) in enumerate(rows):
        beyond = any(cell is not None for cell in cells[len(header) :])
        fault = f"has cells beyond the {len(header)} columns of the header" if beyond else None
        given = [*cells, *[None] * len(header)][: len(header)]
        yield Row(
            f"{place}: row {line}", number, dict(zip(header, given, strict=True)), fault, line
        )


def read_sheets(files: Files, name: str) -> dict[str, list[tuple[int, list[Any]]]]:
    """Returns for each sheet that is shown its rows that are not empty, with their numbers. Raises
    UserError."""
    from openpyxl import load_workbook  # takes a while to import

    where, content = files.entries[name], files.read_whole(name)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(member.file_size for member in archive.infolist()) > MAX_FILE_BYTES:
                raise ValueError(f"it is larger than {MAX_FILE_BYTES >> 20} MiB unpacked")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of features that say nothing to the values
            book = load_workbook(io.BytesIO(content), read_only=True, data_only=True)
            found = {}
            for sheet in (one for one in book.worksheets if one.sheet_state == "visible"):
                sheet.reset_dimensions()  # some programs write wrong ones
                rows = enumerate((list(row) for row in sheet.iter_rows(values_only=True)), start=1)
                found[sheet.title] = [row for row in rows if any(map(cleaned, row[1]))]
            return found
    except Exception as error:  # openpyxl has no kind of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        advice = "save it again as .xlsx without a password, or as CSV UTF-8"
        raise UserError(f"{where}: not a readable workbook ({reason}); {advice}") from None


def json_rows(files: Files, name: str, columns: Columns) -> Iterator[Row]:
    """JSON is one list of objects, JSON lines are an object in each line."""
    where, text = files.entries[name], files.read_text(name)
    if name.lower().endswith(".jsonl"):
        for number, line in enumerate(text.split("\n")):
            place = f"{where}: line {number + 1}"
            try:
                if line.strip():
                    yield columns.row(place, number, json.loads(line), number + 1)
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
