"""Facts: what is known to be true of an image, as sentences.

`--facts siblings` makes them from the other questions about the same image. A fact never tells the
answer to the question that it is given to: left out is what asks the same, in these or other words,
what follows from the answer or lets it follow, and what names an open answer.

Beside them stand the facts of a few other images of the organ. A reward that takes what a text says
of those from what it says of its own image is fair: a text that says the same about every image
earns nothing on average.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from rarl.data.parquet import ParquetRows
from rarl.prepare.statements import Statement, concepts, said, state

WAYS_TO_FACTS = ("siblings",)  # of the command line
# Share of concepts from which two statements are about the same: of those of either; where both say
# that something is so or not, of those of the shorter one: to ask whether the gallbladder is large
# is to ask whether it is distended.
SAME = 0.5
# Of an open answer's content words, those that a fact may share with it.
NAMED = 0.5
OTHERS = 4  # images whose facts stand beside a row's own
TRIED = 32  # rows of which these are drawn


@dataclass(frozen=True)
class FactQuestion:
    """What facts are made from: a question of one split, and the facts that its table brings."""

    image_id: str
    organ: str | None
    question: str
    answer: str
    given: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageFacts:
    """The facts of a row's image, and those of each of a few other images."""

    facts: tuple[str, ...]
    others: tuple[tuple[str, ...], ...]


def split_facts(
    data: ParquetRows, rows: Sequence[int], siblings: bool
) -> dict[int, dict[str, Any]]:
    """Returns the fields `facts` and `other_facts` of those rows of a split that have any. What is
    not among the rows, such as another split's questions about the same image, tells nothing."""
    questions = read_questions(data, rows)
    found = zip(rows, find_facts(questions, siblings), strict=True)
    return {
        row: {"facts": known.facts, "other_facts": known.others or None}
        for row, known in found
        if known.facts
    }


def read_questions(data: ParquetRows, rows: Sequence[int]) -> list[FactQuestion]:
    """Returns what the facts of these rows are made from."""
    names = ("image_id", "organ", "question", "answer", "facts")
    columns = [[values[row] for row in rows] for values in map(data.column, names)]
    return [
        FactQuestion(image_id, organ, question, answer, tuple(given or ()))
        for image_id, organ, question, answer, given in zip(*columns, strict=True)
    ]


def find_facts(questions: Sequence[FactQuestion], siblings: bool) -> list[ImageFacts]:
    """Returns what is known of the image of each question of a split: what its table brings, and
    with `siblings` what the other questions about its image tell."""
    stated = [state(one.question, one.answer) if siblings else None for one in questions]
    brought = [[said(sentence) for sentence in one.given] for one in questions]
    by_image: dict[str, list[Statement]] = defaultdict(list)
    for one, statement in zip(questions, agreed(questions, stated), strict=True):
        if statement is not None and statement not in by_image[one.image_id]:
            by_image[one.image_id].append(statement)

    def facts_for(asked: int, shown: int) -> tuple[str, ...]:
        """The facts of the image of one question that may be given to another."""
        one, own = questions[asked], stated[asked]
        of_image = by_image[questions[shown].image_id]
        kept = [each for each in of_image if not tells(each, one, own)]
        return tuple(dict.fromkeys(each.sentence for each in [*brought[shown], *kept]))

    by_organ: dict[str | None, list[int]] = defaultdict(list)
    for place, one in enumerate(questions):
        by_organ[one.organ].append(place)
    found = []
    for place, one in enumerate(questions):
        facts = facts_for(place, place)
        others: list[tuple[str, ...]] = []
        for other in other_images(place, questions, by_organ[one.organ]) if facts else ():
            others += [told] if (told := facts_for(place, other)) else []
            if len(others) == OTHERS:
                break
        found.append(ImageFacts(facts, tuple(others)))
    return found


def other_images(
    place: int, questions: Sequence[FactQuestion], candidates: Sequence[int]
) -> Iterator[int]:
    """Yields a few of the candidates, by chance and each once, that are about another image than
    the question at `place`; the same for the same questions. They are drawn as questions, not as
    images, so that an image of many questions stands beside others as often as others beside it."""
    own = questions[place]
    draw = random.Random(f"{own.image_id}\n{own.question}\n{own.answer}")
    chosen = draw.sample(candidates, min(TRIED, len(candidates)))
    yield from (one for one in chosen if questions[one].image_id != own.image_id)


def agreed(
    questions: Sequence[FactQuestion], stated: Sequence[Statement | None]
) -> list[Statement | None]:
    """Returns the statements without those of which another about the same image says otherwise."""
    values: dict[tuple[str, tuple[str, ...]], set[str]] = defaultdict(set)
    for one, statement in zip(questions, stated, strict=True):
        if statement is not None:
            values[one.image_id, statement.subject].add(statement.value)
    return [
        each if each is not None and len(values[one.image_id, each.subject]) == 1 else None
        for one, each in zip(questions, stated, strict=True)
    ]


def tells(fact: Statement, asked: FactQuestion, own: Statement | None) -> bool:
    """Says whether a fact would tell the answer to a question, which says `own` of the image."""
    words, answer = fact.concepts, concepts_of(asked.answer)
    if own is not None and own.is_polar:
        statement, answer = own.concepts, frozenset[str]()
    else:
        statement = concepts_of(f"{asked.question} {asked.answer}")
    # "No mass" tells that there is none in the liver, and "a mass in the liver" that there is one.
    implied = words <= statement or (own is not None and own.is_polar and statement <= words)
    same = own is not None and own.subject == fact.subject
    is_polar = fact.is_polar and own is not None and own.is_polar
    whole = min(len(words), len(statement)) if is_polar else len(words | statement)
    alike = len(words & statement) >= SAME * whole
    named = bool(answer) and len(answer & words) > NAMED * len(answer)
    return implied or same or alike or named


@lru_cache(maxsize=1024)
def concepts_of(text: str) -> frozenset[str]:
    """Returns the concepts of a question, which is asked about many facts in turn."""
    return concepts(text)
