"""`rarl data check`, and the same report in `rarl prepare`: what splits and data sets share, and
rows not sound."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from rarl.data.check import text_fault
from rarl.data.parquet import CARD, ParquetRows
from rarl.errors import UserError
from rarl.prepare.card import changed_files, listed
from rarl.prepare.files import Fault
from rarl.prepare.fingerprint import ImagePrint, Side, find_leak
from rarl.prepare.inspect import Inspector, in_threads, language_of
from rarl.prepare.rows import SPLITS
from rarl.schema import Example

SHOWN = 3  # bad rows that are named
REPEATED = {
    "duplicates": "rows repeat another one (the same image, question and answer)",
    "contradictions": "questions are asked twice about the same image, with different answers",
}


@dataclass
class Examined:
    """A data set read row by row."""

    side: Side  # its images are those of bad rows too
    faults: list[str] = field(default_factory=list)  # one for each bad row, with its number
    unread: list[str] = field(default_factory=list)  # those of them whose image cannot be read
    languages: Counter[str] = field(default_factory=Counter)


def examine(path: Path, name: str | None = None) -> Examined:
    """Reads, decodes and fingerprints every row of a canonical data set. Raises UserError."""
    rows, inspector, found = ParquetRows(path), Inspector(), Examined(Side(name or str(path)))
    ids: dict[str, int] = {}

    def look(example: Example) -> tuple[Example, ImagePrint | str]:
        try:
            return example, inspector.look_at(example.image)
        except Fault as fault:
            return example, str(fault)

    examples = (rows.read([row])[0] for row in range(len(rows)))
    for number, (example, look_) in enumerate(in_threads(look, examples)):
        first = ids.setdefault(example.id, number)
        if first != number:
            found.faults.append(f"row {number}: id '{example.id}' is also that of row {first}")
        place = f"row {number}: example '{example.id}': "
        fault = text_fault(example)
        if isinstance(look_, str):
            found.unread.append(place + look_)
            found.faults.append(place + (fault or look_))
            continue
        found.side.number_of(look_)
        if fault:
            found.faults.append(place + fault)
            continue
        found.side.add(look_, example.question, example.answer)
        language = language_of(example.question)
        if language:
            found.languages[language] += 1
    return found


def place_of(side: Side) -> int:
    """Returns the place of a side by the split in its name, such as that of `train`,
    `data/mine/train` or `data/mine/train.parquet`: what is learnt from comes first."""
    split = Path(side.name).stem
    return SPLITS.index(split) if split in SPLITS else -1


def leaks_among(sides: Sequence[Side]) -> dict[str, Any]:
    """Returns counts for every pair, and of what a side repeats or contradicts."""
    ordered = sorted(sides, key=place_of)
    pairs = []
    for left, right in combinations(ordered, 2):
        leak = find_leak(left, right)
        pair: dict[str, Any] = {"between": left.name, "and": right.name}
        for name in ("same_images", "near_images", "questions", "twins", "same_text"):
            pair[name] = len(getattr(leak, name))
        pairs.append(pair | {"of_images": len(right.images), "of_questions": len(right.rows)})
    repeated = {what: {side.name: getattr(side, what)() for side in ordered} for what in REPEATED}
    return {"leaks": pairs, **repeated}


def leak_lines(checks: dict[str, Any]) -> Iterator[str]:
    """Yields the report for people. Repetitions and equal texts are for the reader to weigh."""
    for pair in checks["leaks"]:
        names = f"{pair['between']} and {pair['and']}"
        if pair["same_images"] or pair["near_images"]:
            yield (
                f"LEAK: {pair['same_images']:,} images are in more than one split, and "
                f"{pair['near_images']:,} nearly so: {names} share them, of the latter's "
                f"{pair['of_images']:,}. {pair['questions']:,} of its {pair['of_questions']:,} "
                f"questions are about them, {pair['twins']:,} with the same question and answer. "
                "Results there are not results on unseen images: prepare with --split "
                "image-disjoint, or with --against"
            )
        else:
            yield f"{names}: no image is in more than one split, nor nearly so"
        alike = "questions of the latter are asked and answered alike about other images"
        yield f"{names}: {pair['same_text']:,} {alike}"
    for what, words in REPEATED.items():
        yield from (f"{name}: {count:,} {words}" for name, count in checks[what].items() if count)


def check_datasets(paths: list[Path]) -> tuple[str, bool]:
    """Returns (report, whether it is sound) of prepared folders with their splits, or of any data
    sets beside each other. Raises UserError if one cannot be read."""
    lines, sides, sound = [], [], True
    for path, name in named_parts(paths):
        examined = examine(path, name)
        sides.append(examined.side)
        rows, images = len(examined.side.rows), len(examined.side.images)
        lines.append(f"{path}: {rows:,} sound rows about {images:,} images")
        if len(examined.languages) > 1:
            counted = listed(dict(examined.languages.most_common()))
            lines.append(f"{name}: questions whose language is clear: {counted}")
        if examined.faults:
            sound = False
            first = "; ".join(examined.faults[:SHOWN])
            lines.append(f"{name}: {len(examined.faults):,} bad rows: {first}")
    folders = dict.fromkeys(folder for path in paths for folder in (path, path.parent))
    for folder in (one for one in folders if (one / CARD).is_file()):
        for file in changed_files(folder):
            sound = False
            what = f"is missing, though {folder / CARD} names it"
            what = "is not as it was prepared" if file.is_file() else what
            lines.append(f"{file}: {what}; prepare the data set again, or delete {folder / CARD}")
    checks = leaks_among(sides)
    sound &= not any(pair["same_images"] or pair["near_images"] for pair in checks["leaks"])
    return "\n".join([*lines, *leak_lines(checks), "sound" if sound else "NOT SOUND"]), sound


def named_parts(paths: list[Path]) -> list[tuple[Path, str]]:
    """Returns the splits of a folder each for itself, everything else as a whole, with names."""
    if len(set(map(str, paths))) < len(paths):
        raise UserError(f"{paths[0]}: named twice; a data set shares everything with itself")
    parts: list[tuple[Path, str]] = []
    for path in paths:
        alone, splits = len(paths) == 1, splits_in(path)
        # Others are shards of one split, which may share images.
        if splits and (alone or all(split.stem in SPLITS for split in splits)):
            parts += [(one, one.stem if alone else str(path / one.stem)) for one in splits]
        else:
            parts.append((path, str(path)))
    return parts


def splits_in(path: Path) -> list[Path]:
    """Returns the splits of a prepared folder; a split NAME.parquet may be a folder itself."""
    return sorted(path.glob("*.parquet")) if path.is_dir() and path.suffix != ".parquet" else []


def read_side(path: Path) -> Side:
    """Returns the images of --against. Raises UserError, also for an image that cannot be held
    against others: what shares it would stay unseen."""
    examined = examine(path)
    if examined.unread:
        advice = "mend or delete this row, so that all of --against counts"
        raise UserError(f"{path}: {examined.unread[0]}; {advice}")
    return examined.side
