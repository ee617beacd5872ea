"""The columns of canonical data, and Parquet files that should have them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rarl.errors import UserError

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


def open_parquet(
    path: Path, required: Sequence[str] = REQUIRED, advice: str = ""
) -> pq.ParquetFile:
    """Raises UserError when the file is not Parquet or lacks a required column; `advice` then ends
    the message."""
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{path}: not a readable Parquet file: {str(error).splitlines()[0]}"
        ) from None
    missing = [name for name in required if name not in file.schema_arrow.names]
    if missing:
        has = ", ".join(file.schema_arrow.names)
        raise UserError(f"{path}: column '{missing[0]}' is missing (it has: {has}){advice}")
    return file


def open_canonical(path: Path) -> pq.ParquetFile:
    """Raises UserError when the file is not Parquet, or lacks a required column or has one of
    another type."""
    advice = "; convert it with `rarl prepare`"
    file = open_parquet(path, advice=advice)
    for wanted in SCHEMA:
        found = (
            file.schema_arrow.field(wanted.name).type
            if wanted.name in file.schema_arrow.names
            else wanted.type
        )
        if not holds(found, wanted.type):
            raise UserError(
                f"{path}: column '{wanted.name}' is of type {found}, not {wanted.type}{advice}"
            )
    return file


def holds(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether values of `found` are read as those of `wanted`: of another width or encoding, or all
    of them null."""
    kind = pa.types
    if kind.is_dictionary(found):
        found = found.value_type
    if kind.is_list(wanted):
        of_lists = (
            kind.is_list(found) or kind.is_large_list(found) or kind.is_fixed_size_list(found)
        )
        return kind.is_null(found) or (of_lists and holds(found.value_type, wanted.value_type))
    if kind.is_binary(wanted):
        of_bytes = (
            kind.is_binary,
            kind.is_large_binary,
            kind.is_fixed_size_binary,
            kind.is_binary_view,
        )
        return kind.is_null(found) or any(is_one(found) for is_one in of_bytes)
    of_texts = (kind.is_null, kind.is_string, kind.is_large_string, kind.is_string_view)
    return any(is_one(found) for is_one in of_texts)


@contextmanager
def damage_named(path: Path, part: str) -> Iterator[None]:
    """Raises UserError in place of what pyarrow says of pages that it cannot decode."""
    try:
        yield
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path}: {part} cannot be read ({reason}); prepare or fetch the file again"
        ) from None
