"""How the claims of a text fit those that are known to be true.

A claim supports a known one where it holds most of its concepts, the finding itself among them
(containment, so that splitting or joining clauses costs nothing), and contradicts it where both
are about the same thing and cannot both be true. Sides, levels, sizes and counts are slots: with
another one the claim is not a word poorer, but false.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

from rarl.replies.concepts import (
    broader,
    is_count,
    is_ordinal,
    is_size,
    is_slot,
    is_vertebra,
    near,
    opposites,
    same_slot,
)
from rarl.replies.findings import Claim, split_claims
from rarl.replies.lexicon import SHIPPED, Lexicon, stems
from rarl.replies.wording import is_common, known_words
from rarl.replies.words import VOCABULARY

PARTLY = 0.4  # share of a claim's concepts that another must name, its finding among them
MATCH = 0.5  # the same where there is no finding
FULL = 0.75  # share of them that counts as all: a word left out of four changes no finding
SLOT_LEFT_OUT = 0.4  # what naming none of a claim's sides, levels and numbers costs
DENIED = 0.75  # share of what a denial denies that must be claimed, to contradict it
NEARLY = 0.7  # what a concept near the right one is worth
WEIGHTS = {"quality": 1.5, "anatomy": 1.0}  # beside 2 of the finding itself, and 0.5 of all else
TECHNIQUE = ("modality", "plane", "sequence")
GENERAL_PLACES = frozenset(
    concept
    for place in VOCABULARY["general_places"].split()
    for concept, _, _ in SHIPPED.concepts(stems(place))
)
NORMAL, NO_ABNORMALITY = frozenset(("normal",)), frozenset(("abnormal",))
LOSS = frozenset(("decreased",))
# What a contradiction takes from the recall, in claims; below 1, so that one right claim of two is
# worth more than none.
CONTRADICTION = 0.9
POOLED, MOST_POOLED = 3, 6  # claims that may support one together, and from among how many
MAX_CLAIMS = 64  # compared of one text; further ones are counted, as wrong


@dataclass(frozen=True)
class FindingsMatch:
    """How the claims of a text fit those of a reference; shares in [0, 1]. `covered` is the recall
    before it is lowered for contradictions. `claims` counts distinct ones."""

    precision: float
    recall: float
    covered: float
    claims: int
    contradicted: int

    @property
    def f1(self) -> float:
        both = self.precision + self.recall
        return 2 * self.precision * self.recall / both if both else 0.0


@lru_cache(maxsize=4096)
def references_of(text: str, lexicon: Lexicon) -> tuple[Claim, ...]:
    """Returns the distinct claims of a text that is true, all taken at their word."""
    return tuple(dict.fromkeys(split_claims(text, lexicon=lexicon)))


def compare_findings(
    text: str, reference: str, known: str = "", lexicon: Lexicon = SHIPPED
) -> FindingsMatch:
    """Returns precision and recall of a text's claims against a reference's; all 0 where either has
    no claim. `known` are further texts whose words may be said."""
    claims = split_claims(text, known_words(known, reference), lexicon)
    return match_claims(claims, references_of(reference, lexicon), lexicon)


def match_claims(
    claims: Sequence[Claim], references: Sequence[Claim], lexicon: Lexicon = SHIPPED
) -> FindingsMatch:
    """Soft matching, so that neither repetition nor saying both pays.

    Each reference claim earns what its best claim supports of it, times that claim's trust; none
    where a claim contradicts it. Recall is that over the reference claims, less nine tenths of
    one for each contradiction. Precision is S / (M + 2 C + U / 2): S is what M reference claims
    earned, C counts contradictions, U claims that are something else, or of another status. What is
    merely denied beyond the reference costs nothing: a normal finding that nobody asked for is no
    mistake.
    """
    # What is asserted somewhere is asserted, wherever else it is only supposed.
    ordered = sorted(claims, key=lambda claim: not claim.asserted)
    given = list(dict.fromkeys(claim for claim in ordered if claim.words))
    wanted = list(dict.fromkeys(claim for claim in references if claim.words))[:MAX_CLAIMS]
    asserted: list[Claim] = []
    denied: set[int] = set()
    contradicted = 0
    for claim in given[:MAX_CLAIMS]:
        if not claim.asserted:
            continue
        supports = max(
            (support(claim, one, lexicon) * fit_of(claim, one) for one in wanted), default=0.0
        )
        conflicts = [conflict(claim, other, lexicon) for other in wanted]
        if max(conflicts, default=0.0) > supports:
            contradicted += 1
            denied |= {place for place, value in enumerate(conflicts) if value >= DENIED}
        else:
            asserted.append(claim)
    used: set[str] = set()
    earned = [0.0] * len(wanted)
    for place, other in enumerate(wanted):
        for pool in pools(asserted, other):
            value = support(pool, other, lexicon) if place not in denied else 0.0
            if value and (pool in asserted or value * pool.trust > earned[place]):
                used |= pool.words
                earned[place] = max(earned[place], value * pool.trust)
    beyond = len(given) - len(given[:MAX_CLAIMS])
    unused = [
        claim
        for claim in given[:MAX_CLAIMS]
        if not claim.asserted or (claim in asserted and not (claim.negated or claim.words <= used))
    ]
    total, matched = sum(earned), sum(value > 0 for value in earned)
    counted = matched + 2 * contradicted + len(unused) / 2 + beyond
    precision = total / counted if counted else 0.0
    covered = total / len(wanted) if wanted else 0.0
    recall = max(0.0, total - CONTRADICTION * contradicted) / len(wanted) if wanted else 0.0
    return FindingsMatch(precision, recall, covered, len(given), contradicted)


def fit_of(claim: Claim, reference: Claim) -> float:
    """Returns less than 1 where a claim is more exact than the reference claim that it supports:
    "a lesion on the left" beside "a lesion" may still be false by another one, with its side."""
    slots = (word for word in claim.words if is_slot(word))
    return 1.0 if all(same_slot(slot, reference.words) for slot in slots) else 0.9


def pools(claims: Sequence[Claim], reference: Claim) -> Iterable[Claim]:
    """Yields each claim, then each two and three that assert something of the reference's
    concepts, as one: what is told in several clauses is told. At most MOST_POOLED claims are put
    together, whatever their order."""
    yield from claims
    told = {word for word in reference.words if not is_slot(word)}
    about = [claim for claim in claims if not claim.negated and claim.words & told]
    about.sort(key=lambda claim: (-len(claim.words & told), sorted(claim.words)))
    for size in range(2, POOLED + 1):
        for pool in combinations(about[:MOST_POOLED], size):
            words = frozenset(word for one in pool for word in one.words)
            yield Claim(words, False, trust=min(one.trust for one in pool))


@lru_cache(maxsize=65536)
def support(claim: Claim, reference: Claim, lexicon: Lexicon = SHIPPED) -> float:
    """Returns how much of a known claim another one says; 0 under PARTLY, without its finding, and
    where they cannot both be true."""
    differ = claim.negated != reference.negated
    opposed = opposed_words(claim, reference)
    # "not enlarged" says "normal", but "not on the left" does not say "on the right".
    if differ != bool(opposed) or any(is_slot(word) for word in opposed):
        return 0.0
    wanted = weights(reference, lexicon)
    core = core_of(reference, lexicon)
    said = claim.words | opposed
    if core and not any(cover(word, said) for word in core):
        return 0.0
    if not claim.negated and places_differ(claim, reference, lexicon, GENERAL_PLACES):
        return 0.0
    slots = [word for word in reference.words if is_slot(word)]
    full = sum(wanted.values())
    share = (
        sum(weight * cover(word, said) for word, weight in wanted.items()) / full
        if full
        else float(all(same_slot(slot, said) for slot in slots))
    )
    if share < (PARTLY if core else MATCH):
        return 0.0
    left_out = sum(not same_slot(slot, said) for slot in slots)
    cost = SLOT_LEFT_OUT * left_out / len(slots) if slots and full else 0.0
    return min(1.0, share / FULL) * (1 - cost)


@lru_cache(maxsize=65536)
def conflict(claim: Claim, reference: Claim, lexicon: Lexicon = SHIPPED) -> float:
    """Returns how much two claims are about the same thing and cannot both be true; 0 up to MATCH.

    "No spot on the right" does not conflict with "a spot on the left": two differences cancel. A
    denial reaches what it names in general: "no spot" conflicts with "a round spot on the left",
    but not "the mass does not enhance" with "a mass".
    """
    if all_is_well(claim, reference, lexicon):
        return 1.0
    opposed = opposed_words(claim, reference)
    differ = claim.negated != reference.negated
    slots = any(is_slot(word) for word in opposed)
    differences = differ + slots + any(not is_slot(word) for word in opposed)
    if differences != 1 or places_differ(claim, reference, lexicon):
        return 0.0
    cores = core_of(claim, lexicon), core_of(reference, lexicon)
    if all(cores) and not any(cover(word, cores[1]) for word in cores[0]):
        return 0.0
    if differ:
        denial, other = (claim, reference) if claim.negated else (reference, claim)
        if not all(same_slot(word, other.words) for word in denial.words if is_slot(word)):
            return 0.0
        kinds = lexicon.kinds
        # Where something is denied may be told more exactly than where it is claimed.
        wanted = {
            word: weight
            for word, weight in weights(denial, lexicon).items()
            if not core_of(denial, lexicon) or kinds.get(word) != "anatomy"
        }
        # "The lung is free of disease" is about the lung, but denies disease.
        denied = [word for word in wanted if kinds.get(word) != "anatomy"]
        if denied and not any(cover(word, other.words) for word in denied):
            return 0.0
        full = sum(wanted.values())
        share = sum(w * cover(word, other.words) for word, w in wanted.items()) / (full or 1.0)
        return share if share >= DENIED else 0.0
    first, second = (
        {word: weight for word, weight in weights(one, lexicon).items() if word not in opposed}
        for one in (claim, reference)
    )
    full = sum(first.values()) + sum(second.values())
    if not full:
        return 1.0
    shared = sum(w * cover(word, second) for word, w in first.items())
    shared += sum(w * cover(word, first) for word, w in second.items())
    share = shared / full
    organs = {word for word in first if lexicon.kinds.get(word) == "anatomy"} & set(second)
    if all(cores) and organs and not organs <= GENERAL_PLACES:
        # One thing in one organ, whatever else is told of it.
        share = max(share, DENIED)
    return share if share > MATCH else 0.0


def all_is_well(claim: Claim, reference: Claim, lexicon: Lexicon) -> bool:
    """Says whether a claim calls normal what the reference has a finding of: "the lungs are
    unremarkable", "a normal study"."""
    if reference.negated or not any(lexicon.kinds.get(one) == "finding" for one in reference.words):
        return False
    if claim.words == NO_ABNORMALITY or claim.negated:
        return claim.negated and claim.words == NO_ABNORMALITY
    places = claim.words - NORMAL
    if claim.words == places or any(lexicon.kinds.get(one) != "anatomy" for one in places):
        return False
    return not places or any(cover(one, reference.words) for one in places)


