"""Canonical Parquet: one row for each `Example`, whose fields are the columns, read by row number.
A new text field is written and read with no edit here; older files need not have its column.
A mixture is a YAML file that stands for several data sets, such as `slake/train.parquet: 3`."""

from __future__ import annotations

import bisect
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from rarl.errors import UserError
from rarl.files import replacing
from rarl.schema import Box, Example

BOX = pa.struct(
    [("label", pa.string()), *((name, pa.float64()) for name in ("x1", "y1", "x2", "y2"))]
)
KINDS = {
    bytes: pa.binary(),
    tuple[str, ...] | None: pa.list_(pa.string()),
    tuple[float, ...] | None: pa.list_(pa.float64()),
    tuple[Box, ...] | None: pa.list_(BOX),
    dict[str, str | None]: pa.map_(pa.string(), pa.string()),
}
HINTS = get_type_hints(Example)
SCHEMA = pa.schema(
    pa.field(
        one.name,
        KINDS.get(HINTS[one.name], pa.string()),
        (one.default, one.default_factory) != (MISSING, MISSING),
    )
    for one in fields(Example)
)
REQUIRED = [field.name for field in SCHEMA if not field.nullable]
# What stands for null, by field: None where the field may be None, else the empty value.
EMPTY: dict[str, Any] = {name: b"" if name == "image" else "" for name in REQUIRED}
EMPTY |= {one.name: one.default for one in fields(Example) if one.default is not MISSING}
# Further texts about a question that a table of one's own may hold under the fields' names.
MORE_TEXTS = [n for n, hint in HINTS.items() if n not in REQUIRED and hint in (str, str | None)]
MORE_TEXTS = [name for name in MORE_TEXTS if name not in ("dataset", "split")]

CARD = "dataset.json"  # beside the splits that `rarl prepare` writes
# A row group is the unit of reading. It is small, since training reads rows in random order.
ROW_GROUP_ROWS = 32
ROW_GROUP_BYTES = 4 << 20  # of images, where these are large
CACHED_ROW_GROUPS = 8
SHARD_BYTES = 256 << 20  # of images in one file; above it a split is a folder of files
MIXTURE_ENDINGS = (".yaml", ".yml")


def from_row(row: dict[str, Any]) -> Example:
    """Returns the example of a row. Absent columns count as null, and null as an empty text where
    there must be one: the checks find that."""
    given = {name: value for name in SCHEMA.names if (value := row.get(name)) is not None}
    if isinstance(given.get("boxes"), list):
        given["boxes"] = tuple(map(box_of, given["boxes"]))
    for name in (name for name, value in given.items() if isinstance(value, list)):
        absent = "" if name in ("options", "facts") else 0.0
        given[name] = tuple(absent if one is None else one for one in given[name])
    if "extra" in given:
        given["extra"] = dict(given["extra"])
    return Example(**EMPTY | given)


def box_of(held: dict[str, Any] | None) -> Box:
    """Returns a box of a row. What is null in it is NaN or an empty label: the checks find that."""
    given = {name: value for name, value in (held or {}).items() if value is not None}
    return Box(**dict.fromkeys(("x1", "y1", "x2", "y2"), math.nan) | {"label": ""} | given)


def write_examples(path: Path, examples: Iterable[Example]) -> int:
    """Writes one Parquet file, whole or not at all; returns the number of rows."""
    rows = 0
    with replacing(path) as temporary, pq.ParquetWriter(temporary, SCHEMA) as writer:
        for group in row_groups(examples):
            writer.write_table(group)
            rows += len(group)
    return rows


def write_split(path: Path, examples: Iterable[Example]) -> None:
    """Writes a split that may be large: `path` is one file, or a folder of that name with files
    00000.parquet and so on if the images exceed SHARD_BYTES. Both are read by the same path."""
    parts = path.with_name(f".{path.name}.parts")
    parts.mkdir(parents=True)
    groups, shards = row_groups(examples), 0
    while (group := next(groups, None)) is not None:
        with pq.ParquetWriter(parts / f"{shards:05d}.parquet", SCHEMA) as writer:
            size = 0
            while group is not None:
                writer.write_table(group)
                size += group["image"].nbytes
                group = next(groups, None) if size < SHARD_BYTES else None
        shards += 1
    if shards == 1:
        (parts / "00000.parquet").replace(path)
        parts.rmdir()
    else:
        parts.replace(path)


