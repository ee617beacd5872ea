"""Several sampled answers to each question: the majority's accuracy, and how far their agreement
tells when to abstain (self-consistency; Wang et al. 2023)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from rarl.replies.answers import answers_alike, is_right
from rarl.samples import Sample
from rarl.schema import Box, Frame

TENTHS = tuple(range(10, 0, -1))  # coverages of the abstention curve


@dataclass(frozen=True)
class Sampled:
    """One question with its k answers in the order given; None is a reply without a readable
    answer. The other fields are those of its example and prompt by the same names."""

    answers: Sequence[str | None]
    reference: str
    options: Sequence[str] | None = None
    answer_type: str = "open"
    also_right: Sequence[str] | None = None
    boxes: Sequence[Box] | None = None
    frame: Frame | None = None

    @classmethod
    def of(cls, group: Sequence[Sample]) -> Sampled:
        """Returns the question that all these replies are to."""
        asked, frame = group[0].example, group[0].prompt.frame
        answers = [one.reply.answer for one in group]
        known = (asked.options, asked.answer_type, asked.also_right, asked.boxes, frame)
        return cls(answers, asked.answer, *known)

    def alike(self, first: str, second: str) -> bool:
        """Whether two answers say the same, right or wrong."""
        return answers_alike(
            first,
            second,
            self.reference,
            self.answer_type,
            options=self.options,
            frame=self.frame,
        )


@dataclass(frozen=True)
class Vote:
    """`answer` is the majority's first, None if no answer could be read. `agreement` is its votes
    over all k: a reply without an answer agrees with nothing."""

    answer: str | None
    agreement: float
    correct: bool


@dataclass(frozen=True)
class Abstention:
    """`accuracy[i]` is that of the `coverage[i]` of the questions with the highest agreement, the
    others unanswered. `aurc` is the area under the risk–coverage curve: the mean, over m = 1 … n,
    of the share of wrong answers among the m with the highest agreement (Geifman, Uziel and
    El-Yaniv 2019). Lower is better; it is at best near 0, and it is the majority's error rate if
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
    """Raises ValueError for no questions, and for one without any replies."""
    votes = tuple(vote(question) for question in questions)
    agreement, correct = [one.agreement for one in votes], [one.correct for one in votes]
    curve, n = abstention(agreement, correct), len(votes)
    return SelfConsistency(n, sum(correct) / n, sum(agreement) / n, curve, votes)


def vote(question: Sampled) -> Vote:
    """Returns the majority among the answers; of equally many votes, the answer given first."""
    if not question.answers:
        raise ValueError("a question without replies has no majority")
    groups: list[list[str]] = []
    for answer in (one for one in question.answers if one is not None):
        for group in groups:
            if question.alike(group[0], answer):
                group.append(answer)
                break
        else:
            groups.append([answer])
    largest = max(groups, key=len, default=[])  # the first of the largest
    chosen = largest[0] if largest else None
    correct = is_right(
        chosen,
        question.reference,
        question.answer_type,
        options=question.options,
        also_right=question.also_right,
        boxes=question.boxes,
        frame=question.frame,
    )
    return Vote(chosen, len(largest) / len(question.answers), correct)


def abstention(agreement: Sequence[float], correct: Sequence[bool]) -> Abstention:
    """Returns the curve at coverages of 100 %, 90 %, …, 10 %, each of at least one question,
    rounded up. Questions of equal agreement have no order, so each counts with their mean: the
    expectation over all orders. Raises ValueError for no questions."""
    if not correct:
        raise ValueError("no questions to answer")
    by_agreement: dict[float, list[bool]] = defaultdict(list)
    for level, hit in zip(agreement, correct, strict=True):
        by_agreement[level].append(hit)
    # the expected accuracy of the m questions with the highest agreement, for m = 1 … n
    accuracy: list[float] = []
    right = 0.0
    for _, hits in sorted(by_agreement.items(), reverse=True):
        before, total = len(accuracy), sum(hits)
        for place in range(1, len(hits) + 1):
            accuracy.append((right + total * place / len(hits)) / (before + place))
        right += total
    size = len(accuracy)
    return Abstention(
        coverage=tuple(tenth / 10 for tenth in TENTHS),
        accuracy=tuple(accuracy[-(-size * tenth // 10) - 1] for tenth in TENTHS),
        aurc=1.0 - sum(accuracy) / size,
    )
