"""What clinicians think of rationales: their marks on disk, how far two of them agree, and the data
set with their marks read back.

Each reviewer has a file in OUT's folder `review`, to which every mark is added as one line and
flushed to disk before the page goes on; the last line about a question counts. So nothing that was
said is lost or changed, two reviewers can work side by side, and a line that a crash cut off is not
read.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Literal, get_args

from pydantic import TypeAdapter, ValidationError

from rarl.data.parquet import ParquetRows, write_examples
from rarl.errors import UserError
from rarl.judge.card_measure import cohens_kappa
from rarl.prompts import has_rationale
from rarl.rationales.explain import CHECKED, RATIONALES, REJECTED
from rarl.schema import Example

REVIEW = "review"  # OUT's folder of marks
Decision = Literal["accept", "edit", "reject"]
DECISIONS: tuple[Decision, ...] = get_args(Decision)  # from the weakest to the one that wins
NAME = re.compile(r"\w[\w.@ -]{0,63}")
LONGEST_TEXT = 4000  # characters of an edited rationale
WHO, WHEN = "rationale_reviewer", "rationale_reviewed"  # further columns of the data set


@dataclass(frozen=True)
class Mark:
    """What a reviewer thinks of one rationale. `shown` is the hash of the rationale that was seen:
    a mark is no word about another one. `text` is the edited rationale. `at` is in UTC."""

    id: str
    decision: Decision
    reviewer: str
    at: str
    shown: str
    text: str | None = None


MARK = TypeAdapter(Mark)
Marks = Mapping[str, Mapping[str, Mark]]  # reviewer → question's id → the last mark


def digest_of(rationale: str) -> str:
    return hashlib.sha256(rationale.encode()).hexdigest()[:16]


def require_reviewer(name: str) -> str:
    """Raises UserError for a name that cannot be that of a file."""
    if not NAME.fullmatch(name):
        allowed = "up to 64 letters, digits, blanks and .@-_, a letter or digit first"
        raise UserError(f"--reviewer '{name}': a name may hold {allowed}")
    return name


class MarkFile:
    """The marks of one reviewer in OUT."""

    def __init__(self, out: Path, reviewer: str) -> None:
        self.path = out / REVIEW / f"{require_reviewer(reviewer)}.jsonl"
        self.reviewer = reviewer

    def read(self) -> dict[str, Mark]:
        """Returns the last mark of each question, by its id."""
        try:
            lines = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        except FileNotFoundError:
            return {}
        marks = {}
        for line in lines:
            try:
                mark = MARK.validate_json(line)
            except ValidationError:
                continue  # cut off by a crash
            marks[mark.id] = mark
        return marks

    def add(self, example: Example, decision: Decision, text: str | None = None) -> Mark:
        """Writes a mark of the example's rationale, now, and returns when it is on disk."""
        seen = example.rationale or ""
        if decision == "edit" and (text or "").strip() == seen.strip():
            decision, text = "accept", None
        now = datetime.now(UTC).isoformat(timespec="seconds")
        kept = text.strip() if decision == "edit" and text else None
        mark = Mark(example.id, decision, self.reviewer, now, digest_of(seen), kept)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = os.fstat(handle).st_size
            # What a crash cut off stays a line of its own.
            torn = size and os.pread(handle, 1, size - 1) != b"\n"
            line = json.dumps(asdict(mark), ensure_ascii=False) + "\n"
            os.write(handle, (("\n" if torn else "") + line).encode())
            os.fsync(handle)
        finally:
            os.close(handle)
        return mark


def read_marks(out: Path) -> dict[str, dict[str, Mark]]:
    """Returns the marks of all reviewers of OUT, by their names."""
    names = sorted(path.stem for path in (out / REVIEW).glob("*.jsonl"))
    return {name: MarkFile(out, name).read() for name in names}


def open_rationales(out: Path) -> ParquetRows:
    """Returns the rows of OUT. Raises UserError where `rarl data explain` has not made it."""
    path = out / RATIONALES
    if not path.is_file():
        raise UserError(f"{path}: is not there; `rarl data explain DATA {out}` makes it")
    return ParquetRows(path)


def to_review(data: ParquetRows) -> list[int]:
    """Returns the rows that have a rationale."""
    texts = data.column("rationale")
    return [row for row, text in enumerate(texts) if has_rationale(text)]


@dataclass(frozen=True)
class Agreement:
    """How far two reviewers agree on the `n` rationales that both have seen: as a share, and above
    chance (Cohen's kappa; None where chance alone agrees fully), on the three marks and on whether
    the rationale is to be had at all, accepted or edited."""

    first: str
    second: str
    n: int
    same: float
    kappa: float | None
    usable: float
    usable_kappa: float | None

    def line(self) -> str:
        """Returns it in words."""
        usable = f"to be had or not {agreement_in_words(self.usable, self.usable_kappa)}"
        same = f"accepted, edited or rejected {agreement_in_words(self.same, self.kappa)}"
        return f"{self.first} and {self.second} on {self.n} rationales: {usable}; {same}"


