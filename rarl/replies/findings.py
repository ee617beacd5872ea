"""Findings in free medical text, read without a model: clauses with content words and polarity.

Negation follows NegEx (Chapman et al. 2001): cues before or after, pseudo-negations, words that end
a cue's scope. Its scope here is the clause.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise

from rarl.replies.words import VOCABULARY, fold, pattern

MATCH = 0.5  # overlap under which two claims are about different things
# overlap from which a contradicting claim takes the credit of the right one beside it
DENIED = 0.75
MAX_CLAUSES = 512  # read of one text; far above what a reply of a few hundred words holds
MAX_CLAIMS = 64  # compared of one text; further ones are counted, as wrong


# Captured, since a question claims nothing.
SENTENCE_END = re.compile(r"((?<!\d)\.|\.(?!\d)|[;!?\n•—–]|\s[-*]\s)")
CLAUSE_END, NEGATION = pattern("clause_end"), pattern("negation")
PSEUDO_NEGATION, VERB = pattern("pseudo_negation"), pattern("verb")
OR = re.compile(r"\b(?:or|nor)\b")
WORD = re.compile(r"\d+(?:[.,]\d+)?|non-?[^\W\d_]+|[^\W\d_]+")
STOP_WORDS = frozenset(VOCABULARY["stop_words"].split())
EMPTY_WORDS = frozenset(VOCABULARY["empty_words"].split())
OPPOSITES = [pair.split("/") for pair in VOCABULARY["opposites"].split()]
PLURALS = (("ies", "y"), ("sses", "ss"), ("lves", "lf"), ("oses", "osis"), ("stases", "stasis"))


@dataclass(frozen=True)
class Claim:
    """One clause: its content words, singular, and whether it denies them. `text` is the folded
    clause."""

    words: frozenset[str]
    negated: bool
    text: str = field(default="", compare=False)


@dataclass(frozen=True)
class FindingsMatch:
    """How the claims of a text fit those of a reference; shares in [0, 1]. `claims` counts distinct
    ones."""

    precision: float
    recall: float
    claims: int
    contradicted: int

    @property
    def f1(self) -> float:
        both = self.precision + self.recall
        return 2 * self.precision * self.recall / both if both else 0.0


def compare_findings(text: str, reference: str) -> FindingsMatch:
    """Returns precision and recall of a text's claims against a reference's; all 0 where either has
    no claim."""
    return match_claims(split_claims(text), split_claims(reference))


def split_claims(text: str) -> list[Claim]:
    """Returns the claims of a text in order, without those that have no content word."""
    return [claim for claim in split_clauses(text) if claim.words]


def split_clauses(text: str) -> list[Claim]:
    """Returns the first MAX_CLAUSES clauses in order, also those that claim nothing, such as
    questions."""
    parts = [*SENTENCE_END.split(fold(text)), ""]
    clauses: list[Claim] = []
    for sentence, end in zip(parts[::2], parts[1::2], strict=True):
        if len(clauses) >= MAX_CLAUSES:
            break
        read = read_sentence(sentence)
        clauses += [replace(clause, words=frozenset()) for clause in read] if end == "?" else read
    return clauses


def read_sentence(sentence: str) -> list[Claim]:
    clauses = [part.strip() for part in CLAUSE_END.split(sentence)]
    clauses = [clause for clause in clauses if clause][:MAX_CLAUSES]
    claims: list[Claim] = []
    # "no mass, effusion, or nodule": the index of the last clause that the "no" reaches
    listed = -1
    for index, clause in enumerate(clauses):
        negated = is_negated(clause)
        if negated and claims and not content_words(clause):  # "mass: absent"
            claims[-1] = replace(claims[-1], negated=not claims[-1].negated)
        if negated and index > listed:
            listed = end_of_list(clauses, index)
        if negated or index <= listed:
            claims += [read_claim(part, True) for part in split_alternatives(clause)]
        else:
            claims.append(read_claim(clause, False))
    return claims


def is_negated(clause: str) -> bool:
    return NEGATION.search(PSEUDO_NEGATION.sub(" ", clause)) is not None


def end_of_list(clauses: Sequence[str], start: int) -> int:
    """Returns the index of the last of the bare clauses after `start` up to one with "or": a list
    under one negation."""
    end = start
    for index in range(start + 1, len(clauses)):
        if VERB.search(clauses[index]) or NEGATION.search(clauses[index].removeprefix("nor ")):
            break
        if OR.search(clauses[index]):
            end = index
    return end


def split_alternatives(clause: str) -> list[str]:
    """Returns "mass or effusion" as two parts, but "left or right effusion" as one."""
    parts = OR.split(clause)
    if len(parts) > MAX_CLAIMS:
        return [clause]
    for before, after in pairwise(parts):
        head, tail = content_words(before), content_words(after)
        if any(opposites(word) & tail for word in head):
            return [clause]
    return parts


def read_claim(clause: str, negated: bool) -> Claim:
    return Claim(content_words(PSEUDO_NEGATION.sub(" ", clause)), negated, clause)


def content_words(text: str) -> frozenset[str]:
    found = (word.replace("-", "") for word in WORD.findall(text.replace("x-ray", "xray")))
    stems = (singular(word) for word in found if word not in STOP_WORDS)
    return frozenset(stem for stem in stems if stem not in EMPTY_WORDS and stem not in STOP_WORDS)


@lru_cache(maxsize=8192)
def singular(word: str) -> str:
    """Returns a trivial stem: English plurals and a few Latin ones."""
    if len(word) < 4 or word.endswith(("ss", "us", "is", "as")):
        return word
    for plural, stem in PLURALS:
        if word.endswith(plural):
            return word.removesuffix(plural) + stem
    return word.removesuffix("s")


@lru_cache(maxsize=8192)
def opposites(word: str) -> frozenset[str]:
    """Returns words that cannot be true of the same thing as `word`."""
    found = {other for pair in OPPOSITES if word in pair for other in pair if other != word}
    found.add("non" + word)
    for prefix, other in (("hyper", "hypo"), ("hypo", "hyper"), ("non", "")):
        if word.startswith(prefix) and len(word) > len(prefix) + 2:
            found.add(other + word.removeprefix(prefix))
    return frozenset(found)


def match_claims(claims: Sequence[Claim], references: Sequence[Claim]) -> FindingsMatch:
    """Soft matching, so that neither repetition nor saying both pays.

    A claim is worth its best overlap (F1 of content words, 0 under 0.5) with a reference claim of
    its polarity and without opposite words. Claims that fit the same reference claim count once,
    equal wrong ones too. Precision is the mean over these, recall the mean over reference claims. A
    claim that conflicts with a reference claim more than it fits any is contradicted; the reference
    claim that it denies earns nothing from the other claims either.
    """
    given = list(dict.fromkeys(claim for claim in claims if claim.words))
    wanted = list(dict.fromkeys(claim for claim in references if claim.words))[:MAX_CLAIMS]
    fits: list[list[float]] = []
    denied: set[int] = set()
    contradicted = 0
    for claim in given[:MAX_CLAIMS]:
        supports = [overlap(claim, other) for other in wanted]
        conflicts = [conflict(claim, other) for other in wanted]
        if max(conflicts, default=0.0) > max(supports, default=0.0):
            contradicted += 1
            denied |= {index for index, value in enumerate(conflicts) if value >= DENIED}
        else:
            fits.append(supports)
    earned = [
        max((fit[i] for fit in fits), default=0.0) for i in range(len(wanted)) if i not in denied
    ]
    credit: dict[int, float] = {}
    wrong = len(given) - len(fits)
    for fit in fits:
        best = max(range(len(wanted)), key=fit.__getitem__, default=-1)
        if best < 0 or not fit[best] or best in denied:
            wrong += 1
        else:
            credit[best] = max(credit.get(best, 0.0), fit[best])
    counted = len(credit) + wrong
    precision = sum(credit.values()) / counted if counted else 0.0
    recall = sum(earned) / len(wanted) if wanted else 0.0
    return FindingsMatch(precision, recall, len(given), contradicted)


def overlap(claim: Claim, reference: Claim) -> float:
    """Returns the F1 of the content words of two claims that may both be true; 0 under MATCH."""
    if claim.negated != reference.negated or opposed_words(claim, reference):
        return 0.0
    value = word_f1(claim.words, reference.words)
    return value if value >= MATCH else 0.0


def conflict(claim: Claim, reference: Claim) -> float:
    """Returns how much two claims are about the same thing and cannot both be true; 0 up to MATCH.

    "No spot on the right" does not conflict with "a spot on the left": two differences cancel. A
    denial reaches what it names in general: "no spot" conflicts with "a round spot on the left".
    """
    opposed = opposed_words(claim, reference)
    if (claim.negated != reference.negated) == bool(opposed):
        return 0.0
    if opposed:
        value = word_f1(claim.words - opposed, reference.words - opposed)
    else:
        denial = claim.words if claim.negated else reference.words
        shared = len(claim.words & reference.words)
        value = max(word_f1(claim.words, reference.words), shared / len(denial))
    return value if value > MATCH else 0.0


def opposed_words(claim: Claim, reference: Claim) -> frozenset[str]:
    """Returns the words of both claims that stand against each other. Naming half of a reference's
    "left and right" is none; naming both where the reference has one is."""
    pairs = ((word, (opposites(word) & claim.words) - reference.words) for word in reference.words)
    return frozenset(word for own, others in pairs if others for word in (own, *others))


def word_f1(first: frozenset[str], second: frozenset[str]) -> float:
    """Returns the F1 of two sets of words; 1 for two empty ones."""
    return 2 * len(first & second) / (len(first) + len(second)) if first or second else 1.0
