"""What `rarl prepare` tells people at the end."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rarl.data.parquet import ParquetRows
from rarl.prepare.card import DOUBTS, REMOVED, SKIPPED, listed
from rarl.prepare.doubts import KINDS, Doubt
from rarl.prepare.leaks import leak_lines
from rarl.prepare.rows import BadRecord

SHOWN = 10  # columns, or files
SHOWN_REASONS = 5
SHOWN_FACTS = 4
DROPPED = {
    "repeats": "rows that repeat another one were dropped",
    "contradictions": "rows that contradict another one were dropped",
}
# A text in quotes that ends at a blank or mark, so that the apostrophe in 'Crohn's disease' is part
# of it; or a list; or the columns that a table has.
QUOTED = re.compile(r"\s*(\[.*\]|\(it has: .*?\)|'.*?'(?=[\s,;:.?)]|$))", re.DOTALL)


def report_lines(
    card: dict[str, Any], skipped: Sequence[BadRecord], doubts: Sequence[Doubt], out: Path
) -> Iterator[str]:
    """Yields the lines about a data set that was written to the folder `out`."""
    wanted = card["records"] - sum(card["left_out"].values())
    kept = f", {wanted:,} {', '.join(card['left_out'])} kept" if card["left_out"] else ""
    at = f" of revision {card['revision']}" if card.get("revision") else ""
    yield f"{card['records']:,} records{at} read{kept}"
    files: dict[str, list[str]] = {}  # note → those that it is about, where they are named
    for one in doubts:
        if one.kind not in KINDS:
            files.setdefault(one.reason, []).append(one.where)
    for note, count in card["notes"].items():
        named = f": {first_of(files[note])}" if note in files else ""
        yield f"{count:,} {note}{named}"
    if len(card["languages"]) > 1:
        yield f"questions whose language is clear: {listed(card['languages'])}"
    if card["against"] is not None:
        removed = card["removed_as_leaks"]
        told = f", listed in {out / REMOVED}: {listed(removed)}" if removed else ""
        yield f"--against {card['against']}: {sum(removed.values()):,} questions removed{told}"
    for name, counts in card["splits"].items():
        types = listed(dict(sorted(counts["answer_types"].items())))
        questions = f"{counts['questions']:,} questions ({types})"
        of = f" of {counts['patients']:,} patients" if "patients" in counts else ""
        yield f"{out / name}.parquet: {questions} about {counts['images']:,} images{of}"
    if card["extra"]:
        advice = "take out of the table what may name a patient"
        yield f"further columns that go along: {first_of(card['extra'])}; {advice}"
    if skipped:
        what = f"{len(skipped):,} records cannot be used and were left out"
        reasons = f"{counted_reasons(skipped)}; the first: {skipped[0]}"
        yield f"{what}, listed in {out / SKIPPED}: {reasons}"
    yield from leak_lines(card["checks"])
    yield from (f"{count:,} {DROPPED[kind]}" for kind, count in card["dropped"].items())
    found = [kind for kind in KINDS if any(one.kind == kind for one in doubts)]
    if found:
        yield f"rows that repeat or contradict another one are listed in {out / DOUBTS}"
    droppable = [kind for kind in found if kind not in card["dropped"]]
    if droppable:
        yield f"--drop {','.join(droppable)} leaves them out"


def fact_lines(name: str, rows: ParquetRows) -> Iterator[str]:
    """Yields how many rows of a split have facts, and three examples to be read. Nothing if none
    has."""
    facts = rows.column("facts")
    having = [row for row, found in enumerate(facts) if found]
    if not having:
        return
    three = sum(len(facts[row]) >= 3 for row in having)
    one_or_more = (
        f"{percent(len(having), len(facts))} of the questions have facts about their image"
    )
    yield f"{name}: {one_or_more}, {percent(three, len(facts))} three or more; read some:"
    places = dict.fromkeys(having[len(having) * part // 6] for part in (1, 3, 5))
    for row in places:
        asked = f"{rows.column('question')[row]} → {rows.column('answer')[row]}"
        yield f"  {asked}   facts: {' '.join(facts[row][:SHOWN_FACTS])}"


def percent(count: int, whole: int) -> str:
    return f"{100 * count / whole:.1f} %"


def first_of(names: Sequence[str]) -> str:
    """Returns the first names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


def counted_reasons(skipped: Sequence[BadRecord]) -> str:
    """Returns the reasons without what they quote, with their counts, the most frequent first."""
    counts = Counter(QUOTED.sub("", bad.reason) for bad in skipped).most_common()
    shown = [f"{count:,} × {reason}" for reason, count in counts[:SHOWN_REASONS]]
    others = sum(count for _, count in counts[SHOWN_REASONS:])
    return ", ".join(shown + ([f"{others:,} for other reasons"] if others else []))
