"""The canonical Parquet schema: written by `rarl prepare`, read by row number."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rarl.errors import UserError
from rarl.files import replacing
from rarl.schema import Example

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("question", pa.string(), nullable=False),
        pa.field("answer", pa.string(), nullable=False),
        pa.field("answer_type", pa.string(), nullable=False),
        pa.field("options", pa.list_(pa.string())),
        pa.field("rationale", pa.string()),
        pa.field("modality", pa.string()),
        pa.field("organ", pa.string()),
        pa.field("dataset", pa.string()),
        pa.field("split", pa.string()),
    ]
)
REQUIRED = [field.name for field in SCHEMA if not field.nullable]
ROW_GROUP_ROWS = 32  # small, since training reads rows in random order and a row group is the unit of reading
CACHED_ROW_GROUPS = 8


def write_examples(path: Path, examples: Iterable[Example]) -> int:
    """Writes one Parquet file, whole or not at all; returns the number of rows."""
    count = 0
    with replacing(path) as temporary, pq.ParquetWriter(temporary, SCHEMA) as writer:
        group: list[dict[str, Any]] = []
        for example in examples:
            group.append(to_row(example))
            count += 1
            if len(group) == ROW_GROUP_ROWS:
                writer.write_table(pa.Table.from_pylist(group, schema=SCHEMA))
                group = []
        if group:
            writer.write_table(pa.Table.from_pylist(group, schema=SCHEMA))
    return count


def to_row(example: Example) -> dict[str, Any]:
    row = {name: getattr(example, name) for name in SCHEMA.names}
    row["options"] = None if example.options is None else list(example.options)
    return row


def from_row(row: dict[str, Any]) -> Example:
    """Columns that are absent count as null."""
    options = row.get("options")
    known = {name: row.get(name) for name in SCHEMA.names}
    texts = {name: row.get(name) or "" for name in ("dataset", "split")}
    return Example(**known | texts | {"options": None if options is None else tuple(options)})


class ParquetRows:
    """Random access by row number to a Parquet file or to all Parquet files of a folder, in name order.

    Raises UserError when there is no such file, no row, or a required column is missing.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        files = sorted(self.path.glob("*.parquet")) if self.path.is_dir() else [self.path]
        if not files or not all(file.is_file() for file in files):
            raise UserError(f"{path}: no such Parquet file or folder of Parquet files; make one with `rarl prepare`")
        self.files = [open_parquet(file, advice="; convert it with `rarl prepare`") for file in files]
        self.groups = [(f, g) for f, file in enumerate(self.files) for g in range(file.num_row_groups)]
        self.starts = [0]  # row number at which each group starts, and the total
        for f, g in self.groups:
            self.starts.append(self.starts[-1] + self.files[f].metadata.row_group(g).num_rows)
        if not len(self):
            raise UserError(f"{path}: holds no rows")
        self.read_group = lru_cache(maxsize=CACHED_ROW_GROUPS)(self._read_group)

    def __len__(self) -> int:
        return self.starts[-1]

    def _read_group(self, group: int) -> list[dict[str, Any]]:
        file, number = self.groups[group]
        columns = [name for name in SCHEMA.names if name in self.files[file].schema_arrow.names]
        rows: list[dict[str, Any]] = self.files[file].read_row_group(number, columns=columns).to_pylist()
        return rows

    def column(self, name: str) -> list[Any]:
        """One column of all rows, in their order, without reading the images; None where it is absent."""
        values: list[Any] = []
        for file in self.files:
            known = name in file.schema_arrow.names
            values += file.read(columns=[name])[name].to_pylist() if known else [None] * file.metadata.num_rows
        return values

    def read(self, rows: Sequence[int]) -> list[Example]:
        """The examples at these row numbers, in this order."""
        examples = []
        for row in rows:
            group = bisect.bisect_right(self.starts, row) - 1
            examples.append(from_row(self.read_group(group)[row - self.starts[group]]))
        return examples


def open_parquet(path: Path, required: Sequence[str] = REQUIRED, advice: str = "") -> pq.ParquetFile:
    """Raises UserError when the file is not Parquet or lacks a required column; `advice` then ends the message."""
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: not a readable Parquet file: {str(error).splitlines()[0]}") from None
    missing = [name for name in required if name not in file.schema_arrow.names]
    if missing:
        has = ", ".join(file.schema_arrow.names)
        raise UserError(f"{path}: column '{missing[0]}' is missing (it has: {has}){advice}")
    return file