def agreement_in_words(share: float, kappa: float | None) -> str:
    told = "not defined, since both always say the same" if kappa is None else f"{kappa:.2f}"
    return f"{100 * share:.0f} % alike, Cohen's kappa {told}"


def agreements(marks: Marks, data: ParquetRows) -> list[Agreement]:
    """Returns the agreement of every two reviewers who have marked a rationale in common."""
    current = current_marks(marks, data)
    found = []
    for first, second in combinations(sorted(current), 2):
        both = sorted(current[first].keys() & current[second].keys())
        if not both:
            continue
        one, other = ([current[name][id].decision for id in both] for name in (first, second))
        ours, theirs = ([decision != "reject" for decision in own] for own in (one, other))
        found.append(
            Agreement(
                first=first,
                second=second,
                n=len(both),
                same=share_alike(one, other),
                kappa=cohens_kappa(one, other),
                usable=share_alike(ours, theirs),
                usable_kappa=cohens_kappa(ours, theirs),
            )
        )
    return found


def share_alike(first: Sequence[object], second: Sequence[object]) -> float:
    return sum(a == b for a, b in zip(first, second, strict=True)) / len(first)


def current_marks(marks: Marks, data: ParquetRows) -> dict[str, dict[str, Mark]]:
    """Returns the marks of rationales that are still the same as when they were seen."""
    shown = {
        name: digest_of(text)
        for name, text in zip(data.column("id"), data.column("rationale"), strict=True)
        if has_rationale(text)
    }
    return {
        reviewer: {name: mark for name, mark in own.items() if shown.get(name) == mark.shown}
        for reviewer, own in marks.items()
    }


@dataclass(frozen=True)
class Applied:
    """What was read back: questions by what was decided, how many reviewers disagreed on, and marks
    of rationales that are no longer the same."""

    counts: dict[str, int]
    disagreed: int
    outdated: int

    def lines(self) -> Iterator[str]:
        """Yields what people are told."""
        yield ", ".join(f"{count:,} {name}" for name, count in self.counts.items())
        if self.disagreed:
            yield (
                f"{self.disagreed:,} on which reviewers disagree: rejected where any of them "
                "rejects, else the latest edit"
            )
        if self.outdated:
            yield f"{self.outdated:,} marks are of rationales that have changed since; not read"


def apply_marks(out: Path, target: Path) -> Applied:
    """Writes OUT's data set to `target` with what the reviewers have decided. Raises UserError."""
    data, marks = open_rationales(out), read_marks(out)
    if not any(marks.values()):
        raise UserError(f"{out}: nothing is marked yet; `rarl data review {out}` shows the page")
    if target.suffix != ".parquet" or target.resolve().parent == out.resolve():
        raise UserError(f"--apply {target}: expected a .parquet file outside of {out}")
    current = current_marks(marks, data)
    by_id: dict[str, list[Mark]] = {}
    for own in current.values():
        for name, mark in own.items():
            by_id.setdefault(name, []).append(mark)
    outdated = sum(map(len, marks.values())) - sum(map(len, current.values()))
    decided = {name: decide(own) for name, own in by_id.items()}
    counts = Counter(one.decision for one in decided.values())
    unmarked = len(to_review(data)) - len(decided)
    write_examples(target, reviewed(data, decided, by_id))
    return Applied(
        counts={
            "accepted": counts["accept"],
            "edited": counts["edit"],
            "rejected": counts["reject"],
            "not marked": unmarked,
        },
        disagreed=sum(len({one.decision for one in own}) > 1 for own in by_id.values()),
        outdated=outdated,
    )


def decide(marks: Sequence[Mark]) -> Mark:
    """Returns the mark that counts of one rationale's: one rejection is enough, a correction is
    taken, and of two of a kind the later one."""
    return max(marks, key=lambda mark: (DECISIONS.index(mark.decision), mark.at, mark.reviewer))


def reviewed(
    data: ParquetRows, decided: Mapping[str, Mark], marks: Mapping[str, Sequence[Mark]]
) -> Iterator[Example]:
    """Yields all rows with what was decided, by whom, and when."""
    for row in range(len(data)):
        (example,) = data.read([row])
        mark = decided.get(example.id)
        if mark is None:
            yield example
            continue
        own = sorted(marks[example.id], key=lambda one: one.reviewer)
        who, when = "; ".join(one.reviewer for one in own), "; ".join(one.at for one in own)
        extra = example.extra | {WHO: who, WHEN: when}
        if mark.decision == "reject":
            yield replace(example, rationale=None, rationale_status=REJECTED, extra=extra)
            continue
        edited = mark.decision == "edit"
        yield replace(
            example,
            rationale=mark.text if edited else example.rationale,
            rationale_source=mark.reviewer if edited else example.rationale_source,
            rationale_status=CHECKED,
            extra=extra,
        )