def row_groups(examples: Iterable[Example]) -> Iterator[pa.Table]:
    """Yields the rows in groups of at most ROW_GROUP_ROWS, fewer if their images are large."""
    rows: list[dict[str, Any]] = []
    size = 0
    for example in examples:
        row = {name: getattr(example, name) for name in SCHEMA.names}
        row["boxes"] = None if example.boxes is None else [asdict(one) for one in example.boxes]
        rows.append(row)
        size += len(example.image)
        if len(rows) == ROW_GROUP_ROWS or size >= min(ROW_GROUP_BYTES, SHARD_BYTES):
            yield pa.Table.from_pylist(rows, schema=SCHEMA)
            rows, size = [], 0
    if rows:
        yield pa.Table.from_pylist(rows, schema=SCHEMA)


def open_parquet(
    path: Path, required: Sequence[str] = REQUIRED, advice: str = ""
) -> pq.ParquetFile:
    """Opens a Parquet file. Raises UserError if it is not Parquet or lacks a required column;
    `advice` then ends the message."""
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"{path}: not a readable Parquet file: {reason}{advice}") from None
    has = file.schema_arrow.names
    missing, listed = next((n for n in required if n not in has), None), ", ".join(has)
    if missing is not None:
        raise UserError(f"{path}: column '{missing}' is missing (it has: {listed}){advice}")
    return file


def open_canonical(path: Path) -> pq.ParquetFile:
    """Opens a file of examples. Raises UserError if a column is missing or of another type."""
    advice = "; convert it with `rarl prepare`"
    file = open_parquet(path, advice=advice)
    for found in (one for one in file.schema_arrow if one.name in SCHEMA.names):
        wanted = SCHEMA.field(found.name).type
        if not holds(found.type, wanted):
            kinds = f"is of type {found.type}, not {wanted}"
            raise UserError(f"{path}: column '{found.name}' {kinds}{advice}")
    return file


def holds(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Returns whether values of `found` are read as `wanted`, in another width or encoding too."""
    kind = pa.types
    if kind.is_dictionary(found):
        found = found.value_type
    if kind.is_null(found):
        return True
    if kind.is_list(wanted):
        lists = (kind.is_list, kind.is_large_list, kind.is_fixed_size_list)
        return any(is_one(found) for is_one in lists) and holds(found.value_type, wanted.value_type)
    if kind.is_map(wanted):
        return kind.is_map(found) and holds(found.item_type, wanted.item_type)
    if kind.is_struct(wanted):
        if not kind.is_struct(found) or found.num_fields != wanted.num_fields:
            return False
        names = {one.name for one in found}
        return all(
            one.name in names and holds(found.field(one.name).type, one.type) for one in wanted
        )
    if kind.is_floating(wanted):
        return kind.is_floating(found) or kind.is_integer(found)
    texts = (pa.string(), pa.large_string(), pa.string_view())
    binaries = (pa.binary(), pa.large_binary(), pa.binary_view())
    if kind.is_binary(wanted):
        return kind.is_fixed_size_binary(found) or found in binaries
    return found in texts


@contextmanager
def damage_named(path: Path, part: str) -> Iterator[None]:
    """Raises UserError in place of what pyarrow raises for pages that it cannot decode."""
    try:
        yield
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        reason = f"{part} cannot be read ({str(error).splitlines()[0]})"
        raise UserError(f"{path}: {reason}; prepare or fetch the file again") from None


def read_card(folder: Path) -> dict[str, Any] | None:
    """Returns `dataset.json` of a prepared folder. Returns None if there is none, or if another
    program wrote it: nnU-Net has files of that name too."""
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        ours = card["format"] and card["source"] and all(file["path"] for file in card["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return card if ours else None


def parquet_files(path: Path) -> list[Path]:
    """Returns the Parquet files of a file, a folder or a folder of folders, in name order. Raises
    UserError if there is none, or if a file is missing that the data set's card names."""
    if not path.exists():
        none = "no such Parquet file or folder of Parquet files; make one with `rarl prepare`"
        raise UserError(f"{path.absolute()}: {none}")
    if not path.is_dir():
        return [path]
    inner = sorted(path.glob("*.parquet"))
    files = [file for one in inner for file in (parquet_files(one) if one.is_dir() else [one])]
    if not files:
        raise UserError(f"{path}: holds no Parquet file; make one with `rarl prepare`")
    for folder in (path, path.parent):
        for named in (read_card(folder) or {"files": []})["files"]:
            file = folder / named["path"]
            if file.is_relative_to(path) and not file.is_file():
                card = f"though {folder / CARD} names it; prepare the data set again"
                raise UserError(f"{file}: is missing, {card}")
    return files


@dataclass(frozen=True)
class Part:
    """A data set of a mixture. `weight` is above 0; only the proportions count."""

    path: Path
    weight: float


def read_mixture(path: Path) -> list[Part]:
    """Returns the data sets that a mixture draws from by weight, with paths relative to its folder;
    another path is its own only part. Raises UserError."""
    if path.suffix not in MIXTURE_ENDINGS:
        return [Part(path, 1.0)]
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: the mixture cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict) or not tree:
        what = "a mixture is a list of data sets with weights, such as `vqa-rad/train.parquet: 1`"
        raise UserError(f"{path}: {what}")
    parts = []
    for name, weight in ((str(name), weight) for name, weight in tree.items()):
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not 0 < float(weight) < math.inf:
            raise UserError(f"{path}: the weight of '{name}' is {weight!r}, not a number above 0")
        if Path(name).suffix in MIXTURE_ENDINGS:
            raise UserError(f"{path}: '{name}' is a mixture itself; name its data sets here")
        place = path.parent / Path(name).expanduser()
        if not place.exists():
            own = f"paths are relative to the mixture's own folder, so this is {place}"
            raise UserError(f"{path}: {name}: no such Parquet file or folder; {own}")
        parts.append(Part(place, float(weight)))
    return parts