@lru_cache(maxsize=16384)
def core_of(claim: Claim, lexicon: Lexicon) -> frozenset[str]:
    """Returns what a claim is about: its findings and devices, or where it has none, the technique
    that it names."""
    kinds = lexicon.kinds
    findings = frozenset(word for word in claim.words if kinds.get(word) in ("finding", "device"))
    return findings or frozenset(word for word in claim.words if kinds.get(word) in TECHNIQUE)


@lru_cache(maxsize=16384)
def weights(claim: Claim, lexicon: Lexicon) -> dict[str, float]:
    """Returns what each concept of a claim weighs, without its slots. A word that the lexicon does
    not know may be the finding, or the place of one; one of common language is neither."""
    kinds, core = lexicon.kinds, core_of(claim, lexicon)
    found = {}
    for word in claim.words:
        kind = kinds.get(word)
        if is_slot(word):
            continue
        if word in core:
            found[word] = 2.0
        elif kind is None:
            found[word] = 0.25 if is_common(word) else 1.0
        else:
            found[word] = WEIGHTS.get(kind, 0.5)
    return found


def cover(word: str, words: Collection[str]) -> float:
    """Returns 1 where a concept is among words, or a broader or narrower one, NEARLY where one near
    it is, else 0."""
    if word in words or any(other in words for other in broader(word)):
        return 1.0
    return NEARLY if any(other in words for other in near(word)) else 0.0


