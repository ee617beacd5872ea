"""`rarl data check` and its report in `rarl prepare`: rows not sound, and what data sets share."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

from rarl.data.check import images_fault, text_fault
from rarl.data.parquet import CARD, ParquetRows
from rarl.errors import UserError
from rarl.prepare.card import changed_files, listed
from rarl.prepare.files import Fault
from rarl.prepare.fingerprint import ImagePrint, SeenImages, Side, find_leak
from rarl.prepare.followed import follow_lines
from rarl.prepare.rows import SPLITS
from rarl.schema import Example

SHOWN = 3  # bad rows that are named
AHEAD = 8  # items per core that may wait, with their images in memory
# Of VQA-RAD's 2,190 different questions, all English, none is taken for another language with this
# probability.
SURE = 0.9
TOTALS = ("of_images", "of_questions", "of_patients")
T = TypeVar("T")
R = TypeVar("R")
REPEATED = {
    "repeats": "rows repeat another one (the same image, question, options and answer)",
    "contradictions": "questions are asked twice about the same image, with different answers",
}


def in_threads(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yields `function` of every item, in their order. As many threads as there are cores work a
    bounded number of items ahead."""
    cores = os.cpu_count() or 1
    with ThreadPoolExecutor(cores) as pool:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > AHEAD * cores:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@cache
def language_identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def clear_language(text: str) -> list[str]:
    """Returns the two-letter code of the language, or nothing if py3langid is not sure, as it often
    is with short questions: a language that is named is there."""
    language, probability = language_identifier().classify(text)
    return [str(language)] if probability >= SURE else []


@dataclass
class Examined:
    """A data set read row by row."""

    side: Side  # its images are those of bad rows too
    faults: list[str] = field(default_factory=list)  # one for each bad row, with its number
    unread: list[str] = field(default_factory=list)  # those of them whose image cannot be read
    languages: Counter[str] = field(default_factory=Counter)


def examine(path: Path, name: str | None = None) -> Examined:
    """Reads, decodes and fingerprints every row of a canonical data set. Raises UserError."""
    rows, seen, found = ParquetRows(path), SeenImages(), Examined(Side(name or str(path)))
    ids: dict[str, int] = {}

    def look(example: Example) -> tuple[Example, list[ImagePrint] | str]:
        try:
            return example, seen.look_at_all(example.images)
        except Fault as fault:
            return example, str(fault)

    examples = (rows.read([row])[0] for row in range(len(rows)))
    for number, (example, look_) in enumerate(in_threads(look, examples)):
        first = ids.setdefault(example.id, number)
        if first != number:
            found.faults.append(f"row {number}: id '{example.id}' is also that of row {first}")
        place = f"row {number}: example '{example.id}': "
        fault = text_fault(example) or images_fault(example.images)
        if isinstance(look_, str):
            found.unread.append(place + look_)
            found.faults.append(place + (fault or look_))
            continue
        for one in look_:
            found.side.number_of(one)
        if fault:
            found.faults.append(place + fault)
            continue
        found.side.add(look_, example.question, example.answer, example.options, example.patient)
        found.languages.update(clear_language(example.question))
    return found


def shared_between(left: Side, right: Side) -> dict[str, Any]:
    """Returns how much of what `right` holds is in `left`, too, and of how much."""
    shared = {name: len(found) for name, found in vars(find_leak(left, right)).items()}
    patients = len({one for one in right.patients if one})
    totals = dict(zip(TOTALS, (len(right.images), len(right.rows), patients), strict=True))
    return {"between": left.name, "and": right.name, **shared, **totals}


def is_leak(pair: dict[str, Any]) -> bool:
    """Tells whether images are shared, or near copies, or patients. Equal texts are for the reader
    to weigh."""
    return any(pair.get(one) for one in ("same_images", "near_images", "patients", "twins"))


def leak_line(pair: dict[str, Any]) -> str:
    """Returns in words what `shared_between` has counted."""
    left, right, images, questions = (pair[one] for one in ("between", "and", *TOTALS[:2]))
    told = f"{right}: none of its {images:,} images is in {left}, nor nearly so"
    if pair["same_images"] or pair["near_images"]:
        told = (
            f"LEAK: {right}: {pair['same_images']:,} of its {images:,} images are in {left}, and "
            f"{pair['near_images']:,} nearly so; {pair['questions']:,} of its {questions:,} "
            f"questions are about them, {pair['twins']:,} with the same question and answer. "
            "Results there are not results on unseen images: prepare with --split image-disjoint, "
            "or with --against"
        )
    elif pair["twins"]:
        told += f". LEAK: {pair['twins']:,} of its questions, without images, are in {left}, too"
    if known := pair.get("of_patients"):
        if both := pair["patients"]:
            told += (
                f". LEAK: {both:,} of its {known:,} patients are in {left}, too: results there are "
                "not results on unseen patients; prepare with --split patient-disjoint"
            )
        else:
            told += f". None of its {known:,} patients is in {left}"
    if pair["same_text"]:
        told += (
            f". {pair['same_text']:,} of its {questions:,} questions are asked and answered alike "
            f"in {left} about other images: the floors show what their words alone are worth"
        )
    return told


def leaks_among(sides: Sequence[Side]) -> dict[str, Any]:
    """Returns counts for every pair, and of what a side repeats or contradicts. What is learnt from
    comes first, by the split in the name, such as `train` or `data/mine/train.parquet`."""

    def place_of(side: Side) -> int:
        split = Path(side.name).stem
        return SPLITS.index(split) if split in SPLITS else -1

    ordered = sorted(sides, key=place_of)
    repeated = {
        what: {side.name: len(getattr(side, what)()) for side in ordered} for what in REPEATED
    }
    return {"leaks": [shared_between(*pair) for pair in combinations(ordered, 2)], **repeated}


def leak_lines(checks: dict[str, Any]) -> Iterator[str]:
    """Yields the report for people."""
    yield from map(leak_line, checks["leaks"])
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
            gone = f"is missing, though {folder / CARD} names it"
            what = "is not as it was prepared" if file.is_file() else gone
            lines.append(f"{file}: {what}; prepare the data set again, or delete {folder / CARD}")
    checks = leaks_among(sides)
    sound &= not any(map(is_leak, checks["leaks"]))
    lines += [*leak_lines(checks), *follow_lines([path for path, _ in named_parts(paths)])]
    return "\n".join([*lines, "sound" if sound else "NOT SOUND"]), sound


def named_parts(paths: list[Path]) -> list[tuple[Path, str]]:
    """Returns the splits of a folder each for itself, everything else as a whole, with names."""
    if len(set(map(str, paths))) < len(paths):
        raise UserError(f"{paths[0]}: named twice; a data set shares everything with itself")
    parts: list[tuple[Path, str]] = []
    for path in paths:
        # A split NAME.parquet may be a folder itself.
        is_folder, alone = path.is_dir() and path.suffix != ".parquet", len(paths) == 1
        splits = sorted(path.glob("*.parquet")) if is_folder else []
        # Others are shards of one split, which may share images.
        if splits and (alone or all(split.stem in SPLITS for split in splits)):
            parts += [(one, one.stem if alone else str(path / one.stem)) for one in splits]
        else:
            parts.append((path, str(path)))
    return parts


def read_side(path: Path) -> Side:
    """Returns the images of --against. Raises UserError, also for an image that cannot be held
    against others: what shares it would stay unseen."""
    examined = examine(path)
    if examined.unread:
        advice = "mend or delete this row, so that all of --against counts"
        raise UserError(f"{path}: {examined.unread[0]}; {advice}")
    return examined.side
