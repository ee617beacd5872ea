"""The first pass of `rarl prepare`: every usable example in one temporary Parquet file, and in
memory only what the checks and the split need of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rarl.data.parquet import ROW_GROUP_ROWS, ExampleWriter, from_row
from rarl.prepare.fingerprint import Side
from rarl.prepare.inspect import Inspector, Sound
from rarl.prepare.language import language_of
from rarl.prepare.sources.record import BadRecord, Item, LeftOut
from rarl.schema import Example


@dataclass
class Staged:
    """`side` and `splits` describe the kept examples, in their order."""

    side: Side = field(default_factory=lambda: Side("all"))
    splits: list[str] = field(default_factory=list)
    records: int = 0
    # reason → records that were not asked for
    left_out: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)  # what was put right → records
    languages: Counter[str] = field(default_factory=Counter)
    skipped: list[BadRecord] = field(default_factory=list)
    unused: dict[str, None] = field(default_factory=dict)  # columns, in their order

    def split_sides(self, splits: NDArray[np.str_]) -> list[Side]:
        """A side for each split; rows with an empty one are in none."""
        return [
            self.side.part(name, np.flatnonzero(splits == name))
            for name in sorted({*splits.tolist()} - {""})
        ]


def stage(items: Iterable[Item], path: Path, dataset: str) -> Staged:
    """Writes the usable examples to `path`. Ids that were used before are faults; equal images get
    one image_id, others never."""
    staged = Staged()
    known_ids: dict[str, str] = {}  # id → where
    image_ids: dict[str, str] = {}  # content → image_id
    owners: dict[str, str] = {}  # image_id → content
    with ExampleWriter(path) as writer:
        for found in Inspector().inspect_all(items):
            staged.records += 1
            if isinstance(found, LeftOut):
                staged.left_out[found.reason] += 1
                continue
            if isinstance(found, Sound) and found.example.id in known_ids:
                reason = f"id '{found.example.id}' is also that of '{known_ids[found.example.id]}'"
                found = BadRecord(found.where, reason)
            if isinstance(found, BadRecord):
                staged.skipped.append(found)
                continue
            known_ids[found.example.id] = found.where
            content = found.print.content
            # published under the name of another
            if owners.setdefault(found.example.image_id, content) != content:
                found = replace(found, example=replace(found.example, image_id=content))
            image_id = image_ids.setdefault(content, found.example.image_id)
            writer.add(replace(found.example, image_id=image_id, dataset=dataset))
            note(staged, found)
    return staged


def note(staged: Staged, sound: Sound) -> None:
    example = sound.example
    staged.side.add(sound.print, example.question, example.answer)
    staged.splits.append(example.split)
    staged.notes.update(sound.notes)
    staged.unused.update(dict.fromkeys(sound.unused))
    language = language_of(example.question)
    if language:
        staged.languages[language] += 1


def read_staged(path: Path) -> Iterator[Example]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=ROW_GROUP_ROWS):
            yield from map(from_row, batch.to_pylist())
