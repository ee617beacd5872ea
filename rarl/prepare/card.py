"""`dataset.json`: what a prepared data set is, where it comes from, what was found in it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rarl.data.parquet import CARD
from rarl.errors import UserError
from rarl.schema import Example

FORMAT = 1
SKIPPED = "skipped.jsonl"  # beside the card: the records that cannot be used


@dataclass
class SplitCounts:
    """Of one split. `images` counts different images."""

    questions: int = 0
    images: int = 0
    answer_types: dict[str, int] = field(default_factory=dict)
    modalities: dict[str, int] = field(default_factory=dict)
    organs: dict[str, int] = field(default_factory=dict)
    rationales: int = 0

    def __post_init__(self) -> None:
        self._images: set[str] = set()
        self._counters: tuple[Counter[str], Counter[str], Counter[str]] = (
            Counter(),
            Counter(),
            Counter(),
        )

    def count(self, example: Example, split: str) -> Example:
        """Counts it, and returns it as an example of this split."""
        self.questions += 1
        self.rationales += example.rationale is not None
        self._images.add(example.image_id)
        for counter, value in zip(
            self._counters, (example.answer_type, example.modality, example.organ), strict=True
        ):
            counter.update([value] if value else [])
        return replace(example, split=split)

    def finished(self) -> SplitCounts:
        kinds, modalities, organs = (dict(counter.most_common()) for counter in self._counters)
        return SplitCounts(
            self.questions, len(self._images), kinds, modalities, organs, self.rationales
        )


@dataclass(frozen=True)
class Card:
    """The fields of `dataset.json`, in their order. Nothing in it depends on the clock: equal
    inputs, equal card."""

    source: str
    read_from: str
    licence: str
    split: str  # official, or how it was made
    choices: dict[str, Any]
    records: int  # read from the source
    left_out: dict[str, int]  # not asked for
    skipped: int  # could not be used; see skipped.jsonl
    notes: dict[str, int]  # put right, or worth knowing → records
    languages: dict[str, int]  # of questions whose language is clear
    against: str | None
    removed_as_leaks: int  # questions whose image `against` has too
    splits: dict[str, SplitCounts]
    checks: dict[str, Any]
    files: list[dict[str, Any]]
    format: int = FORMAT


def hashed_files(folder: Path) -> list[dict[str, Any]]:
    """Path, bytes and SHA-256 of every Parquet file below the folder."""
    return [
        {
            "path": str(path.relative_to(folder)),
            "bytes": path.stat().st_size,
            "sha256": file_hash(path),
        }
        for path in sorted(folder.rglob("*.parquet"))
        if path.is_file()
    ]


def card_files(folder: Path) -> list[Path] | None:
    """The files that the card in `folder` lists; None where there is no card, or one of another
    program."""
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        return (
            [folder / str(one["path"]) for one in card["files"]]
            if card["format"] and card["source"]
            else None
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def card_splits(folder: Path) -> list[str]:
    """The splits that the card in `folder` names; none where there is no card, or one of another
    program."""
    try:
        return [
            str(name) for name in json.loads((folder / CARD).read_text(encoding="utf-8"))["splits"]
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def changed_files(folder: Path) -> list[Path]:
    """Those that the card in `folder` names and that are gone, or of another content. Raises
    UserError."""
    try:
        named = json.loads((folder / CARD).read_text(encoding="utf-8"))["files"]
        files = [(folder / one["path"], str(one["sha256"])) for one in named]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / CARD}: not a card of `rarl prepare` ({error}); delete it"
        ) from None
    return [path for path, known in files if not path.is_file() or file_hash(path) != known]


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def card_text(card: Card, out: Path) -> str:
    """The card's counts for people, a line each."""
    kept = card.records - sum(card.left_out.values())
    lines = [f"{card.records:,} records read"]
    if card.left_out:
        lines[0] += f", {kept:,} {', '.join(card.left_out)} kept"
    lines += [f"{count:,} {note}" for note, count in card.notes.items()]
    if len(card.languages) > 1:
        found = ", ".join(f"{count:,} {language}" for language, count in card.languages.items())
        lines.append(f"questions whose language is clear: {found}")
    if card.against is not None:
        lines.append(
            f"{card.removed_as_leaks:,} questions were removed: {card.against} has their images too"
        )
    for name, counts in card.splits.items():
        parts = ", ".join(f"{n:,} {kind}" for kind, n in sorted(counts.answer_types.items()))
        lines.append(
            f"{out / name}.parquet: {counts.questions:,} questions ({parts}) about {counts.images:,} images"
        )
    return "\n".join(lines)
