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
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rarl.data.parquet import ParquetRows, read_card, write_examples, write_split
from rarl.errors import UserError
from rarl.files import replacing_folder
from rarl.prepare.card import SKIPPED, Card, SplitCounts, hashed_files, require_replaceable
from rarl.prepare.files import Files
from rarl.prepare.fingerprint import Side, find_leak, image_groups
from rarl.prepare.inspect import Inspector, Sound, in_threads, language_of
from rarl.prepare.leaks import leak_lines, leaks_among, read_side
from rarl.prepare.rows import BadRecord, Choices, Item, LeftOut
from rarl.prepare.sources import Source, find_source, find_source_files
from rarl.schema import Example

SPLITS = ("official", "image-disjoint")
STAGED = ".staged.parquet"
SHOWN_COLUMNS, SHOWN_REASONS = 10, 5  # in the report
# Share of the records: above it something is wrong with all of them, such as a missing image
# folder.
MOST_SKIPPED = 0.5
TEST_IN_TRAIN = "questions of the published test split are in train: do not test on the latter"
UNTOLD = "questions are in train since neither a column `split` nor the table's name says otherwise"
# A text in quotes that ends at a blank or mark, so that the apostrophe in 'Crohn's disease' is part
# of it; or a list.
QUOTED = re.compile(r"\s*(\[.*\]|'.*?'(?=[\s,;:.?)]|$))", re.DOTALL)


@dataclass(frozen=True)
class Request:
    """What the user asks `rarl prepare` for."""

    source: Source
    src: str
    split: str
    test_share: float
    seed: int
    choices: Choices
    against: Path | None

    def __post_init__(self) -> None:
        """Raises UserError for what cannot be asked."""
        self.source.require_taken(self.choices)
        if self.split not in SPLITS:
            raise UserError(f"split '{self.split}' is unknown; known are: {', '.join(SPLITS)}")
        if not 0 < self.test_share < 1:
            raise UserError(f"test share {self.test_share} is not between 0 and 1")


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
    known = find_source(source)
    asked = Request(known, str(src), split, test_share, seed, choices or Choices(), against)
    protected = None if against is None else read_side(against)
    with closing(Files(find_source_files(asked.src))) as files:
        try:
            with replacing_folder(out) as folder:
                require_replaceable(out)
                replaced = read_card(out) is not None
                staged = Staged()
                items = known.read(files, asked.choices)
                write_examples(folder / STAGED, staged.examples(items, known.name))
                card = finish(folder, staged, asked, protected)
        except OSError as error:
            raise UserError(f"{out}: cannot be written: {error.strerror or error}") from None
    return "\n".join(report(card, staged, out, replaced))


@dataclass
class Staged:
    """What the first pass keeps in memory of the examples that it writes to one temporary file:
    what the checks and the split need. `side` and `splits` are in their order."""

    side: Side = field(default_factory=lambda: Side("all"))
    splits: list[str] = field(default_factory=list)  # empty if nothing tells
    records: int = 0
    left_out: Counter[str] = field(default_factory=Counter)  # reason → records not asked for
    notes: Counter[str] = field(default_factory=Counter)  # what was put right → records
    languages: Counter[str] = field(default_factory=Counter)
    skipped: list[BadRecord] = field(default_factory=list)
    unused: dict[str, None] = field(default_factory=dict)  # columns, in their order

    def examples(self, items: Iterable[Item], dataset: str) -> Iterator[Example]:
        """Yields the usable examples. Ids that were used before are faults; equal images get one
        image_id, others never."""
        known_ids: dict[str, str] = {}  # id → where
        image_ids: dict[str, str] = {}  # content → image_id
        owners: dict[str, str] = {}  # image_id → content
        for found in in_threads(Inspector().inspect, items):
            self.records += 1
            if isinstance(found, Sound) and found.example.id in known_ids:
                reason = f"id '{found.example.id}' is also that of '{known_ids[found.example.id]}'"
                found = BadRecord(found.where, reason)
            if isinstance(found, LeftOut):
                self.left_out[found.reason] += 1
            elif isinstance(found, BadRecord):
                self.skipped.append(found)
            else:
                example, content = found.example, found.print.content
                known_ids[example.id] = found.where
                image_id = example.image_id
                if owners.setdefault(image_id, content) != content:
                    image_id = content  # it was published under the name of another image
                image_id = image_ids.setdefault(content, image_id)
                self.note(found)
                yield replace(example, image_id=image_id, dataset=dataset)

    def note(self, sound: Sound) -> None:
        self.side.add(sound.print, sound.example.question, sound.example.answer)
        self.splits.append(sound.example.split)
        self.notes.update(sound.notes)
        self.unused.update(dict.fromkeys(sound.unused))
        language = language_of(sound.example.question)
        if language:
            self.languages[language] += 1


