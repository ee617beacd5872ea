"""`rarl prepare`: a published data set, or a folder of your own → canonical Parquet, one per split,
with its card. Every record is read, checked and fingerprinted once, into a temporary file; then the
rows go into their splits. Memory holds no images, only their fingerprints."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rarl.data.parquet import CARD, ParquetRows, read_card, write_examples, write_split
from rarl.errors import UserError
from rarl.files import replacing_folder
from rarl.prepare.card import (
    DOUBTS,
    REMOVED,
    SKIPPED,
    hashed_files,
    require_replaceable,
    split_counts,
)
from rarl.prepare.doubts import KINDS, Doubt, doubtful_rows, write_lines
from rarl.prepare.facts import WAYS_TO_FACTS, split_facts
from rarl.prepare.files import Files
from rarl.prepare.fingerprint import SeenImages, Side, content_of, find_leak
from rarl.prepare.followed import follow_lines
from rarl.prepare.hub import locate
from rarl.prepare.leaks import clear_language, in_threads, leaks_among, read_side
from rarl.prepare.records import HARMLESS, Sound, inspect
from rarl.prepare.report import counted_reasons, fact_lines, report_lines
from rarl.prepare.rows import BadRecord, Choices, Item, LeftOut
from rarl.prepare.sources import Source, find_source
from rarl.prepare.splitting import Splitting, own_split, require_way_to_split
from rarl.schema import Example

FORMAT = 1  # of the card
STAGED = ".staged.parquet"
# Share of the records. Above it something is wrong with all, such as a missing image folder.
MOST_SKIPPED = 0.5
TEST_IN_TRAIN = "questions of the published test split are in train: do not test on the latter"
SAME, NEAR = (f"about {what} that --against has" for what in ("an image", "a near copy of one"))
UNTOLD = "questions are in train since neither a column `split` nor the table's name says otherwise"


@dataclass(frozen=True)
class PrepareRequest:
    """What the user asks `rarl prepare` for. Raises UserError for what cannot be asked."""

    source: Source
    src: str
    split: str
    test_share: float
    seed: int
    choices: Choices
    against: Path | None
    drop: tuple[str, ...]  # of KINDS
    facts: str | None  # of WAYS_TO_FACTS
    validation_share: float = 0.0

    def __post_init__(self) -> None:
        self.source.require_taken(self.choices)
        require_way_to_split(self.split)
        self.splitting  # noqa: B018
        unknown = [kind for kind in self.drop if kind not in KINDS]
        if unknown:
            raise UserError(f"--drop '{unknown[0]}' is unknown; known are: {', '.join(KINDS)}")
        if self.facts not in (None, *WAYS_TO_FACTS):
            known = ", ".join(WAYS_TO_FACTS)
            raise UserError(f"--facts '{self.facts}' is unknown; known are: {known}")

    @property
    def splitting(self) -> Splitting:
        return Splitting(self.split, self.test_share, self.seed, self.validation_share)


def prepare_dataset(
    source: str,
    src: str | Path,
    out: Path,
    split: str = "official",
    test_share: float = 0.2,
    seed: int = 0,
    choices: Choices | None = None,
    against: Path | None = None,
    drop: tuple[str, ...] = (),
    facts: str | None = None,
    validation_share: float = 0.0,
) -> str:
    """Writes the folder OUT, whole or not at all; returns the report. Raises UserError."""
    known = find_source(source)
    chosen = choices or Choices()
    shares = (split, test_share, seed)
    asked = PrepareRequest(known, str(src), *shares, chosen, against, drop, facts, validation_share)
    protected = None if against is None else read_side(against)
    located = locate(asked.src, known.reads(asked.choices))
    with closing(Files(located.path)) as files:
        try:
            with replacing_folder(out) as folder:
                require_replaceable(out)
                replaced = read_card(out) is not None
                staged = Staged()
                items = known.read(files, asked.choices)
                write_examples(folder / STAGED, staged.examples(items, known.name))
                card = finish(folder, staged, asked, protected, located.revision)
        except OSError as error:
            raise UserError(f"{out}: cannot be written: {error.strerror or error}") from None
    lines = list(report_lines(card, staged.skipped, staged.doubts, out))
    for name in card["splits"]:
        lines += fact_lines(name, ParquetRows(out / f"{name}.parquet"))
    lines += follow_lines([out / f"{name}.parquet" for name in card["splits"]])
    if replaced:
        lines.append(f"{out}: held a data set before, which this one replaced")
    return "\n".join(lines)


@dataclass
class Staged:
    """What the first pass keeps in memory of the examples that it writes to one temporary file.
    `side`, `splits` and `places` are in their order."""

    side: Side = field(default_factory=lambda: Side("all"))
    splits: list[str] = field(default_factory=list)  # empty if nothing tells
    sites: list[str | None] = field(default_factory=list)
    places: list[str] = field(default_factory=list)  # file and row
    records: int = 0
    left_out: Counter[str] = field(default_factory=Counter)  # reason → records not asked for
    notes: Counter[str] = field(default_factory=Counter)  # what was put right → records
    languages: Counter[str] = field(default_factory=Counter)
    skipped: list[BadRecord] = field(default_factory=list)
    files: dict[str, dict[str, str]] = field(default_factory=dict)  # note → image → its name
    doubts: list[Doubt] = field(default_factory=list)
    extra: dict[str, None] = field(default_factory=dict)  # further columns, in their order

    def examples(self, items: Iterable[Item], dataset: str) -> Iterator[Example]:
        """Yields the usable examples. Ids that were used before are faults; equal images get one
        image_id, others never."""
        known_ids: dict[str, str] = {}  # id → where
        image_ids: dict[str, str] = {}  # content → image_id
        owners: dict[str, str] = {}  # image_id → content
        for found in in_threads(partial(inspect, seen=SeenImages()), items):
            self.records += 1
            if isinstance(found, Sound) and found.example.id in known_ids:
                reason = f"id '{found.example.id}' is also that of '{known_ids[found.example.id]}'"
                found = BadRecord(found.where, reason)
            if isinstance(found, LeftOut):
                self.left_out[found.reason] += 1
            elif isinstance(found, BadRecord):
                self.skipped.append(found)
            else:
                example = found.example
                content = content_of(found.prints) if found.prints else example.image_id
                known_ids[example.id] = found.where
                asked = (example.question, example.answer, example.options, example.patient)
                self.side.add(found.prints, *asked)
                self.splits.append(example.split)
                self.sites.append(example.site)
                self.places.append(found.where)
                self.notes.update(found.notes)
                for note, file, name in found.image_notes:
                    self.files.setdefault(note, {})[file] = name
                self.extra.update(dict.fromkeys(example.extra))
                self.languages.update(clear_language(example.question))
                image_id = example.image_id
                if owners.setdefault(image_id, content) != content:
                    image_id = content  # it was published under the name of another image
                image_id = image_ids.setdefault(content, image_id)
                yield replace(example, image_id=image_id, dataset=dataset)


def finish(
    folder: Path,
    staged: Staged,
    asked: PrepareRequest,
    protected: Side | None,
    revision: str | None,
) -> dict[str, Any]:
    """The second pass: writes the splits and the card into the folder; returns the card. Equal
    inputs give an equal card. Raises UserError."""
    require_usable(staged, asked)
    splits = np.array(staged.splits, dtype="U10")
    described = asked.split
    if asked.split == "official":
        described = told(splits, staged, asked)
    splits[splits == ""] = "train"
    removed = dict(removed_rows(protected, staged)) if protected else {}
    splits[list(removed)] = ""
    if not (splits != "").any():
        shared = f"every question is about an image that {asked.against} has too; nothing is left"
        raise UserError(f"{asked.src}: {shared}")
    if asked.split != "official":
        published = splits
        splits, described = own_split(staged.side, staged.sites, splits, asked.splitting)
        staged.notes[TEST_IN_TRAIN] = int(((published == "test") & (splits == "train")).sum())
    data, counts, sides = ParquetRows(folder / STAGED), {}, []
    staged.doubts = list(find_doubts(staged, splits, data.column("answer")))
    dropped = [one for one in staged.doubts if one.kind in asked.drop]
    splits[[one.row for one in dropped]] = ""
    if not (splits != "").any():
        raise UserError(f"{asked.src}: nothing is left without {' and '.join(asked.drop)}")
    for name in sorted({*splits.tolist()} - {""}):
        rows = np.flatnonzero(splits == name).tolist()
        found = split_facts(data, rows, siblings=asked.facts == "siblings")
        examples = (replace(data.read([row])[0], split=name, **found.get(row, {})) for row in rows)
        write_split(folder / f"{name}.parquet", examples)
        written = ParquetRows(folder / f"{name}.parquet")
        counts[name] = split_counts(written, range(len(written)))
        sides.append(staged.side.part(name, rows))
    (folder / STAGED).unlink()
    write_lines(folder / SKIPPED, staged.skipped)
    write_lines(folder / DOUBTS, staged.doubts)
    write_lines(folder / REMOVED, list(removed.values()))
    card = {
        "source": asked.source.name,
        "read_from": asked.src,
        "revision": revision,  # of the hub's data set
        "licence": asked.source.licence,
        "split": described,
        "choices": {name: getattr(asked.choices, name) for name in asked.source.takes},
        "records": staged.records,  # read from the source
        "left_out": staged.left_out,  # not asked for
        "skipped": len(staged.skipped),  # could not be used
        "notes": dict(+staged.notes) | {note: len(found) for note, found in staged.files.items()},
        "extra": list(staged.extra),
        "languages": dict(staged.languages.most_common()),  # of questions where it is clear
        "against": None if asked.against is None else str(asked.against),
        "removed_as_leaks": Counter(one.reason for one in removed.values()),
        "dropped": Counter(one.kind for one in dropped),
        "facts": asked.facts,
        "splits": counts,
        "checks": leaks_among(sides),
        "files": hashed_files(folder),
        "format": FORMAT,
    }
    text = json.dumps(card, indent=1, ensure_ascii=False)
    (folder / CARD).write_text(text + "\n", encoding="utf-8")
    return card


def removed_rows(protected: Side, staged: Staged) -> Iterator[tuple[int, BadRecord]]:
    """Yields the rows whose images --against has too, each with its place and why."""
    leak = find_leak(protected, staged.side)
    same = set(leak.same_images)
    for row in leak.questions:
        reason = SAME if same & {*staged.side.rows[row][0]} else NEAR
        yield row, BadRecord(staged.places[row], reason)


def find_doubts(
    staged: Staged, splits: NDArray[np.str_], answers: Sequence[str]
) -> Iterator[Doubt]:
    """Yields the rows of each split that repeat or contradict another of it, and the DICOM files
    that may tell who the patient is."""
    for name in sorted({*splits.tolist()} - {""}):
        rows = np.flatnonzero(splits == name).tolist()
        yield from doubtful_rows(staged.side.part(name, rows), rows, staged.places, answers)
    for note, files in staged.files.items():
        if note not in HARMLESS:
            yield from (Doubt(name, "identifying", note) for name in files.values())


def told(splits: NDArray[np.str_], staged: Staged, asked: PrepareRequest) -> str:
    """Returns what the card says of the split: official, unless nothing tells it for some records.
    Raises UserError if these are of a published data set: test records may be among them."""
    untold = int((splits == "").sum())
    if untold and asked.source.is_published:
        raise UserError(
            f"{asked.src}: nothing tells the split of {untold:,} questions, neither their records "
            "nor train, validation or test in the name of a file or folder; name the files so, or "
            "draw a split of your own with --split image-disjoint"
        )
    staged.notes[UNTOLD] = untold
    return "as the table says" if untold else "official"


def require_usable(staged: Staged, asked: PrepareRequest) -> None:
    """Raises UserError if nothing is left, or if so much is bad that the data set as a whole is."""
    wanted, bad = staged.records - staged.left_out.total(), staged.skipped
    if not wanted:
        kept = ", ".join(staged.left_out) or "what was asked for"
        none = f"none of the {staged.records:,} records is left after keeping those {kept}"
        raise UserError(f"{asked.src}: {none}")
    if len(bad) == wanted:
        raise UserError(f"not one of the {wanted:,} records can be used; the first: {bad[0]}")
    if len(bad) > MOST_SKIPPED * wanted:
        raise UserError(
            f"{len(bad):,} of {wanted:,} records cannot be used, so something is wrong with all of "
            f"them (was all of it downloaded?): {counted_reasons(bad)}; the first: {bad[0]}"
        )
