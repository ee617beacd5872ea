"""Facts: what is known to be true of an image, as sentences.

`--facts siblings` makes them from the other questions about the same image. A fact never tells the
answer to the question that it is given to: left out is what asks the same, in these or other words,
what follows from the answer or lets it follow, and what names an open answer.

Each fact has a prior: how often the same is true of the other images of the organ. Paying 1 - prior
for a claimed fact, and taking as much where it is denied, is a fair bet: a text that says the same
about every image earns nothing on average.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
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
# Questions that the share of an organ as a whole counts for, beside those that ask the same.
SMOOTHING = 4.0


@dataclass(frozen=True)
class Question:
    """What facts are made from: a question of one split, and the facts that its table brings."""

    image_id: str
    organ: str | None
    question: str
    answer: str
    given: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fact:
    """`prior` is in [0, 1]."""

    sentence: str
    prior: float


def split_facts(
    data: ParquetRows, rows: Sequence[int], siblings: bool
) -> dict[int, dict[str, Any]]:
    """Returns the fields `facts` and `fact_priors` of those rows of a split that have any. What is
    not among the rows, such as another split's questions about the same image, tells nothing."""
    questions = read_questions(data, rows)
    found = zip(rows, find_facts(questions, siblings), strict=True)
    return {
        row: {
            "facts": tuple(fact.sentence for fact in facts),
            "fact_priors": tuple(round(fact.prior, 4) for fact in facts),
        }
        for row, facts in found
        if facts
    }


def read_questions(data: ParquetRows, rows: Sequence[int]) -> list[Question]:
    """Returns what the facts of these rows are made from."""
    names = ("image_id", "organ", "question", "answer", "facts")
    columns = [[values[row] for row in rows] for values in map(data.column, names)]
    return [
        Question(image_id, organ, question, answer, tuple(given or ()))
        for image_id, organ, question, answer, given in zip(*columns, strict=True)
    ]


def find_facts(questions: Sequence[Question], siblings: bool) -> list[list[Fact]]:
    """Returns the facts of each question of a split: those that its table brings, and with
    `siblings` those that the other questions about its image tell, the least expected first."""
    stated = [state(one.question, one.answer) if siblings else None for one in questions]
    brought = [[said(sentence) for sentence in one.given] for one in questions]
    told = agreed(questions, stated)
    by_image: dict[str, list[Statement]] = defaultdict(list)
    for one, statement in zip(questions, told, strict=True):
        if statement is not None and statement not in by_image[one.image_id]:
            by_image[one.image_id].append(statement)
    priors = Priors(questions, told, brought)
    found = []
    for one, own, given in zip(questions, stated, brought, strict=True):
        others = [each for each in by_image[one.image_id] if not tells(each, one, own)]
        facts = [Fact(each.sentence, priors.of(each, one.organ)) for each in [*given, *others]]
        unique = {fact.sentence: fact for fact in reversed(facts)}
        found.append(sorted(unique.values(), key=lambda fact: (fact.prior, fact.sentence)))
    return found


def agreed(
    questions: Sequence[Question], stated: Sequence[Statement | None]
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


def tells(fact: Statement, asked: Question, own: Statement | None) -> bool:
    """Says whether a fact would tell the answer to a question, which says `own` of the image."""
    words, answer = fact.concepts, concepts(asked.answer)
    if own is not None and own.is_polar:
        statement, answer = own.concepts, frozenset[str]()
    else:
        statement = concepts(f"{asked.question} {asked.answer}")
    # "No mass" tells that there is none in the liver, and "a mass in the liver" that there is one.
    implied = words <= statement or (own is not None and own.is_polar and statement <= words)
    same = own is not None and own.subject == fact.subject
    is_polar = fact.is_polar and own is not None and own.is_polar
    whole = min(len(words), len(statement)) if is_polar else len(words | statement)
    alike = len(words & statement) >= SAME * whole
    named = bool(answer) and len(answer & words) > NAMED * len(answer)
    return implied or same or alike or named


class Priors:
    """How often a statement is true of the other images of the organ.

    The share among those of which the same was asked, or, of facts that a table brings, among those
    that have any: what they do not mention is not so. It is smoothed towards the share that the
    value has in the organ (`SMOOTHING` questions' worth), in which a question counts the less the
    more often it is asked. So whoever says "no" to everything gains and loses alike over the organ
    as a whole, whatever the smoothing does to the single question.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        stated: Sequence[Statement | None],
        brought: Sequence[Sequence[Statement]],
    ) -> None:
        # organ and subject → image → value
        values: dict[tuple[str, tuple[str, ...]], dict[str, str]] = defaultdict(dict)
        bringing: dict[str, set[str]] = defaultdict(set)  # organ → images
        for one, own, given in zip(questions, stated, brought, strict=True):
            organ = one.organ or ""
            for each in [*([own] if own else ()), *given]:
                values[organ, each.subject][one.image_id] = each.value
            if given:
                bringing[organ].add(one.image_id)
        from_tables = {
            (one.organ or "", each.subject)
            for one, given in zip(questions, brought, strict=True)
            for each in given
        }
        self.values = {key: Counter(images.values()) for key, images in values.items()}
        self.images = {key: len(images) for key, images in values.items()}
        for key in from_tables:
            self.images[key] = max(self.images[key], len(bringing[key[0]]))
        # organ and whether it is polar → value → weight; "" stands for all values
        self.shares: dict[tuple[str, bool], dict[str, float]] = {}
        for (organ, subject), counts in self.values.items():
            weight = 1 / (self.images[organ, subject] - 1 + SMOOTHING)
            is_polar = "yes" in counts or "no" in counts
            share = self.shares.setdefault((organ, is_polar), defaultdict(float))
            share[""] += weight * self.images[organ, subject]
            for value, count in counts.items():
                share[value] += weight * count

    def of(self, fact: Statement, organ: str | None) -> float:
        """Returns the prior of a fact for an image of which it is true."""
        key = (organ or "", fact.subject)
        share = self.shares[organ or "", fact.is_polar]
        same, others = self.values[key][fact.value] - 1, self.images[key] - 1
        return (same + SMOOTHING * share[fact.value] / share[""]) / (others + SMOOTHING)
