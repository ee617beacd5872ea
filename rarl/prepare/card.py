"""`dataset.json`: what a prepared data set is, where it comes from, what was found in it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rarl.data.parquet import CARD, read_card
from rarl.errors import UserError
from rarl.files import file_hash
from rarl.schema import Example

FORMAT = 1
SKIPPED = "skipped.jsonl"  # beside the card: the records that cannot be used


@dataclass
class SplitCounts:
    """Counts of one split. `images` counts different images."""

    questions: int = 0
    images: int = 0
    answer_types: dict[str, int] = field(default_factory=dict)
    modalities: dict[str, int] = field(default_factory=dict)
    organs: dict[str, int] = field(default_factory=dict)
    rationales: int = 0

    def counted(self, examples: Iterable[Example], split: str) -> Iterator[Example]:
        """Yields the examples as those of this split. The counts are whole when all are taken."""
        images: set[str] = set()
        counters: tuple[Counter[str], ...] = (Counter(), Counter(), Counter())
        for example in examples:
            self.questions += 1
            self.rationales += example.rationale is not None
            images.add(example.image_id)
            values = (example.answer_type, example.modality, example.organ)
            for counter, value in zip(counters, values, strict=True):
                counter.update([value] if value else [])
            yield replace(example, split=split)
        self.images = len(images)
        ordered = (dict(counter.most_common()) for counter in counters)
        self.answer_types, self.modalities, self.organs = ordered


@dataclass(frozen=True)
class Card:
    """The fields of `dataset.json`, in their order. Equal inputs give an equal card."""

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

    def write(self, folder: Path) -> None:
        text = json.dumps(asdict(self), indent=1, ensure_ascii=False)
        (folder / CARD).write_text(text + "\n", encoding="utf-8")

    def lines(self, out: Path) -> list[str]:
        """Returns the counts for people, a line each."""
        kept = self.records - sum(self.left_out.values())
        lines = [f"{self.records:,} records read"]
        if self.left_out:
            lines[0] += f", {kept:,} {', '.join(self.left_out)} kept"
        lines += [f"{count:,} {note}" for note, count in self.notes.items()]
        if len(self.languages) > 1:
            lines.append(f"questions whose language is clear: {listed(self.languages)}")
        if self.against is not None:
            removed = f"{self.removed_as_leaks:,} questions were removed"
            lines.append(f"{removed}: {self.against} has their images too")
        for name, counts in self.splits.items():
            types = listed(dict(sorted(counts.answer_types.items())))
            questions = f"{counts.questions:,} questions ({types})"
            lines.append(f"{out / name}.parquet: {questions} about {counts.images:,} images")
        return lines


def listed(counts: dict[str, int]) -> str:
    """Returns "3 closed, 1 open"."""
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def hashed_files(folder: Path) -> list[dict[str, Any]]:
    """Returns path, bytes and SHA-256 of every Parquet file below the folder."""
    files = [path for path in sorted(folder.rglob("*.parquet")) if path.is_file()]
    return [
        {"path": str(f.relative_to(folder)), "bytes": f.stat().st_size, "sha256": file_hash(f)}
        for f in files
    ]


def card_splits(folder: Path) -> list[str]:
    """Returns the splits that the card in `folder` names; none if there is no card of ours."""
    card = read_card(folder)
    return list(card["splits"]) if card and isinstance(card.get("splits"), dict) else []


def changed_files(folder: Path) -> list[Path]:
    """Returns the files that the card in `folder` names and that are gone, or of another content.
    Raises UserError if it is no card of `rarl prepare`."""
    card = read_card(folder)
    if card is None:
        raise UserError(f"{folder / CARD}: not a card of `rarl prepare`; delete it")
    known = {folder / file["path"]: str(file.get("sha256")) for file in card["files"]}
    return [path for path, sha in known.items() if not path.is_file() or file_hash(path) != sha]


def own_files(out: Path) -> set[Path]:
    """Returns what `rarl prepare` and `rarl data show` make in `out`, with the folders of shards;
    nothing if its card is not ours: other programs write a `dataset.json` too."""
    card = read_card(out)
    if card is None:
        return set()
    files = {out / CARD, out / SKIPPED, sheet_path(out)}
    for file in (out / one["path"] for one in card["files"]):
        files |= {file, *file.parents, sheet_path(out / file.relative_to(out).parts[0])}
    return files


def require_replaceable(out: Path) -> None:
    """Raises UserError if `out` holds anything but an earlier data set."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; OUT is the folder to be made")
    ours = own_files(out)
    foreign = next((path for path in out.rglob("*") if path not in ours), None)
    if foreign is not None:
        such = f"such as {foreign.relative_to(out)}; choose another OUT, or empty it"
        raise UserError(f"{out}: holds files that are no data set of `rarl prepare`, {such}")


def sheet_path(data: Path) -> Path:
    """Returns where the sheet of examples of a prepared folder goes, or of one of its splits."""
    folder = data if data.is_dir() and data.suffix != ".parquet" else data.parent
    return folder / f"{data.stem}-examples.png"
