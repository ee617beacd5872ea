"""Findings in free medical text, read without a model: claims with their concepts, polarity and
status.

Negation and status follow NegEx and ConText (Chapman et al. 2001; Harkema et al. 2009): cues before
or after, pseudo-negations, words that end a cue's scope. A cue of the past or of another patient
holds until a sentence comes back to this picture; what takes statements back acts on all before.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from typing import Literal

from rarl.replies.concepts import content_words, opposites
from rarl.replies.lexicon import (
    EMPTY_WORDS,
    SHIPPED,
    STOP_WORDS,
    Lexicon,
    stem,
    stems,
)
from rarl.replies.wording import heads, order_factor, unknown_words
from rarl.replies.words import VOCABULARY, fold, pattern

Status = Literal["asserted", "conditional", "past", "other_patient", "withdrawn", "question"]

MAX_CLAUSES = 512  # read of one text; far above what a reply of a few hundred words holds
MAX_ALTERNATIVES = 64  # "a or b or …" read of one clause
# What a claim is worth that is hedged, or that stands with an unknown word; and what all claims are
# that stand with a sentence of unknown words and no finding, which may take them back.
HEDGED, UNKNOWN_WORD, UNKNOWN_SENTENCE = 0.5, 0.5, 0.4
# What a sentence is worth that is put into another by words that do not simply report it: "I refuse
# to believe that", "a scan on which".
UNKNOWN_PREFACE = 0.4
FEW_WORDS = 4  # of a sentence that says no more than "or rather, no"
# What a clause is worth that is but a list of words.
SALAD = 0.25

# Captured, since a question claims nothing.
SENTENCE_END = re.compile(r"((?<!\d)\.|\.(?!\d)|[;!?\n•—–]|\s[-*]\s)")
CLAUSE_END, NEGATION, DENIES_NEXT = (
    pattern("clause_end"),
    pattern("negation"),
    pattern("denies_next"),
)
PSEUDO_NEGATION, VERB = pattern("pseudo_negation"), pattern("verb")
DENIES_SENTENCE, DENIES_LIST = pattern("denies_sentence"), pattern("denies_list")
CONDITIONAL, HEDGE, PAST = pattern("conditional"), pattern("hedged"), pattern("past")
COMPARED, PRESENT, OTHER_PATIENT = pattern("compared"), pattern("present"), pattern("other_patient")
WITHDRAWN, WITHDRAWN_AHEAD = pattern("withdrawn"), pattern("withdrawn_ahead")
REFERS_BACK = pattern("refers_back")
# What something is compared with is not claimed: up to the verb, where that follows.
THAN = re.compile(
    r"\b(?:(?<!rather )than|compared (?:to|with)|relative to)\b.*?(?=\b(?:is|are|was|were)\b|$)"
)
OR = re.compile(r"\b(?:or|nor)\b")
SCENE = re.compile(r"^(?:and |but )?(?:on|in|at|from|with|for|according|of|as|per)\b")
PREFACE = re.compile(r"([^,:]{0,60}?)\b(?:that|which|whom|whose|where)\b")
WHOLE_ANSWER = re.compile(r"(?:the answer is )?no")
REPORTING = STOP_WORDS | EMPTY_WORDS | set(VOCABULARY["reporting"].split())
LOCATION = ("anatomy", "side", "level")
# Words without content that place something: "above the diaphragm" is not below it.
PLACES = frozenset(stem(word) for word in VOCABULARY["place_words"].split())
VERTEBRA = re.compile(r"[ctls]\d{1,2}")


@dataclass(frozen=True)
class Claim:
    """One clause: the concepts that it names, by their preferred names, and whether it denies them.

    Sizes are among them in millimetres ("30 mm"), counts as numbers, ordinals with "#". `text` is
    the folded clause. `trust` in [0, 1] is what the claim is worth by its wording.
    """

    words: frozenset[str]
    negated: bool
    text: str = field(default="", compare=False)
    status: Status = field(default="asserted", compare=False)
    trust: float = field(default=1.0, compare=False)

    @property
    def asserted(self) -> bool:
        return self.status == "asserted"


def split_claims(
    text: str, known: Collection[str] | None = None, lexicon: Lexicon = SHIPPED
) -> list[Claim]:
    """Returns the claims of a text in order, without those that have no concept."""
    return [claim for claim in split_clauses(text, known, lexicon) if claim.words]


def split_clauses(
    text: str, known: Collection[str] | None = None, lexicon: Lexicon = SHIPPED
) -> list[Claim]:
    """Returns the first MAX_CLAUSES clauses in order, also those that claim nothing, such as
    questions.

    With `known`, the stems of what may be said, words outside of these and an impossible order make
    claims worth less; without it all wording is trusted, as that of a reference is.
    """
    parts = [*SENTENCE_END.split(fold(text)), ""]
    clauses: list[Claim] = []
    frame: Status = "asserted"
    ahead = False
    doubt = 1.0
    for sentence, end in zip(parts[::2], parts[1::2], strict=True):
        if len(clauses) >= MAX_CLAUSES:
            break
        if not (sentence := sentence.strip()):
            continue
        read = [*read_sentence(sentence, lexicon)]
        if end == "?":
            clauses += [replace(one, words=frozenset(), status="question") for one in read]
            continue
        read, frame = with_status(read, sentence, frame)
        told = any(one.words for one in read)
        if WITHDRAWN_AHEAD.search(sentence):
            ahead = True
        taken_back = WITHDRAWN.search(sentence)
        if not taken_back and not told and is_negated(sentence):
            short = len(sentence.split()) <= FEW_WORDS and not WHOLE_ANSWER.fullmatch(sentence)
            taken_back = re.match("", sentence) if short else REFERS_BACK.search(sentence)
        if taken_back:
            clauses = [replace(one, status="withdrawn") for one in clauses]
            before = [one for one in read if sentence.find(one.text) < taken_back.start()]
            read = [replace(one, status="withdrawn") if one in before else one for one in read]
        if known is not None:
            read, factor = doubted(read, sentence, known, lexicon)
            doubt = min(doubt, factor)
        if ahead:
            read = [replace(one, status="withdrawn") for one in read]
        clauses += read
    if known is not None:
        doubt *= order_factor(text, lexicon)
    return clauses if doubt == 1.0 else [replace(c, trust=c.trust * doubt) for c in clauses]


@lru_cache(maxsize=16384)
def read_sentence(sentence: str, lexicon: Lexicon) -> tuple[Claim, ...]:
    """Returns the clauses of a sentence with their concepts and polarity, all asserted."""
    introduced = DENIES_SENTENCE.match(sentence)
    head = sentence[: introduced.end()] if introduced else ""
    denied = bool(introduced) and not PSEUDO_NEGATION.search(head)
    if denied:
        sentence = sentence[len(head) :]
    heading, colon, rest = sentence.partition(":")
    place = place_words(heading, lexicon) if colon else frozenset()
    if place:
        sentence = rest
    clauses = [part.strip() for part in CLAUSE_END.split(sentence)]
    clauses = [clause for clause in clauses if clause][:MAX_CLAUSES]
    claims: list[Claim] = []
    # "no mass, effusion, or nodule": the index of the last clause that the "no" reaches
    listed = -1
    for index, clause in enumerate(clauses):
        negated = is_negated(clause)
        if negated and claims and not content_words(clause, lexicon):  # "mass: absent"
            claims[-1] = replace(claims[-1], negated=not claims[-1].negated)
        if negated and index > listed:
            listed = end_of_list(clauses, index, DENIES_LIST.search(clause) is not None)
        if negated or index <= listed:
            claims += read_denial(clause, lexicon)
        else:
            claims.append(read_claim(clause, False, lexicon))
    claims = in_context(claims, place, lexicon)
    return tuple(replace(one, negated=not one.negated) if denied else one for one in claims)


def place_words(heading: str, lexicon: Lexicon) -> frozenset[str]:
    """Returns the concepts of a heading that only says where: "right breast", "L4-5"."""
    words = content_words(heading, lexicon)
    kinds = {lexicon.kinds.get(word) for word in words}
    places = kinds & {"anatomy", "side"} or any(VERTEBRA.fullmatch(word) for word in words)
    bare = not VERB.search(heading) and not is_negated(heading)
    return words if bare and places and kinds <= {None, *LOCATION} else frozenset()


def in_context(claims: Sequence[Claim], place: frozenset[str], lexicon: Lexicon) -> list[Claim]:
    """Returns claims with what their sentence's heading says of their place, and those of a clause
    without a noun ("mass in the liver, 3 cm", "duct, not dilated") with the noun before it."""
    found: list[Claim] = []
    for claim in with_subjects(claims, lexicon):
        kinds = {lexicon.kinds.get(word) for word in claim.words if not word[0].isdigit()}
        bare = kinds <= {"quality", "severity"} and not VERB.search(claim.text)
        words = claim.words
        if words and bare and found and (claim.negated or not found[-1].negated):
            words |= {
                word
                for word in found[-1].words
                if lexicon.kinds.get(word) in ("finding", "device", *LOCATION)
            }
        elif words:
            words |= {word for word in place if not opposites(word) & words}
        found.append(replace(claim, words=words))
    return found


def with_subjects(claims: Sequence[Claim], lexicon: Lexicon) -> Sequence[Claim]:
    """Returns claims with what is told of several organs told of each ("the spleen and the pancreas
    are normal"), and with a place that stands before ("in the liver, there is a mass")."""
    first = next((place for place, one in enumerate(claims) if tells(one, lexicon)), 0)
    if not first:
        return claims
    told = claims[first]
    predicate = frozenset(word for word in told.words if lexicon.kinds.get(word) not in LOCATION)
    if not any(lexicon.kinds.get(word) == "anatomy" for word in told.words):
        places = frozenset(word for one in claims[:first] for word in one.words)
        places = frozenset(word for word in places if not opposites(word) & told.words)
        return [replace(told, words=told.words | places), *claims[first + 1 :]]
    subjects = [
        replace(one, words=one.words | predicate, negated=told.negated) for one in claims[:first]
    ]
    return [*subjects, *claims[first:]]


def tells(claim: Claim, lexicon: Lexicon) -> bool:
    """Says whether a clause is more than the name of a place."""
    kinds = {lexicon.kinds.get(word) for word in claim.words}
    return claim.negated or not kinds <= {*LOCATION} or bool(VERB.search(claim.text))


def is_negated(clause: str) -> bool:
    return NEGATION.search(PSEUDO_NEGATION.sub(" ", clause)) is not None


def end_of_list(clauses: Sequence[str], start: int, whole: bool) -> int:
    """Returns the index of the last of the bare clauses after `start` up to one with "or", or of
    all of them with `whole`: a list under one negation."""
    end = start
    for index in range(start + 1, len(clauses)):
        if VERB.search(clauses[index]) or NEGATION.search(clauses[index].removeprefix("nor ")):
            break
        if whole or OR.search(clauses[index]):
            end = index
    return end


def read_denial(clause: str, lexicon: Lexicon) -> list[Claim]:
    """Returns the claims of a clause with a negation. What stands before a "no" is not denied by
    it, unless it only says where: "the right lung has no nodule"."""
    plain = PSEUDO_NEGATION.sub(" ", clause)
    cue = DENIES_NEXT.search(plain)
    others = NEGATION.search(DENIES_NEXT.sub(" ", plain))
    where, before = "", None
    if cue and not others:
        head = plain[: cue.start()]
        words = content_words(head, lexicon)
        if any(lexicon.kinds.get(word) not in LOCATION for word in words):
            before = read_claim(head, False, lexicon)
            plain = plain[cue.start() :]
        else:
            where, plain = head, plain[cue.start() :]
    denials = [
        replace(read_claim(f"{where} {part}", True, lexicon), text=clause)
        for part in split_alternatives(plain, lexicon)
    ]
    return [before, *denials] if before else denials


def split_alternatives(clause: str, lexicon: Lexicon) -> list[str]:
    """Returns "mass or effusion" as two parts, but "left or right effusion" as one."""
    parts = OR.split(clause)
    if len(parts) > MAX_ALTERNATIVES:
        return [clause]
    for before, after in pairwise(parts):
        head, tail = content_words(before, lexicon), content_words(after, lexicon)
        if any(opposites(word) & tail for word in head):
            return [clause]
    return parts


def read_claim(clause: str, negated: bool, lexicon: Lexicon) -> Claim:
    said = THAN.sub(" ", PSEUDO_NEGATION.sub(" ", clause))
    return Claim(content_words(said, lexicon), negated, clause)


def with_status(
    claims: Sequence[Claim], sentence: str, frame: Status
) -> tuple[list[Claim], Status]:
    """Returns a sentence's claims with their status, and the status in which the next begins.

    A condition holds for its sentence. The past and another patient hold on until a sentence, or a
    later clause, names this picture.
    """
    if HEDGE.search(sentence):
        claims = [replace(one, trust=one.trust * HEDGED) for one in claims]
    if CONDITIONAL.search(sentence):
        return [replace(one, status="conditional") for one in claims], frame
    here = PRESENT.search(sentence)
    if OTHER_PATIENT.search(sentence):
        status: Status = "other_patient"
    elif PAST.search(sentence) and not COMPARED.search(sentence):
        status = "past"
    else:
        status = "asserted" if here else frame
    if status == "asserted" or not here:
        return [replace(one, status=status) for one in claims], status
    found = [
        one
        if sentence.find(one.text) + len(one.text) > here.start()
        else replace(one, status=status)
        for one in claims
    ]
    return found, "asserted"


def doubted(
    claims: list[Claim], sentence: str, known: Collection[str], lexicon: Lexicon
) -> tuple[list[Claim], float]:
    """Returns a sentence's claims, worth less where it has an unknown word, and the factor that
    this puts on all claims of the text: below 1 where the unknown words stand in a sentence, a
    heading or a scene that holds no finding, since they may take back or move whatever is near."""
    if (preface := PREFACE.match(sentence)) and not set(preface[1].split()) <= REPORTING:
        claims = [replace(one, trust=one.trust * UNKNOWN_PREFACE) for one in claims]
    claims = [
        replace(one, trust=one.trust * SALAD) if is_salad(one, lexicon) else one for one in claims
    ]
    if not unknown_words(stems(sentence), known, lexicon):
        return claims, 1.0
    factor = 1.0
    lead = claims[0].text if claims else sentence
    bare = not content_words(lead, lexicon) & lexicon.kinds.keys()
    if (bare or SCENE.match(lead)) and unknown_words(scene_of(lead, lexicon), known, lexicon):
        factor = UNKNOWN_SENTENCE
    return [replace(one, trust=one.trust * UNKNOWN_WORD) for one in claims], factor


def is_salad(claim: Claim, lexicon: Lexicon) -> bool:
    """Says whether a clause names several things without a word between them."""
    words = content_words(claim.text, lexicon)  # without its heading's
    return heads(words, lexicon) > 1 and not STOP_WORDS & set(claim.text.split())


def scene_of(clause: str, lexicon: Lexicon) -> list[str]:
    """Returns the stems of a clause up to its first finding, device or quality."""
    found = stems(clause)
    for concept, start, _ in lexicon.concepts(found):
        if lexicon.kinds.get(concept) in ("finding", "device", "quality"):
            return found[:start]
    return found


def meaning(text: str) -> frozenset[tuple[frozenset[str], bool]]:
    """Returns what a short text says: its claims' concepts with the words that place them, and
    whether they are denied. Equal for two names of one thing: RUL and right upper lobe."""
    # A lobe without an organ is the lung's.
    said = frozenset(
        (claim.words - {"lung"} if "lobe" in claim.words else claim.words, claim.negated)
        for claim in split_claims(text)
    )
    places = frozenset(word for word, _, _ in SHIPPED.concepts(stems(text)) if word in PLACES)
    return said | {(places, False)} if said and places else said
