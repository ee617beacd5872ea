"""Several sampled answers to each question: the majority's accuracy, and how far their agreement
tells when to abstain (self-consistency; Wang et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from rarl.replies.grading import is_correct, same_answer

TENTHS = tuple(range(10, 0, -1))  # coverages of the abstention curve


@dataclass(frozen=True)
class Sampled:
    """One question with its k answers in the order given; None is a reply without a readable
    answer."""

    answers: Sequence[str | None]
    reference: str
    options: Sequence[str] | None = None


@dataclass(frozen=True)
class Vote:
    """`answer` is the majority's first, None where no answer could be read. `agreement` is its
    votes over all k: a reply without an answer agrees with nothing."""

    answer: str | None
    agreement: float
    correct: bool


@dataclass(frozen=True)
class Abstention:
    """`accuracy[i]` is that of the `coverage[i]` of the questions with the highest agreement, the
    others unanswered. `aurc` is the area under the risk–coverage curve: the mean, over m = 1 … n,
    of the share of wrong answers among the m with the highest agreement (Geifman, Uziel and
    El-Yaniv 2019). Lower is better; it is at best near 0, and the majority's error rate where
    agreement tells nothing."""

    coverage: tuple[float, ...]
    accuracy: tuple[float, ...]
    aurc: float


@dataclass(frozen=True)
class SelfConsistency:
    """Of n questions: the majority's accuracy, the mean agreement (both in [0, 1]), the abstention
    curve."""

    n: int
    accuracy: float
    agreement: float
    abstention: Abstention
    votes: tuple[Vote, ...]


def self_consistency(questions: Sequence[Sampled]) -> SelfConsistency:
    """Raises ValueError for no questions, or for one without any replies."""
    votes = tuple(vote(question) for question in questions)
    curve = abstention([v.agreement for v in votes], [v.correct for v in votes])
    return SelfConsistency(
        n=len(votes),
        accuracy=sum(v.correct for v in votes) / len(votes),
        agreement=sum(v.agreement for v in votes) / len(votes),
        abstention=curve,
        votes=votes,
    )


def vote(question: Sampled) -> Vote:
    """The majority among the answers; of equally many votes, the answer that was given first."""
    if not question.answers:
        raise ValueError("a question without replies has no majority")
    groups: list[list[str]] = []
    for answer in question.answers:
        if answer is None:
            continue
        for group in groups:
            if same_answer(group[0], answer, question.reference, question.options):
                group.append(answer)
                break
        else:
            groups.append([answer])
    largest = max(groups, key=len, default=[])  # the first of the largest
    answer = largest[0] if largest else None
    correct = is_correct(answer, question.reference, question.options)
    return Vote(answer, len(largest) / len(question.answers), correct)


def abstention(agreement: Sequence[float], correct: Sequence[bool]) -> Abstention:
    """The curve at coverages of 100 %, 90 %, …, 10 %, each of at least one question, rounded up.
    Questions of equal agreement have no order, so each counts with their mean: the expectation over
    all orders. Raises ValueError for no questions."""
    if not correct:
        raise ValueError("no questions to answer")
    accuracy = accuracy_at(agreement, correct)
    size = len(accuracy)
    return Abstention(
        coverage=tuple(tenth / 10 for tenth in TENTHS),
        accuracy=tuple(accuracy[-(-size * tenth // 10) - 1] for tenth in TENTHS),
        aurc=1.0 - sum(accuracy) / size,
    )


def accuracy_at(agreement: Sequence[float], correct: Sequence[bool]) -> list[float]:
    """Expected accuracy of the m questions with the highest agreement, for m = 1 … n."""
    ordered = sorted(zip(agreement, correct, strict=True), key=lambda pair: -pair[0])
    accuracy: list[float] = []
    right = 0.0
    for _, tied in groupby(ordered, key=lambda pair: pair[0]):
        hits = [hit for _, hit in tied]
        before, total = len(accuracy), sum(hits)
        accuracy += [
            (right + total * (i + 1) / len(hits)) / (before + i + 1) for i in range(len(hits))
        ]
        right += total
    return accuracy
