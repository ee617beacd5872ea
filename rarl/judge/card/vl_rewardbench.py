"""VL-RewardBench (Li et al. 2024, arXiv 2411.17451): pairs of replies, of which people said which
one is better. The published fields, from JSON lines (its repository) or Parquet (the Hugging Face
hub)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rarl.data.parquet import open_parquet
from rarl.errors import UserError
from rarl.judge.candidate import Candidate
from rarl.judge.card.judge_card import Preferences, Share, share_of
from rarl.judge.card.measure import CORRECTNESS_WEIGHT, Advance, ask
from rarl.judge.judge import Judge
from rarl.rewards.judge import score_verdict

NEEDED = ("id", "query", "response", "human_ranking")
# absent or null in some of the published files
OPTIONAL = ("query_source", "ground_truth", "image_path")
WHERE = "get data/test-*.parquet from huggingface.co/datasets/MMInstruction/VL-RewardBench"
FORMS = "expected .jsonl, .json (a list of objects), .parquet, or a folder of Parquet files"
IMAGE = "<image>"  # in some questions; there is none for the judge


@dataclass(frozen=True)
class Preference:
    """Two replies to a question. `better` is the index of the one that people ranked first;
    `reference` is the right answer, None where none is published."""

    id: str
    question: str
    replies: tuple[str, str]
    better: int
    source: str
    reference: str | None


def read_vl_rewardbench(path: Path) -> list[Preference]:
    """Reads a published file, or a folder of Parquet files; images are not read. Raises UserError
    naming file, row (from 1) and key."""
    preferences = [read_row(row, f"{file}: row {number}") for file, number, row in read_rows(path)]
    if not preferences:
        raise UserError(f"{path}: holds no pairs; {WHERE}")
    return preferences


def read_rows(path: Path) -> Iterator[tuple[Path, int, Any]]:
    """File, row number from 1, and the row as it stands."""
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise UserError(f"{path}: no such file, or no Parquet file in this folder; {WHERE}")
    for file in files:
        if file.suffix == ".parquet":
            rows: Iterable[tuple[int, Any]] = enumerate(parquet_rows(file), start=1)
        elif file.suffix in (".json", ".jsonl"):
            rows = json_rows(file)
        else:
            raise UserError(f"{file}: {FORMS}")
        for number, row in rows:
            yield file, number, row


def parquet_rows(file: Path) -> list[Any]:
    names = open_parquet(file, required=NEEDED, advice=f"; {WHERE}").schema_arrow.names
    columns = [name for name in (*NEEDED, *OPTIONAL) if name in names]
    rows: list[Any] = pq.read_table(file, columns=columns).to_pylist()
    return rows


def json_rows(file: Path) -> Iterator[tuple[int, Any]]:
    """A list, or one object a line, whatever the file is called; numbered from 1, empty lines
    included."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from None
    if text.lstrip().startswith("["):
        yield from enumerate(parse_json(text, str(file)), start=1)
        return
    # other line separators may stand within a text
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, parse_json(line, f"{file}: row {number}")


def parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON: {error}; {FORMS}") from None


def read_row(row: Any, where: str) -> Preference:
    if not isinstance(row, dict):
        raise UserError(
            f"{where}: expected an object with the keys {', '.join(NEEDED)}, got {type(row).__name__}"
        )
    for key in NEEDED:
        if row.get(key) is None:
            has = ", ".join(key for key, value in row.items() if value is not None)
            raise UserError(f"{where}: key '{key}' is missing (it has: {has}); {WHERE}")
    for key in ("id", "query", *OPTIONAL):
        if not isinstance(row.get(key), str | None):
            raise UserError(f"{where}: key '{key}': expected text, got {row[key]!r}")
    replies, ranking = row["response"], row["human_ranking"]
    if not is_pair(replies, str):
        raise UserError(
            f"{where}: key 'response': expected a list of two texts, got {short(replies)}"
        )
    if not is_pair(ranking, int) or sorted(ranking) != [0, 1]:
        raise UserError(
            f"{where}: key 'human_ranking': expected [0, 1] (the first reply is better) or [1, 0] (the second is), got"
            f" {short(ranking)}"
        )
    return Preference(
        id=row["id"],
        question=row["query"].replace(IMAGE, "").strip(),
        replies=(replies[0], replies[1]),
        better=ranking.index(0),
        source=row.get("query_source") or folder_of(row.get("image_path") or "") or "unknown",
        reference=(row.get("ground_truth") or "").strip() or None,
    )


def folder_of(image_path: str) -> str:
    """In the repository's file the reasoning tasks name no source; the folder of their images
    does."""
    return Path(image_path).parent.name


def is_pair(value: Any, kind: type) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(one) is kind for one in value)


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def candidate_of(preference: Preference, index: int) -> Candidate:
    """A reply as the judge is shown it: whole, since it has no tags. Where no right answer is
    published the reference is empty; the better reply cannot stand in for it, as it would give away
    which one that is."""
    reply = preference.replies[index]
    return Candidate(
        question=preference.question,
        options=None,
        reference=preference.reference or "",
        rationale=None,
        reply=reply,
        thinking=None,
        answer=reply,
    )


def measure_preferences(
    judge: Judge, preferences: Sequence[Preference], source: str, advance: Advance = lambda _: None
) -> Preferences:
    """Each reply is scored by itself, by total as the reward `judge` has it, and the higher one
    wins; then once more in the other order. Four verdicts a pair, less those that could not be
    reached. Raises what the judge raises."""
    forward = margins(judge, preferences, advance, order=(0, 1))
    backward = margins(judge, preferences[::-1], advance, order=(1, 0))[::-1]
    first = [
        (one, margin)
        for one, margin in zip(preferences, forward, strict=True)
        if margin is not None
    ]
    second = [
        (one, margin)
        for one, margin in zip(preferences, backward, strict=True)
        if margin is not None
    ]
    both = zip(preferences, forward, backward, strict=True)
    return Preferences(
        source=source,
        pairs=len(preferences),
        agreement=agreement(first),
        swapped=agreement(second),
        same_choice=share_of(
            (sign(a) == sign(b), one.id) for one, a, b in both if a is not None and b is not None
        ),
        tied=share_of((margin == 0, one.id) for one, margin in first),
        with_reference=agreement([pair for pair in first if pair[0].reference is not None]),
        without_reference=agreement([pair for pair in first if pair[0].reference is None]),
        by_source={
            name: share
            for name in sources(preferences)
            if (share := agreement(first, name)) is not None
        },
    )


def margins(
    judge: Judge, preferences: Sequence[Preference], advance: Advance, order: tuple[int, int]
) -> list[float | None]:
    """Total of the better reply less that of the other, asked in the given order; None where one
    was not reached."""
    verdicts = ask(
        judge, [candidate_of(one, index) for one in preferences for index in order], advance
    )
    found: list[float | None] = []
    for number, one in enumerate(preferences):
        totals = [
            score_verdict(verdict, CORRECTNESS_WEIGHT)
            for verdict in verdicts[2 * number : 2 * number + 2]
        ]
        better, other = totals[order.index(one.better)], totals[order.index(1 - one.better)]
        found.append(None if better is None or other is None else better - other)
    return found


def agreement(
    scored: Sequence[tuple[Preference, float]], source: str | None = None
) -> Share | None:
    return share_of(
        (0.5 + sign(margin) / 2, one.id) for one, margin in scored if source in (None, one.source)
    )


def sign(margin: float) -> int:
    return (margin > 0) - (margin < 0)


def sources(preferences: Sequence[Preference]) -> list[str]:
    return sorted({one.source for one in preferences})
