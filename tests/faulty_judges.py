"""Judges that are the rules but for one fault each, and the cells that they are measured on."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace

import numpy as np

from rarl.judge.candidate import Candidate
from rarl.judge.card import JudgedShare
from rarl.judge.card_set import QUESTIONS, build_cells
from rarl.judge.judge import Judge, counted
from rarl.judge.rubric import unparsable, unreachable
from rarl.judge.rules import judge_by_rules
from rarl.replies.tricks import addresses_the_judge
from rarl.schema import Verdict

CELLS = build_cells(QUESTIONS)
# The bar that the rules miss, with or without a further fault.
WORDS = {"paraphrase_auc"}
LONG = 50  # words of a reply, which of the plain ones only the long have

Alter = Callable[[Candidate, Verdict, int], Verdict]


class Altered(Judge):
    """The rules with a fault: `alter` is told the candidate, the rules' verdict and how often it
    was asked before."""

    def __init__(self, alter: Alter) -> None:
        super().__init__()
        self.alter = alter
        self.asked: Counter[Candidate] = Counter()
        self.batches: list[list[tuple[Candidate, Verdict]]] = []

    def submit(self, candidates: Sequence[Candidate]) -> list[Future[Verdict]]:
        self.batches.append([])
        futures: list[Future[Verdict]] = []
        for candidate in candidates:
            verdict = self.alter(candidate, judge_by_rules(candidate), self.asked[candidate])
            self.asked[candidate] += 1
            self.batches[-1].append((candidate, verdict))
            self._count(counted(verdict))
            futures.append(Future())
            futures[-1].set_result(verdict)
        return futures

    def close(self) -> None:
        """There is nothing to give up."""


FULL = Verdict("scored", 3.0, 1.0, 1.0, 1.0)
KNOWN_OPTIONS = {one.options for one in QUESTIONS}
UNREADABLE = {one.question for one in QUESTIONS if one.id in ("xray-effusion", "mri-knee")}


def generous(candidate: Candidate, verdict: Verdict, before: int) -> Verdict:
    return FULL


def harsh(candidate: Candidate, verdict: Verdict, before: int) -> Verdict:
    return replace(FULL, correctness=0.0)


def obedient(candidate: Candidate, verdict: Verdict, before: int) -> Verdict:
    told = addresses_the_judge(candidate.reply) or "on_topic" in candidate.reply
    return FULL if told else verdict


def flattered(candidate: Candidate, verdict: Verdict, before: int) -> Verdict:
    """Decides as it should, and pays for kind words all the same."""
    told = verdict.relevance == 0
    return replace(verdict, factuality=1.0, completeness=1.0, relevance=1.0) if told else verdict


def is_long(candidate: Candidate) -> bool:
    return len(candidate.reply.split()) > LONG


def fond_of_length(candidate: Candidate, verdict: Verdict, before: int) -> Verdict:
    extra = 0.4 if is_long(candidate) else 0.0
    parts = {
        name: (getattr(verdict, name) + extra) / 1.4
        for name in ("factuality", "completeness", "relevance")
    }
    return replace(verdict, **parts)


def impressed_by_length(candidate: Candidate, verdict: Verdict, before: int) -> Verdict:
    accepted = (verdict.correctness or 0) >= 2
    return replace(verdict, correctness=(3.0 if is_long(candidate) else 2.0) if accepted else 1.0)


def moody(candidate: Candidate, verdict: Verdict, before: int) -> Verdict:
    return replace(verdict, relevance=(verdict.relevance or 0.0) * (0.9 if before else 1.0))


def knows_the_order(candidate: Candidate, verdict: Verdict, before: int) -> Verdict:
    return verdict if candidate.options in KNOWN_OPTIONS else replace(verdict, correctness=0.0)


def cannot_say_no(candidate: Candidate, verdict: Verdict, before: int) -> Verdict:
    refuses = candidate.question in UNREADABLE and verdict.correctness == 1.0
    return unparsable("I would rather not say") if refuses else verdict


def away(candidate: Candidate, verdict: Verdict, before: int) -> Verdict:
    return unreachable("gone") if candidate.question in UNREADABLE else verdict


def counts_words(candidate: Candidate, verdict: Verdict, before: int) -> Verdict:
    """Thinks that an explanation is as good as it has words of the rationale."""
    said, known = (
        {word for word in re.findall("[a-z]+", (text or "").lower()) if len(word) > 3}
        for text in (candidate.thinking, candidate.rationale)
    )
    part = len(said & known) / max(1, len(said))
    return replace(verdict, factuality=part, completeness=part, relevance=part)


def dice(candidate: Candidate, verdict: Verdict, before: int) -> Verdict:
    """Noise; half of the candidates get the same when asked again, some are refused or not
    reached."""
    number = zlib.crc32(repr(candidate).encode())
    rng = np.random.default_rng([number, before if number % 2 else 0])
    fate = rng.random()
    if fate < 0.1:
        return unparsable("?") if fate < 0.06 else unreachable("?")
    factuality, completeness, relevance = (float(part) / 2 for part in rng.integers(0, 3, 3))
    return Verdict("scored", float(rng.integers(0, 4)), factuality, completeness, relevance)


def value(share: JudgedShare | None) -> float:
    assert share is not None
    assert share.low <= share.value + 1e-12 and share.value <= share.high + 1e-12
    return share.value
