"""Parquet files as the hub writes them for image data: image {bytes, path}, question, answer; one
or more per split."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from rarl.errors import UserError
from rarl.prepare.sources.files import Files
from rarl.prepare.sources.record import SPLITS, Fault, Item, Record, Row, each, text, yes_no_or_open
from rarl.prepare.sources.tables import read_table


def read_hub_parquet(files: Files, names: list[str], dataset: str) -> Iterator[Item]:
    """Files named train-00000-of-00002-….parquet and so on."""
    counts: dict[str, int] = {}
    for name in names:
        split = PurePosixPath(name).name.split("-")[0].removesuffix(".parquet")
        if split not in SPLITS:
            raise UserError(
                f"{files.entries[name]}: its name should begin with {', '.join(SPLITS)}, as on the hub"
            )
        first = counts.get(split, 0)

        def record(row: Row, split: str = split, first: int = first) -> Record:
            counts[split] = first + row.number + 1
            return hub_record(row, f"{dataset}-{split}-{first + row.number}", split)

        yield from each(read_table(files, name, ("image", "question", "answer")), record)


def hub_record(row: Row, identity: str, split: str) -> Record:
    answer = text(row.values, "answer")
    encoded, name = embedded_image(row.values["image"])
    return Record(
        where=row.where,
        id=identity,
        image=lambda: encoded,
        image_name=name,
        question=text(row.values, "question"),
        answer=answer,
        answer_type=yes_no_or_open(answer),
        split=split,
    )


def embedded_image(value: Any) -> tuple[bytes, str]:
    """The bytes of an image column, and the file name that came with them. Raises Fault."""
    encoded, name = (
        (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    )
    if not isinstance(encoded, bytes) or not encoded:
        raise Fault("image holds no bytes")
    return encoded, str(name or "")
