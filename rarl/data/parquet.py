"""Canonical Parquet: written by `rarl prepare`, read by row number."""

from __future__ import annotations

import bisect
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rarl.data.columns import REQUIRED, SCHEMA, damage_named, open_canonical
from rarl.data.mixture import read_mixture
from rarl.errors import UserError
from rarl.files import replacing
from rarl.schema import Example

# Row groups are small, since training reads rows in random order and a row group is the unit of
# reading.
ROW_GROUP_ROWS = 32
ROW_GROUP_BYTES = 4 << 20  # of images, where these are large
CACHED_ROW_GROUPS = 8
SHARD_BYTES = 256 << 20  # of images in one file; above it a split is a folder of files


def write_examples(path: Path, examples: Iterable[Example]) -> int:
    """Writes one Parquet file, whole or not at all; returns the number of rows."""
    with replacing(path) as temporary, ExampleWriter(temporary) as writer:
        for example in examples:
            writer.add(example)
    return writer.rows


class ExampleWriter:
    """One Parquet file, row group by row group. Call within `with`."""

    def __init__(self, path: Path) -> None:
        self.writer = pq.ParquetWriter(path, SCHEMA)
        self.group: list[dict[str, Any]] = []
        self.rows = self.group_bytes = self.image_bytes = 0

    def __enter__(self) -> ExampleWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.flush()
        self.writer.close()

    def add(self, example: Example) -> None:
        self.group.append(to_row(example))
        self.rows += 1
        self.group_bytes += len(example.image)
        self.image_bytes += len(example.image)
        if len(self.group) == ROW_GROUP_ROWS or self.group_bytes >= ROW_GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        if self.group:
            self.writer.write_table(pa.Table.from_pylist(self.group, schema=SCHEMA))
            self.group, self.group_bytes = [], 0


class ShardWriter:
    """A split that may be large: NAME.parquet is one file, or a folder of that name with files
    00000.parquet and so on where the images exceed SHARD_BYTES. Both are read by the same path.
    Call within `with`."""

    def __init__(self, path: Path) -> None:
        self.path, self.parts = path, path.with_name(f".{path.name}.parts")
        self.parts.mkdir(parents=True)
        self.current: ExampleWriter | None = None
        self.shards = self.rows = 0

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.end_shard()
        if kind is None and self.shards == 1:
            (self.parts / "00000.parquet").replace(self.path)
            self.parts.rmdir()
        elif kind is None and self.shards:
            self.parts.replace(self.path)

    def add(self, example: Example) -> None:
        if self.current is None:
            self.current = ExampleWriter(self.parts / f"{self.shards:05d}.parquet")
            self.shards += 1
        self.current.add(example)
        self.rows += 1
        if self.current.image_bytes >= SHARD_BYTES:
            self.end_shard()

    def end_shard(self) -> None:
        if self.current is not None:
            self.current.__exit__(None)
            self.current = None


def to_row(example: Example) -> dict[str, Any]:
    row = {name: getattr(example, name) for name in SCHEMA.names}
    row["options"] = None if example.options is None else list(example.options)
    return row


def from_row(row: dict[str, Any]) -> Example:
    """Columns that are absent count as null, and null as empty where there must be something: the
    checks find that."""
    options = row.get("options")
    known = {name: row.get(name) for name in SCHEMA.names}
    texts = {name: row.get(name) or "" for name in (*REQUIRED, "dataset", "split")}
    image = {"image": row.get("image") or b""}
    listed = None if options is None else tuple(option or "" for option in options)
    return Example(**known | texts | image | {"options": listed})


CARD = "dataset.json"  # beside the splits that `rarl prepare` writes


def parquet_files(path: Path) -> list[Path]:
    """The Parquet files of a file, a folder or a folder of folders, in name order. Raises UserError
    for none, and for a shard that the data set's card names and that is not there."""
    if path.is_dir():
        inner = [
            parquet_files(one) if one.is_dir() else [one] for one in sorted(path.glob("*.parquet"))
        ]
        files = [file for found in inner for file in found]
    else:
        files = [path] if path.is_file() else []
    if not files and path.exists():
        raise UserError(f"{path}: holds no Parquet file; make one with `rarl prepare`")
    if not files:
        raise UserError(
            f"{path}: no such Parquet file or folder of Parquet files; make one with `rarl prepare`"
        )
    for folder in (path, path.parent):
        if path.is_dir() and (folder / CARD).is_file():
            require_shards(folder, path)
    return files


def require_shards(folder: Path, path: Path) -> None:
    """Raises UserError for a file below `path` that the card in `folder` names and that is not
    there."""
    try:
        named = [
            folder / file["path"]
            for file in json.loads((folder / CARD).read_text(encoding="utf-8"))["files"]
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return  # not a card of ours
    for file in named:
        if file.is_relative_to(path) and not file.is_file():
            raise UserError(
                f"{file}: is missing, though {folder / CARD} names it; prepare the data set again"
            )


@dataclass(frozen=True)
class RowRange:
    """The rows of one data set of a mixture: `start` to `stop` - 1."""

    path: Path
    start: int
    stop: int
    weight: float


class ParquetRows:
    """Random access by row number to canonical data: a Parquet file, all Parquet files of a folder
    in name order, or a mixture (see `rarl.data.mixture`), whose data sets follow each other.

    Raises UserError when there is no such file, no row, a required column is missing, a column is
    of another type, or a part of a file cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.parts: list[RowRange] = []
        self.files: list[pq.ParquetFile] = []
        self.paths: list[Path] = []  # of the files
        for part in read_mixture(self.path):
            paths = parquet_files(part.path)
            opened = [open_canonical(path) for path in paths]
            start = self.parts[-1].stop if self.parts else 0
            rows = sum(file.metadata.num_rows for file in opened)
            if not rows:
                raise UserError(f"{part.path}: holds no rows")
            self.parts.append(RowRange(part.path, start, start + rows, part.weight))
            self.files += opened
            self.paths += paths
        self.groups = [
            (f, g) for f, file in enumerate(self.files) for g in range(file.num_row_groups)
        ]
        self.starts = [0]  # row number at which each group starts, and the total
        for f, g in self.groups:
            self.starts.append(self.starts[-1] + self.files[f].metadata.row_group(g).num_rows)
        self.read_group = lru_cache(maxsize=CACHED_ROW_GROUPS)(self._read_group)

    def __len__(self) -> int:
        return self.starts[-1]

    def _read_group(self, group: int) -> list[dict[str, Any]]:
        file, number = self.groups[group]
        columns = [name for name in SCHEMA.names if name in self.files[file].schema_arrow.names]
        with damage_named(self.paths[file], f"row group {number}"):
            rows: list[dict[str, Any]] = (
                self.files[file].read_row_group(number, columns=columns).to_pylist()
            )
        return rows

    def column(self, name: str) -> list[Any]:
        """One column of all rows, in their order, without reading the images; None where it is
        absent or null, or the empty text where there must be one."""
        values: list[Any] = []
        for path, file in zip(self.paths, self.files, strict=True):
            known = name in file.schema_arrow.names
            with damage_named(path, f"column '{name}'"):
                values += (
                    file.read(columns=[name])[name].to_pylist()
                    if known
                    else [None] * file.metadata.num_rows
                )
        return [value or "" for value in values] if name in REQUIRED else values

    def read(self, rows: Sequence[int]) -> list[Example]:
        """The examples at these row numbers, in this order."""
        examples = []
        for row in rows:
            group = bisect.bisect_right(self.starts, row) - 1
            examples.append(from_row(self.read_group(group)[row - self.starts[group]]))
        return examples
