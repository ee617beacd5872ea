"""`rarl prepare`: a published data set, or a folder of your own → canonical Parquet, one per split,
with its card.

Two passes: every record is read, checked and fingerprinted once, into a temporary file; then, when
all is known that splits and leaks need, the rows go into their splits. Memory holds no images, only
their fingerprints.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rarl.data.parquet import CARD, ShardWriter
from rarl.errors import UserError
from rarl.prepare.building import building
from rarl.prepare.card import SKIPPED, Card, SplitCounts, card_files, card_text, hashed_files
from rarl.prepare.fingerprint import find_leak, image_groups, stacked
from rarl.prepare.leaks import leak_lines, leaks_among, read_side
from rarl.prepare.sources import SOURCES
from rarl.prepare.sources.files import Files
from rarl.prepare.sources.record import BadRecord, Choices
from rarl.prepare.sources.registry import Source, find_source_files
from rarl.prepare.staging import Staged, read_staged, stage

SPLITS = ("official", "image-disjoint")
SHOWN_COLUMNS, SHOWN_REASONS = 10, 5  # in the report
# of the records: above it something is wrong with all of them, such as a missing image folder
MOST_SKIPPED = 0.5


def prepare_dataset(
    source: str,
    src: str | Path,
    out: Path,
    split: str = "official",
    test_share: float = 0.2,
    seed: int = 0,
    choices: Choices | None = None,
    against: Path | None = None,
) -> str:
    """Writes the folder OUT, whole or not at all; returns the report. Raises UserError."""
    known, choices = find_source(source), choices or Choices()
    known.require_taken(choices)
    if split not in SPLITS:
        raise UserError(f"split '{split}' is unknown; known are: {', '.join(SPLITS)}")
    if not 0 < test_share < 1:
        raise UserError(f"test share {test_share} is not between 0 and 1")
    protected = None if against is None else read_side(against)
    with ExitStack() as stack:
        files = Files(find_source_files(str(src)))
        stack.callback(files.close)
        folder = stack.enter_context(building(out))
        replaced = card_files(out) is not None
        temporary = folder / ".staged.parquet"
        staged = stage(known.read(files, choices), temporary, known.name)
        require_usable(staged, str(src), choices)
        splits = np.array(staged.splits)
        removed = 0
        if protected is not None:
            leaking = find_leak(protected, staged.side).questions
            removed = len(leaking)
            splits[leaking] = ""
            if not (splits != "").any():
                raise UserError(
                    f"{src}: every question is about an image that {against} has too; nothing is left"
                )
        if split == "image-disjoint":
            splits = split_by_image(staged, splits, test_share, seed)
        counts = write_splits(temporary, folder, splits)
        temporary.unlink()
        write_skipped(folder / SKIPPED, staged.skipped)
        card = Card(
            source=known.name,
            read_from=str(src),
            licence=known.licence,
            split=split
            if split == "official"
            else f"{split}, seed {seed}, test share {test_share}",
            choices={name: getattr(choices, name) for name in known.takes},
            records=staged.records,
            left_out=dict(staged.left_out),
            skipped=len(staged.skipped),
            notes=dict(staged.notes),
            languages=dict(staged.languages.most_common()),
            against=None if against is None else str(against),
            removed_as_leaks=removed,
            splits=counts,
            checks=leaks_among(staged.split_sides(splits)),
            files=hashed_files(folder),
        )
        (folder / CARD).write_text(
            json.dumps(asdict(card), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    return report(card, staged, out, replaced)


def find_source(name: str) -> Source:
    if name not in SOURCES:
        raise UserError(f"source '{name}' is unknown; known are: {', '.join(SOURCES)}")
    return SOURCES[name]


def require_usable(staged: Staged, src: str, choices: Choices) -> None:
    """Raises UserError where nothing is left, or where so much is bad that the data set as a whole
    is."""
    wanted = staged.records - sum(staged.left_out.values())
    if not wanted:
        kept = ", ".join(staged.left_out) or "what was asked for"
        raise UserError(
            f"{src}: none of the {staged.records:,} records is left after keeping those {kept}"
        )
    bad = staged.skipped
    if len(bad) == wanted:
        raise UserError(
            f"not one of the {wanted:,} records can be used; the first: {bad[0].where}: {bad[0].reason}"
        )
    if len(bad) > MOST_SKIPPED * wanted:
        raise UserError(
            f"{len(bad):,} of {wanted:,} records cannot be used, so something is wrong with all of them (was all of it "
            f"downloaded?): {counted_reasons(bad)}; the first: {bad[0].where}: {bad[0].reason}"
        )


def split_by_image(
    staged: Staged, splits: NDArray[np.str_], test_share: float, seed: int
) -> NDArray[np.str_]:
    """Puts `test_share` of the images, with all their questions and all images that are nearly the
    same, into the test split. Rows with an empty split stay out."""
    groups = image_groups(stacked(staged.side.looks))
    of_row = groups[[image for image, _ in staged.side.rows]]
    kept = splits != ""
    present = np.unique(of_row[kept])
    count = min(max(1, round(test_share * len(present))), len(present) - 1)
    if not count:
        raise UserError("all images are the same or nearly so: there is nothing to split by image")
    chosen = np.random.default_rng(seed).permutation(present)[:count]
    return np.where(kept, np.where(np.isin(of_row, chosen), "test", "train"), "")


def write_splits(staged: Path, folder: Path, splits: NDArray[np.str_]) -> dict[str, SplitCounts]:
    names = sorted({*splits.tolist()} - {""})
    counts = {name: SplitCounts() for name in names}
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(ShardWriter(folder / f"{name}.parquet")) for name in names
        }
        for example, name in zip(read_staged(staged), splits.tolist(), strict=True):
            if name:
                placed = counts[name].count(example, name)
                writers[name].add(placed)
    return {name: counted.finished() for name, counted in counts.items()}


def write_skipped(path: Path, skipped: list[BadRecord]) -> None:
    """A line for every record that was left out as unusable; no file where there is none."""
    if skipped:
        lines = [json.dumps(asdict(one), ensure_ascii=False) for one in skipped]
        # A file name may be of another encoding than UTF-8, which Python holds as lone surrogates.
        path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="backslashreplace")


def report(card: Card, staged: Staged, out: Path, replaced: bool) -> str:
    lines = [card_text(card, out)]
    if staged.unused:
        more = (
            f" and {len(staged.unused) - SHOWN_COLUMNS} more"
            if len(staged.unused) > SHOWN_COLUMNS
            else ""
        )
        lines.append(
            f"columns that are not used: {', '.join(list(staged.unused)[:SHOWN_COLUMNS])}{more}"
        )
    if staged.skipped:
        first = staged.skipped[0]
        listed = f"listed in {out / SKIPPED}: {counted_reasons(staged.skipped)}"
        lines.append(
            f"{len(staged.skipped):,} records cannot be used and were left out, {listed}; the first: {first.where}: "
            f"{first.reason}"
        )
    lines += leak_lines(card.checks)
    if replaced:
        lines.append(f"{out}: held a data set before, which this one replaced")
    return "\n".join(lines)


# A text in quotes that ends at a blank or mark, so that the apostrophe in 'Crohn's disease' is part
# of it; or a list.
QUOTED = re.compile(r"\s*(\[.*\]|'.*?'(?=[\s,;:.?)]|$))", re.DOTALL)


def counted_reasons(skipped: list[BadRecord]) -> str:
    """The most frequent first, without the values that they quote."""
    counts = Counter(QUOTED.sub("", bad.reason) for bad in skipped)
    shown = [f"{count:,} × {reason}" for reason, count in counts.most_common(SHOWN_REASONS)]
    others = len(skipped) - sum(count for _, count in counts.most_common(SHOWN_REASONS))
    return ", ".join(shown + ([f"{others:,} for other reasons"] if others else []))
