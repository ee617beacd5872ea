"""What can be used and still deserves a look: rows that repeat or contradict another one, and DICOM
files that may show who the patient is. They are listed beside the data set."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rarl.prepare.fingerprint import Side
from rarl.prepare.rows import BadRecord

KINDS = ("repeats", "contradictions")  # of rows, which can be dropped


@dataclass(frozen=True)
class Doubt:
    where: str  # file and row, or a DICOM file
    kind: str  # of KINDS, or "identifying"
    reason: str
    row: int = -1  # in order of the records that can be used; -1 for a file


def doubtful_rows(
    side: Side, rows: Sequence[int], places: Sequence[str], answers: Sequence[str]
) -> Iterator[Doubt]:
    """Yields the doubts about one split: `rows` in order of all records, of which `side` holds
    these alone, and `places` and `answers` all."""
    for row, first in side.repeats().items():
        one, other = rows[row], rows[first]
        yield Doubt(places[one], "repeats", f"repeats {places[other]}", one)
    for group in side.contradictions():
        for row in group:
            # The first row that says something else.
            against = next(other for other in group if side.rows[other] != side.rows[row])
            one, other = rows[row], rows[against]
            said = f"'{answers[one]}' here, '{answers[other]}' there"
            yield Doubt(places[one], "contradictions", f"contradicts {places[other]}: {said}", one)


def write_lines(path: Path, records: Sequence[BadRecord | Doubt]) -> None:
    """Writes one JSON object a line, or no file if there are none."""
    kept = ({"where": one.where, "reason": one.reason} for one in records)
    lines = [json.dumps(one, ensure_ascii=False) + "\n" for one in kept]
    # A file name may be of another encoding than UTF-8, which Python holds as lone surrogates.
    if lines:
        path.write_bytes("".join(lines).encode("utf-8", "backslashreplace"))
