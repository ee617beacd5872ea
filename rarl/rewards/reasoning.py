"""`reasoning`: how good the explanation is, without a judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rarl.replies.findings import (
    Claim,
    conflict,
    content_words,
    match_claims,
    overlap,
    split_claims,
    split_clauses,
)
from rarl.replies.grading import attribute_recall, is_yes_no
from rarl.replies.tags import parse_reply
from rarl.replies.tricks import addresses_the_judge, concludes, states_answer
from rarl.replies.words import length_in_words
from rarl.rewards.length import length_factor
from rarl.schema import ReplyForm

# overlap from which a clause that could be the answer in words is a finding of the rationale
SAME = 0.75
MIN_CONTENT_SHARE = 0.2  # of a thinking's words; a telegram has 0.7, a wordy sentence 0.3


def reasoning_reward(
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    form: Sequence[ReplyForm],
    question: Sequence[str],
    answer: Sequence[str],
    rationale: Sequence[str | None],
    organ: Sequence[str | None],
    modality: Sequence[str | None],
    min_words: int = 3,
    max_words: int = 200,
    leak_factor: float = 0.5,
    attributes: bool = False,
    **columns: Any,
) -> list[float | None]:
    """Pays the F1 of the thinking's findings against the rationale's, negation-aware. Without a
    rationale nothing is paid (None), or with `attributes` the share of organ and modality that it
    names: a weak signal, that is soon earned by saying them and inventing the rest. RARL (arXiv
    2506.06600) pays for the reasoning without saying how; precision and recall stand for
    MedR-Bench's factuality and completeness. Times, each in [0, 1]:

    - `leak_factor` where the answer or a conclusion comes before the first finding that is right;
    - the share of clauses that are not repeats, and of content words (below a fifth of all, in
      proportion);
    - the length: 1 from `min_words` to `max_words` words, 0 at twice the maximum. Longer pays
      nothing.

    Clauses that only repeat the question are no findings. 0 for a malformed reply and for one that
    speaks to whoever scores it. None for a prompt without thinking, and where nothing is known to
    compare it with.
    """
    bounds = Bounds(min_words, max_words, leak_factor)
    rows = zip(completions, form, question, answer, rationale, organ, modality, strict=True)
    return [
        None if how == "answer" else score_reasoning(text, how, Known(*known), bounds, attributes)
        for text, how, *known in rows
    ]


@dataclass(frozen=True)
class Bounds:
    """The reward's options."""

    min_words: int
    max_words: int
    leak_factor: float


@dataclass(frozen=True)
class Known:
    """What is known of an example beside its image."""

    question: str
    answer: str
    rationale: str | None
    organ: str | None
    modality: str | None

    @cached_property
    def claims(self) -> list[Claim]:
        return split_claims(self.rationale or "")

    @cached_property
    def asked(self) -> frozenset[str]:
        return content_words(self.question)

    def references(self) -> list[Claim]:
        """The rationale's claims, but for those that the question already holds or that are the
        answer."""
        answers = [content_words(self.answer)]
        new = (claim for claim in self.claims if claim.negated or not claim.words <= self.asked)
        return [claim for claim in new if not states_answer(claim, answers)]

    def attributes(self) -> list[str]:
        """Organ and modality, but for the one that is asked for: to name that is to answer."""
        answer = content_words(self.answer)
        return [
            name
            for name in (self.organ, self.modality)
            if name and not content_words(name) & answer
        ]


def score_reasoning(
    text: str, form: ReplyForm, known: Known, bounds: Bounds, pay_attributes: bool
) -> float | None:
    references = known.references()
    attributes = known.attributes() if pay_attributes else []
    if not references and not attributes:
        return None
    reply = parse_reply(text, form)
    if not reply.well_formed or not reply.thinking or addresses_the_judge(text):
        return 0.0
    clauses = split_clauses(reply.thinking)
    answers = [content_words(known.answer), content_words(reply.answer or "")]
    length = length_factor(reply.thinking, bounds.min_words, bounds.max_words) * filler_factor(
        reply.thinking, clauses
    )
    if not references:
        leak = (
            bounds.leak_factor
            if any(states_answer(clause, answers) for clause in clauses[:1])
            else 1.0
        )
        return attribute_recall(reply.thinking, attributes) * length * leak * variety(clauses)
    claims = evidence(clauses, references, known, answers)
    leak = bounds.leak_factor if is_leaked(clauses, references, known, answers) else 1.0
    return match_claims(claims, references).f1 * length * leak * variety(clauses)


def evidence(
    clauses: Sequence[Claim],
    references: Sequence[Claim],
    known: Known,
    answers: Sequence[frozenset[str]],
) -> list[Claim]:
    """The clauses that are weighed. Left out, where they deny nothing that is true: those that
    repeat the question, those that only name organ or modality, and conclusions."""
    named = content_words(f"{known.organ or ''} {known.modality or ''}")
    kept = []
    for clause in clauses:
        fit = max(references, key=lambda other: overlap(clause, other))
        supported = overlap(clause, fit) > 0
        new = clause.words & fit.words if supported else clause.words
        idle = not clause.negated and new <= known.asked  # repeats the question
        idle |= clause.words <= named or states_answer(clause, answers)
        idle |= not supported and (concludes(clause) or answers_in_words(clause, known, answers))
        if clause.words and (not idle or any(conflict(clause, other) for other in references)):
            kept.append(clause)
    return kept


def is_leaked(
    clauses: Sequence[Claim],
    references: Sequence[Claim],
    known: Known,
    answers: Sequence[frozenset[str]],
) -> bool:
    """Does the answer, or a conclusion, come before the first finding that is right, or within
    it?"""
    for clause in clauses:
        told = max(overlap(clause, other) for other in known.claims) < SAME
        if states_answer(clause, answers) or (told and answers_in_words(clause, known, answers)):
            return True
        if any(overlap(clause, other) for other in references):
            return False
        if concludes(clause):
            return True
    return False


def answers_in_words(clause: Claim, known: Known, answers: Sequence[frozenset[str]]) -> bool:
    """ "The lesion is on the left": nothing but the question's words and an answer; to a yes/no
    question, nothing but the question's words."""
    possible = (words for words in answers if words or is_yes_no(known.answer))
    return bool(clause.words) and any(
        words <= clause.words <= words | known.asked for words in possible
    )


def variety(clauses: Sequence[Claim]) -> float:
    """Share of the claims that are not repeats of an earlier one."""
    claims = [clause for clause in clauses if clause.words]
    return len(set(claims)) / len(claims) if claims else 0.0


def filler_factor(thinking: str, clauses: Sequence[Claim]) -> float:
    """Below 1 where hardly a word says something."""
    content = sum(len(clause.words) for clause in clauses)
    return min(1.0, content / (MIN_CONTENT_SHARE * length_in_words(thinking)))
