"""VL-RewardBench (Li et al. 2024, arXiv 2411.17451): pairs of replies, of which people said which
one is better. The published fields, from JSON lines (its repository) or Parquet (the Hugging Face
hub)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow.parquet as pq
from annotated_types import Len
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from rarl.data.parquet import open_parquet
from rarl.errors import UserError
from rarl.judge.candidate import Candidate
from rarl.judge.card import JudgedShare, Preferences, share_of
from rarl.judge.card_measure import CORRECTNESS_WEIGHT, Advance, ask
from rarl.judge.judge import Judge, score_verdict

WHERE = "get data/test-*.parquet from huggingface.co/datasets/MMInstruction/VL-RewardBench"
FORMS = "expected .jsonl, .json (a list of objects), .parquet, or a folder of Parquet files"
IMAGE = "<image>"  # in some questions; there is none for the judge
# What the keys hold that are not plain text.
EXPECTED = {
    "response": "a list of two texts",
    "human_ranking": "[0, 1] (the first reply is better) or [1, 0] (the second is)",
}


def ranking(given: list[int]) -> list[int]:
    if sorted(given) != [0, 1]:
        raise ValueError("not one first and one second")
    return given


class PublishedRow(BaseModel):
    """The published fields that are read. Those with a default are absent or null in some files."""

    model_config = ConfigDict(strict=True)

    id: str
    query: str
    response: Annotated[list[str], Len(2, 2)]
    human_ranking: Annotated[list[int], AfterValidator(ranking)]
    query_source: str | None = None
    ground_truth: str | None = None
    image_path: str | None = None


NEEDED = [name for name, field in PublishedRow.model_fields.items() if field.is_required()]


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
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        none = "no such file, or no Parquet file in this folder"
        raise UserError(f"{path.absolute()}: {none}; {WHERE}")
    rows = ((row, f"{file}: row {number}") for file in files for number, row in rows_of(file))
    preferences = [read_row(row, where) for row, where in rows]
    if not preferences:
        raise UserError(f"{path}: holds no pairs; {WHERE}")
    return preferences


def rows_of(file: Path) -> Iterator[tuple[int, Any]]:
    """Yields the rows with their numbers from 1, as they stand. JSON is a list, or one object a
    line, whatever the file is called; lines are numbered with the empty ones."""
    if file.suffix == ".parquet":
        names = open_parquet(file, required=NEEDED, advice=f"; {WHERE}").schema_arrow.names
        columns = [name for name in PublishedRow.model_fields if name in names]
        yield from enumerate(pq.read_table(file, columns=columns).to_pylist(), start=1)
        return
    if file.suffix not in (".json", ".jsonl"):
        raise UserError(f"{file}: {FORMS}")
    number = 0
    try:
        text = file.read_text(encoding="utf-8")
        if text.lstrip().startswith("["):
            yield from enumerate(json.loads(text), start=1)
            return
        # Not `splitlines`: other line separators may stand within a text.
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield number, json.loads(line)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from None
    except (ValueError, RecursionError) as error:
        where = f"{file}: row {number}" if number else str(file)
        raise UserError(f"{where}: not valid JSON: {error}; {FORMS}") from None


def read_row(row: Any, where: str) -> Preference:
    if not isinstance(row, dict):
        wanted = f"an object with the keys {', '.join(NEEDED)}"
        raise UserError(f"{where}: expected {wanted}, got {type(row).__name__}")
    given = {key: value for key, value in row.items() if value is not None}
    try:
        read = PublishedRow.model_validate(given)
    except ValidationError as error:
        wrong = str(error.errors()[0]["loc"][0])
        if wrong not in given:
            has = ", ".join(given)
            raise UserError(f"{where}: key '{wrong}' is missing (it has: {has}); {WHERE}") from None
        said, expected = repr(given[wrong]), EXPECTED.get(wrong, "text")
        said = said if len(said) <= 60 else f"{said[:59]}…"
        raise UserError(f"{where}: key '{wrong}': expected {expected}, got {said}") from None
    # In the repository's file the reasoning tasks name no source; the folder of their images does.
    folder = Path(read.image_path or "").parent.name
    return Preference(
        id=read.id,
        question=read.query.replace(IMAGE, "").strip(),
        replies=(read.response[0], read.response[1]),
        better=read.human_ranking.index(0),
        source=read.query_source or folder or "unknown",
        reference=(read.ground_truth or "").strip() or None,
    )


def candidate_of(preference: Preference, index: int) -> Candidate:
    """Returns a reply as the judge is shown it: whole, since it has no tags. Where no right answer
    is published the reference is empty; the better reply cannot stand in for it, as it would give
    away which one that is."""
    reply, reference = preference.replies[index], preference.reference or ""
    return Candidate(preference.question, None, reference, None, reply, None, answer=reply)


def measure_preferences(
    judge: Judge, preferences: Sequence[Preference], source: str, advance: Advance = lambda _: None
) -> Preferences:
    """Scores each reply by itself, by total as the reward `judge` has it, and the higher one wins;
    then once more in the other order. Asks for four verdicts a pair; those that could not be
    reached are left out. Raises what the judge raises."""
    forward = margins(judge, preferences, advance, order=(0, 1))
    backward = margins(judge, preferences[::-1], advance, order=(1, 0))[::-1]
    both = list(zip(preferences, forward, backward, strict=True))
    scored = [(one, first) for one, first, _ in both if first is not None]
    by_source = {
        name: agreement(pair for pair in scored if pair[0].source == name)
        for name in sorted({one.source for one in preferences})
    }
    same = [
        (np.sign(first) == np.sign(second), one.id)
        for one, first, second in both
        if first is not None and second is not None
    ]
    return Preferences(
        source=source,
        pairs=len(preferences),
        agreement=agreement(scored),
        swapped=agreement((one, second) for one, _, second in both if second is not None),
        same_choice=share_of(same),
        tied=share_of((margin == 0, one.id) for one, margin in scored),
        with_reference=agreement(pair for pair in scored if pair[0].reference is not None),
        without_reference=agreement(pair for pair in scored if pair[0].reference is None),
        by_source={name: share for name, share in by_source.items() if share is not None},
    )


def margins(
    judge: Judge, preferences: Sequence[Preference], advance: Advance, order: tuple[int, int]
) -> list[float | None]:
    """Returns the total of the better reply less that of the other, asked in the given order; None
    where one was not reached."""
    asked = [candidate_of(one, index) for one in preferences for index in order]
    totals = [score_verdict(one, CORRECTNESS_WEIGHT) for one in ask(judge, asked, advance)]
    found: list[float | None] = []
    for one, *pair in zip(preferences, totals[::2], totals[1::2], strict=True):
        better, other = pair[order.index(one.better)], pair[order.index(1 - one.better)]
        found.append(None if better is None or other is None else better - other)
    return found


def agreement(scored: Iterable[tuple[Preference, float]]) -> JudgedShare | None:
    return share_of((0.5 + float(np.sign(margin)) / 2, one.id) for one, margin in scored)