def finish(folder: Path, staged: Staged, asked: Request, protected: Side | None) -> Card:
    """The second pass: writes the splits and the card into the folder. Raises UserError."""
    require_usable(staged, asked)
    splits = np.array(staged.splits, dtype="U10")
    described = asked.split
    if asked.split == "official":
        described = told(splits, staged, asked)
    splits[splits == ""] = "train"
    removed = [] if protected is None else find_leak(protected, staged.side).questions
    splits[removed] = ""
    if not (splits != "").any():
        shared = f"every question is about an image that {asked.against} has too; nothing is left"
        raise UserError(f"{asked.src}: {shared}")
    if asked.split == "image-disjoint":
        described = f"image-disjoint, seed {asked.seed}, test share {asked.test_share}"
        published, splits = splits, split_by_image(staged.side, splits, asked)
        staged.notes[TEST_IN_TRAIN] = int(((published == "test") & (splits == "train")).sum())
    rows, counts = ParquetRows(folder / STAGED), {}
    for name in sorted({*splits.tolist()} - {""}):
        counts[name] = SplitCounts()
        examples = (rows.read([row])[0] for row in np.flatnonzero(splits == name).tolist())
        write_split(folder / f"{name}.parquet", counts[name].counted(examples, name))
    (folder / STAGED).unlink()
    if staged.skipped:
        lines = [json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in staged.skipped]
        # A file name may be of another encoding than UTF-8, which Python holds as lone surrogates.
        text = "".join(lines).encode("utf-8", "backslashreplace")
        (folder / SKIPPED).write_bytes(text)
    sides = [staged.side.part(name, np.flatnonzero(splits == name)) for name in counts]
    card = Card(
        source=asked.source.name,
        read_from=asked.src,
        licence=asked.source.licence,
        split=described,
        choices={name: getattr(asked.choices, name) for name in asked.source.takes},
        records=staged.records,
        left_out=dict(staged.left_out),
        skipped=len(staged.skipped),
        notes=dict(+staged.notes),
        languages=dict(staged.languages.most_common()),
        against=None if asked.against is None else str(asked.against),
        removed_as_leaks=len(removed),
        splits=counts,
        checks=leaks_among(sides),
        files=hashed_files(folder),
    )
    card.write(folder)
    return card


def told(splits: NDArray[np.str_], staged: Staged, asked: Request) -> str:
    """Returns what the card says of the split: official, unless nothing tells it for some records.
    Raises UserError if these are of a published data set: test records may be among them."""
    untold = int((splits == "").sum())
    if untold and asked.source.hub is not None:
        raise UserError(
            f"{asked.src}: nothing tells the split of {untold:,} questions, neither their records "
            "nor train, validation or test in the name of a file or folder; name the files so, or "
            "draw a split of your own with --split image-disjoint"
        )
    staged.notes[UNTOLD] = untold
    return "as the table says" if untold else "official"


def require_usable(staged: Staged, asked: Request) -> None:
    """Raises UserError if nothing is left, or if so much is bad that the data set as a whole is."""
    wanted, bad = staged.records - sum(staged.left_out.values()), staged.skipped
    if not wanted:
        kept = ", ".join(staged.left_out) or "what was asked for"
        none = f"none of the {staged.records:,} records is left after keeping those {kept}"
        raise UserError(f"{asked.src}: {none}")
    if len(bad) == wanted:
        first = f"{bad[0].where}: {bad[0].reason}"
        raise UserError(f"not one of the {wanted:,} records can be used; the first: {first}")
    if len(bad) > MOST_SKIPPED * wanted:
        raise UserError(
            f"{len(bad):,} of {wanted:,} records cannot be used, so something is wrong with all of "
            f"them (was all of it downloaded?): {counted_reasons(bad)}; the first: {bad[0].where}: "
            f"{bad[0].reason}"
        )


def split_by_image(side: Side, splits: NDArray[np.str_], asked: Request) -> NDArray[np.str_]:
    """Puts `test_share` of the images, with all their questions and all images that are nearly the
    same, into the test split. Rows with an empty split stay out."""
    of_row = image_groups(side.stacked())[[image for image, _ in side.rows]]
    kept = splits != ""
    present = np.unique(of_row[kept])
    count = min(max(1, round(asked.test_share * len(present))), len(present) - 1)
    if not count:
        raise UserError("all images are the same or nearly so: there is nothing to split by image")
    chosen = np.random.default_rng(asked.seed).permutation(present)[:count]
    return np.where(kept, np.where(np.isin(of_row, chosen), "test", "train"), "")


def report(card: Card, staged: Staged, out: Path, replaced: bool) -> Iterator[str]:
    yield from card.lines(out)
    if staged.unused:
        shown, more = list(staged.unused)[:SHOWN_COLUMNS], len(staged.unused) - SHOWN_COLUMNS
        others = f" and {more} more" if more > 0 else ""
        yield f"columns that are not used: {', '.join(shown)}{others}"
    if staged.skipped:
        first = staged.skipped[0]
        yield (
            f"{len(staged.skipped):,} records cannot be used and were left out, listed in "
            f"{out / SKIPPED}: {counted_reasons(staged.skipped)}; the first: {first.where}: "
            f"{first.reason}"
        )
    yield from leak_lines(card.checks)
    if replaced:
        yield f"{out}: held a data set before, which this one replaced"


def counted_reasons(skipped: list[BadRecord]) -> str:
    """Returns the reasons without what they quote, with their counts, the most frequent first."""
    counts = Counter(QUOTED.sub("", bad.reason) for bad in skipped).most_common()
    shown = [f"{count:,} × {reason}" for reason, count in counts[:SHOWN_REASONS]]
    others = sum(count for _, count in counts[SHOWN_REASONS:])
    return ", ".join(shown + ([f"{others:,} for other reasons"] if others else []))