def places_differ(
    claim: Claim,
    reference: Claim,
    lexicon: Lexicon = SHIPPED,
    general: Collection[str] = frozenset(),
) -> bool:
    """Says whether both name organs or parts of the body other than `general`, none in common."""
    kinds = lexicon.kinds
    first, second = (
        {
            word
            for word in one.words
            if kinds.get(word) == "anatomy" and not is_slot(word) and word not in general
        }
        for one in (claim, reference)
    )
    return bool(first and second) and not any(cover(word, second) for word in first)


@lru_cache(maxsize=65536)
def opposed_words(claim: Claim, reference: Claim) -> frozenset[str]:
    """Returns the words of both claims that stand against each other. Naming half of a reference's
    "left and right" is none; naming both where the reference has one is. Counts stand against each
    other where they differ, sizes where they differ by more than a quarter."""
    pairs = (
        (word, (opposites(word) & claim.words) - reference.words)
        for word in reference.words
        if is_slot(word) or word not in claim.words
    )
    found = {word for own, others in pairs if others for word in (own, *others)}
    if claim.negated != reference.negated:
        # "No differentiation" says "loss of differentiation".
        denial, other = (claim, reference) if claim.negated else (reference, claim)
        found |= other.words & LOSS - denial.words
    for kind in (is_size, is_count, is_ordinal, is_vertebra):
        given = {word for word in claim.words if kind(word)}
        wanted = {word for word in reference.words if kind(word)}
        if given and wanted and not any(same_slot(one, wanted) for one in given):
            found |= given | wanted
    return frozenset(found)