@dataclass(frozen=True)
class RowRange:
    """The rows of one data set of a mixture: `start` to `stop` - 1."""

    path: Path
    start: int
    stop: int
    weight: float


ImageKey = tuple[str, str]


def image_key(example: Example) -> ImageKey:
    """Returns what tells an image from all others, also of a mixture: its data set and its id."""
    return example.dataset, example.image_id


class ParquetRows:
    """Random access by row number to canonical data: a Parquet file, all Parquet files of a folder
    in name order, or a mixture, whose data sets follow each other. Raises UserError if there is no
    row, if a column is missing or of another type, or if a part of a file cannot be read."""

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
        self.groups: list[tuple[int, int]] = []  # (file, row group in it)
        self.starts = [0]  # row number at which each group starts, and the total
        for number, file in enumerate(self.files):
            for group in range(file.num_row_groups):
                self.groups.append((number, group))
                self.starts.append(self.starts[-1] + file.metadata.row_group(group).num_rows)
        self.read_group = lru_cache(maxsize=CACHED_ROW_GROUPS)(self._read_group)

    def __len__(self) -> int:
        return self.starts[-1]

    def _read_group(self, group: int) -> list[dict[str, Any]]:
        number, in_file = self.groups[group]
        file = self.files[number]
        columns = [name for name in SCHEMA.names if name in file.schema_arrow.names]
        with damage_named(self.paths[number], f"row group {in_file}"):
            rows: list[dict[str, Any]] = file.read_row_group(in_file, columns=columns).to_pylist()
        return rows

    def column(self, name: str) -> list[Any]:
        """Returns one column of all rows, in their order, without reading the images. A value that
        is absent or null is None, or the empty text where there must be one."""
        values: list[Any] = []
        for path, file in zip(self.paths, self.files, strict=True):
            if name not in file.schema_arrow.names:
                values += [None] * file.metadata.num_rows
                continue
            with damage_named(path, f"column '{name}'"):
                values += file.read(columns=[name])[name].to_pylist()
        return [value or "" for value in values] if name in REQUIRED else values

    def questions_by_image(self) -> dict[ImageKey, list[Example]]:
        """Returns all questions by the image that they are about, without the image itself, in
        their order."""
        names = ("id", "image_id", "question", "answer", "answer_type", "options", "dataset")
        found: dict[ImageKey, list[Example]] = {}
        for example in self.without_images(range(len(self)), names):
            found.setdefault(image_key(example), []).append(example)
        return found

    def without_images(self, rows: Iterable[int], names: Iterable[str]) -> list[Example]:
        """Returns the examples at these row numbers, in this order, with these columns alone."""
        columns = {name: self.column(name) for name in names}
        return [from_row({name: column[row] for name, column in columns.items()}) for row in rows]

    def read(self, rows: Iterable[int]) -> list[Example]:
        """Returns the examples at these row numbers, in this order."""
        examples = []
        for row in rows:
            group = bisect.bisect_right(self.starts, row) - 1
            examples.append(from_row(self.read_group(group)[row - self.starts[group]]))
        return examples
