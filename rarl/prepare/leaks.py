"""`rarl data check`, and the same report in `rarl prepare`: what splits and data sets share, and
rows not sound."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from rarl.data.parquet import CARD, ParquetRows
from rarl.errors import UserError
from rarl.prepare.card import changed_files
from rarl.prepare.faults import text_fault
from rarl.prepare.fingerprint import ImagePrint, Side, find_leak
from rarl.prepare.inspect import Inspector, in_threads
from rarl.prepare.language import language_of
from rarl.prepare.sources.record import Fault
from rarl.schema import Example

ORDER = ("train", "validation", "test")  # of each pair, what is learnt from comes first
SHOWN = 3  # bad rows that are named


@dataclass
class Examined:
    """A data set read row by row."""

    side: Side  # its images are those of bad rows too
    faults: list[str] = field(default_factory=list)  # one a bad row, with its number
    unread: list[str] = field(default_factory=list)  # those of them whose image cannot be read
    languages: Counter[str] = field(default_factory=Counter)


def examine(path: Path, name: str | None = None) -> Examined:
    """Every row of a canonical data set, decoded and fingerprinted. Raises UserError where it
    cannot be read."""
    rows, inspector, found = ParquetRows(path), Inspector(), Examined(Side(name or str(path)))
    ids: dict[str, int] = {}

    def look(example: Example) -> tuple[Example, ImagePrint | str]:
        try:
            return example, inspector.look_at(example.image)
        except Fault as fault:
            return example, str(fault)

    for number, (example, result) in enumerate(in_threads(look, rows_in_order(rows))):
        if example.id in ids:
            found.faults.append(
                f"row {number}: id '{example.id}' is also that of row {ids[example.id]}"
            )
        ids.setdefault(example.id, number)
        place = f"row {number}: example '{example.id}': "
        if isinstance(result, str):
            found.unread.append(place + result)
        else:
            found.side.number_of(result)
        fault = text_fault(example) or (result if isinstance(result, str) else None)
        if fault or isinstance(result, str):
            found.faults.append(f"{place}{fault}")
            continue
        found.side.add(result, example.question, example.answer)
        language = language_of(example.question)
        if language:
            found.languages[language] += 1
    return found


def rows_in_order(rows: ParquetRows) -> Iterator[Example]:
    for number in range(len(rows)):
        yield rows.read([number])[0]


def place_of(side: Side) -> int:
    """By the split in its name, such as that of `train`, `data/mine/train` or
    `data/mine/train.parquet`."""
    split = Path(side.name).stem
    return ORDER.index(split) if split in ORDER else -1


def leaks_among(sides: Sequence[Side]) -> dict[str, Any]:
    """Counts for every pair, as `dataset.json` holds them, and of what a side repeats or
    contradicts."""
    ordered = sorted(sides, key=place_of)
    pairs = []
    for left, right in combinations(ordered, 2):
        leak = find_leak(left, right)
        pairs.append(
            {
                "between": left.name,
                "and": right.name,
                "same_images": len(leak.same_images),
                "near_images": len(leak.near_images),
                "of_images": len(right.images),
                "questions": len(leak.questions),
                "of_questions": len(right.rows),
                "twins": len(leak.twins),
                "same_text": len(leak.same_text),
            }
        )
    return {
        "leaks": pairs,
        "duplicates": {side.name: side.duplicates() for side in ordered},
        "contradictions": {side.name: side.contradictions() for side in ordered},
    }


def leak_lines(checks: dict[str, Any]) -> list[str]:
    """The report for people. Shared images are leaks; repetitions and equal texts are for the
    reader to weigh."""
    lines = []
    for pair in checks["leaks"]:
        names = f"{pair['between']} and {pair['and']}"
        if pair["same_images"] or pair["near_images"]:
            lines.append(
                f"LEAK: {pair['same_images']:,} images are in more than one split, and {pair['near_images']:,} nearly "
                f"so: {names} share them, of the latter's {pair['of_images']:,}. {pair['questions']:,} of its "
                f"{pair['of_questions']:,} questions are about them, {pair['twins']:,} with the same question and "
                "answer. Results there are not results on unseen images: prepare with --split image-disjoint, or "
                "with --against"
            )
        else:
            lines.append(f"{names}: no image is in more than one split, nor nearly so")
        lines.append(
            f"{names}: {pair['same_text']:,} questions of the latter are asked and answered alike about other images"
        )
    for what, words in (
        ("duplicates", "rows repeat another one (the same image, question and answer)"),
        (
            "contradictions",
            "questions are asked twice about the same image, with different answers",
        ),
    ):
        lines += [f"{name}: {count:,} {words}" for name, count in checks[what].items() if count]
    return lines


def check_datasets(paths: list[Path]) -> tuple[str, bool]:
    """(report, whether it is sound) of prepared folders with their splits, or of any data sets
    beside each other. Raises UserError where one cannot be read."""
    lines, sides, sound = [], [], True
    for path, name in named_parts(paths):
        examined = examine(path, name)
        sides.append(examined.side)
        lines.append(
            f"{path}: {len(examined.side.rows):,} sound rows about {len(examined.side.images):,} images"
        )
        if len(examined.languages) > 1:
            counted = ", ".join(
                f"{n:,} {language}" for language, n in examined.languages.most_common()
            )
            lines.append(f"{name}: questions whose language is clear: {counted}")
        if examined.faults:
            sound = False
            lines.append(
                f"{name}: {len(examined.faults):,} bad rows: " + "; ".join(examined.faults[:SHOWN])
            )
    for folder in dict.fromkeys(
        folder for path in paths for folder in (path, path.parent) if (folder / CARD).is_file()
    ):
        for file in changed_files(folder):
            sound = False
            what = (
                "is not as it was prepared"
                if file.is_file()
                else f"is missing, though {folder / CARD} names it"
            )
            lines.append(f"{file}: {what}; prepare the data set again, or delete {folder / CARD}")
    checks = leaks_among(sides)
    sound = sound and not any(
        pair["same_images"] or pair["near_images"] for pair in checks["leaks"]
    )
    return "\n".join([*lines, *leak_lines(checks), "sound" if sound else "NOT SOUND"]), sound


def named_parts(paths: list[Path]) -> list[tuple[Path, str]]:
    """A folder's splits each for itself, everything else as a whole."""
    if len(paths) == 1:
        splits = splits_in(paths[0])
        return [(split, split.stem) for split in splits] or [(paths[0], str(paths[0]))]
    if len({str(path) for path in paths}) < len(paths):
        raise UserError(f"{paths[0]}: named twice; a data set shares everything with itself")
    parts: list[tuple[Path, str]] = []
    for path in paths:
        splits = splits_in(path)
        # else shards of one split, which may share images
        if all(split.stem in ORDER for split in splits):
            parts += [(split, str(path / split.stem)) for split in splits] or [(path, str(path))]
        else:
            parts.append((path, str(path)))
    return parts


def splits_in(path: Path) -> list[Path]:
    """Of a prepared folder; a split of many files is a folder itself, whose name ends in
    .parquet."""
    return sorted(path.glob("*.parquet")) if path.is_dir() and path.suffix != ".parquet" else []


def read_side(path: Path) -> Side:
    """For --against. Raises UserError, also for an image that cannot be held against others: what
    shares it would stay unseen."""
    examined = examine(path)
    if examined.unread:
        raise UserError(
            f"{path}: {examined.unread[0]}; mend or delete this row, so that all of --against counts"
        )
    return examined.side
