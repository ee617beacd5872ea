"""Canonical Parquet: one row for each `Example`, read by row number."""

from __future__ import annotations

import bisect
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rarl.data.columns import COLUMNS, IMAGES, ONE_IMAGE, REQUIRED, SCHEMA, from_row
from rarl.data.mixture import read_mixture
from rarl.errors import UserError
from rarl.files import replacing
from rarl.schema import Example

MOST_IMAGES_KEY = b"rarl.most_images"  # of a question, among the metadata of a file of several
CARD = "dataset.json"  # beside the splits that `rarl prepare` writes
# A row group is the unit of reading. It is small, since training reads rows in random order.
ROW_GROUP_ROWS = 32
ROW_GROUP_BYTES = 4 << 20  # of images, where these are large
CACHED_ROW_GROUPS = 8
SHARD_BYTES = 256 << 20  # of images in one file; above it a split is a folder of files


def write_examples(path: Path, examples: Iterable[Example]) -> int:
    """Writes one Parquet file, whole or not at all; returns the number of rows."""
    with replacing(path) as temporary:
        return write_groups(temporary, row_groups(examples))


def most_images(paths: Iterable[str], limit: int) -> int:
    """Returns how many images a question of these data may have, as far as the files tell, at most
    `limit`: what engines are started for. For 0 vLLM leaves the vision tower out."""
    told = [ParquetRows(path).most_images for path in paths]
    return min(limit, max((limit if one is None else one for one in told), default=1))


def write_split(path: Path, examples: Iterable[Example]) -> None:
    """Writes a split that may be large: `path` is one file, or a folder of that name with files
    00000.parquet and so on if the images exceed SHARD_BYTES. Both are read by the same path."""
    parts = path.with_name(f".{path.name}.parts")
    parts.mkdir(parents=True)
    groups, shards = row_groups(examples), 0
    for group in groups:
        write_groups(parts / f"{shards:05d}.parquet", one_shard(chain([group], groups)))
        shards += 1
    if shards == 1:
        (parts / "00000.parquet").replace(path)
        parts.rmdir()
    else:
        parts.replace(path)


def one_shard(groups: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yields groups until their images reach SHARD_BYTES."""
    size = 0
    for group in groups:
        yield group
        size += group["image" if group.schema == ONE_IMAGE else "images"].nbytes
        if size >= SHARD_BYTES:
            return


def write_groups(path: Path, groups: Iterable[pa.Table]) -> int:
    """Writes row groups into one file; returns the number of rows. Its columns are those of one
    image each until a group needs those of several: then what was written is written again."""
    rows, most, schema = 0, 0, ONE_IMAGE
    writer = pq.ParquetWriter(path, schema)
    try:
        for group in groups:
            if schema == ONE_IMAGE and group.schema != schema:
                writer.close()
                writer, schema = written_again(path), SCHEMA
            writer.write_table(group if group.schema == schema else of_several(group))
            rows += len(group)
            if group.schema == SCHEMA:
                most = max(most, pc.max(pc.list_value_length(group["images"])).as_py())
            else:
                most = max(most, 1)
        if schema == SCHEMA:
            writer.add_key_value_metadata({MOST_IMAGES_KEY: str(most)})
    finally:
        writer.close()
    return rows


def written_again(path: Path) -> pq.ParquetWriter:
    """Returns a writer that has written a finished file anew, with the columns of several
    images."""
    earlier = path.with_name(f"{path.name}.earlier")
    path.rename(earlier)
    try:
        written, writer = pq.ParquetFile(earlier), pq.ParquetWriter(path, SCHEMA)
        for number in range(written.num_row_groups):
            writer.write_table(of_several(written.read_row_group(number)))
    finally:
        earlier.unlink()
    return writer


def of_several(table: pa.Table) -> pa.Table:
    """Returns rows of one image each with the columns of several."""
    images = pa.array([[image] for image in table["image"].to_pylist()], pa.list_(pa.binary()))
    labels = pa.nulls(len(table), SCHEMA.field("image_labels").type)
    more = {"images": images, "image_labels": labels}
    columns = [more[name] if name in more else table[name] for name in SCHEMA.names]
    return pa.table(columns, schema=SCHEMA)


def row_groups(examples: Iterable[Example]) -> Iterator[pa.Table]:
    """Yields the rows in groups of at most ROW_GROUP_ROWS, fewer if their images are large."""
    group: list[Example] = []
    size = 0
    for example in examples:
        group.append(example)
        size += sum(map(len, example.images))
        if len(group) == ROW_GROUP_ROWS or size >= min(ROW_GROUP_BYTES, SHARD_BYTES):
            yield to_table(group)
            group, size = [], 0
    if group:
        yield to_table(group)


def to_table(examples: Sequence[Example]) -> pa.Table:
    """Returns a row for each example, with the columns of one image each if that is what they
    have."""
    alone = all(len(one.images) == 1 and one.image_labels is None for one in examples)
    schema = ONE_IMAGE if alone else SCHEMA
    rows = [
        {name: getattr(one, name) for name in SCHEMA.names}
        | {"image": (*one.images, None)[0]}
        | {"boxes": None if one.boxes is None else [asdict(box) for box in one.boxes]}
        for one in examples
    ]
    return pa.Table.from_pylist(rows, schema=schema)


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
    for name in (name for name in required if name not in has):
        raise missing_column(path, name, has, advice)
    return file


def missing_column(path: Path, name: str, has: Sequence[str], advice: str) -> UserError:
    return UserError(f"{path}: column '{name}' is missing (it has: {', '.join(has)}){advice}")


def open_canonical(path: Path) -> pq.ParquetFile:
    """Opens a file of examples. Raises UserError if a column is missing or of another type."""
    advice = "; convert it with `rarl prepare`"
    file = open_parquet(path, ("id",), advice)
    has = file.schema_arrow.names
    if not set(IMAGES) & set(has):
        raise missing_column(path, "image", has, advice)
    for name in (name for name in REQUIRED if name not in has):
        raise missing_column(path, name, has, advice)
    for found in (one for one in file.schema_arrow if one.name in COLUMNS):
        wanted = (ONE_IMAGE if found.name == "image" else SCHEMA).field(found.name).type
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
        columns = [name for name in COLUMNS if name in file.schema_arrow.names]
        with damage_named(self.paths[number], f"row group {in_file}"):
            rows: list[dict[str, Any]] = file.read_row_group(in_file, columns=columns).to_pylist()
        return rows

    @property
    def most_images(self) -> int | None:
        """The largest number of images of a question, None if the files do not tell."""
        most = 0
        for file in self.files:
            if "images" in file.schema_arrow.names:
                told = (file.metadata.metadata or {}).get(MOST_IMAGES_KEY)
                if told is None or not told.isdigit():
                    return None
                most = max(most, int(told))
            else:
                most = max(most, 1)
        return most

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
