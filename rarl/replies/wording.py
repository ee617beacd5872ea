"""Whether a text is worded as a description is: known words, in an order that English allows.

Lists of cues are never complete. What they do not know, a closed vocabulary catches: a word that is
neither in the example's own texts, nor in the lexicon, nor among the words with which pictures are
described makes what it stands with worth less. Words in an impossible order give away what is only
a bag of the right ones.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import lru_cache
from itertools import pairwise

from rarl.replies.lexicon import (
    EMPTY_WORDS,
    MILLIMETRES,
    NUMBER_WORDS,
    ORDINALS,
    STOP_WORDS,
    Lexicon,
    stem,
    stems,
)
from rarl.replies.words import VOCABULARY, fold

WORDS = frozenset(
    stem(word)
    for words in (
        STOP_WORDS, EMPTY_WORDS, VOCABULARY["neutral_words"].split(),
        VOCABULARY["medical_words"].split(), NUMBER_WORDS, ORDINALS, MILLIMETRES,
        ("st", "nd", "rd", "th"),
    )
    for word in words
)  # fmt: skip
# Greek and Latin parts that no everyday word has: new terms are no reason for doubt.
MEDICAL = re.compile(
    r"^(?:hyper|hypo|peri|intra|retro|supra|infra|sub|para|endo|epi|osteo|cardio|pneumo|hemo|neuro|"
    r"cyst|chol|hepat|nephr|myel|arthr|costo|cranio|cerebr|gastr|lymph|angi|vasc|micro|macro|poly|"
    r"extra|trans|hemi|juxta|fibro|myo|lipo|chondr|sacro|ileo|ilio|uret|vesic|recto|spondyl|synov|"
    r"thromb|papill|adeno|carcin|sarco|scler|lepto|ventric|dys|ecto|onco|bronch|thorac|mening)"
    r"\w{4}|(?:itis|osis|asis|oma|emia|pathy|plasia|plastic|trophy|ectasis|ectomy|ostomy|"
    r"gram|graphy|scopy|cele|rrhage|uria|algia|oid|eal|ular|iform|genic|lytic|lith|megaly|penia|"
    r"malacia|plasm|plegia|rrhea|chromatic|philic|cytic|blastic|hilar|axial|vascular)$"
)
UNDONE = re.compile(r"^(?:un|non|in)(?=\w{4})")
LONGEST_WORD = 40
# A number, a letter, an abbreviation without a vowel: none of them takes anything back.
NUMBER = re.compile(r"\d|^[a-z]\d*$|^[bcdfghjklmnpqrstvwxz]{2,5}$")

DETERMINERS = frozenset(("a", "an", "the"))
BE = frozenset(("is", "are", "was", "were"))
PREPOSITIONS = frozenset(VOCABULARY["prepositions"].split())
CONJUNCTIONS = frozenset(("and", "or", "but", "nor"))
FUNCTION = DETERMINERS | BE | PREPOSITIONS | CONJUNCTIONS
# What may follow a preposition though it is a function word itself.
AFTER_PREPOSITION = DETERMINERS | {"between", "within", "near"}
FINITE_VERBS = frozenset(VOCABULARY["finite_verbs"].split())
AFTER_THERE = BE | frozenset(VOCABULARY["after_there"].split())
TOKEN = re.compile(r"[^\W_]+|[.,;:!?()\n/]")
ENDS = frozenset(".,;:!?()\n/")
LONGEST_RUN = 7  # words of content on end; a telegram's clause is shorter
FAULTS_ALLOWED, FAULTS_MOST = 0.03, 0.12  # impossible neighbours in a text, as a share of its words
ADJECTIVES, PARTS = ("side", "severity"), ("anatomy", "level")
NOUNS = ("finding", "device", "anatomy")
ADJECTIVE = re.compile(r"(?:al|ar|ic|ary|ous|ed|ing|per|wer|ior)$")


def unknown_words(found: Sequence[str], known: Collection[str], lexicon: Lexicon) -> int:
    """Returns how many stems are neither in `known` nor in the lexicon nor common in descriptions
    nor of a medical make."""

    def is_known(word: str) -> bool:
        return word in known or word in lexicon.words or is_common(word)

    return sum(not (is_known(word) or is_known(UNDONE.sub("", word))) for word in found)


@lru_cache(maxsize=16384)
def is_common(word: str) -> bool:
    return word in WORDS or (
        len(word) < LONGEST_WORD and bool(MEDICAL.search(word) or NUMBER.search(word))
    )


@lru_cache(maxsize=2048)
def known_words(*texts: str | None) -> frozenset[str]:
    """Returns the stems of an example's texts: what a reply about it may say."""
    return frozenset(word for text in texts if text for word in stems(text))


def order_factor(text: str, lexicon: Lexicon) -> float:
    """Returns 1 for words in an order that English allows, down to 0 where one pair in eight is
    impossible: an article before a verb, a preposition at the end, a noun before its adjective, or
    a run of content without a word between."""
    tokens = [*TOKEN.findall(fold(text)), "."]
    faults = sum(impossible(one, other, lexicon) for one, other in pairwise(tokens))
    # At the end of a clause an adjective is a telegram's predicate: "placenta anterior".
    faults += sum(
        misplaced(one, other, lexicon)
        for one, other, after in zip(tokens, tokens[1:], tokens[2:], strict=False)
        if after not in ENDS
    )
    # "A." at the beginning is an option's letter.
    faults -= tokens[0] in ("a", "(") and "a" in tokens[:2] and bool(ENDS & set(tokens[1:3]))
    words = run = 0
    start = True
    for place, token in enumerate(tokens):
        if token in ENDS:
            start = start or token not in ",()/"
            run = 0
            continue
        words += 1
        if start and token in BE:
            faults += (
                next((one for one in tokens[place : place + 40] if one in ".;!?\n"), ".") != "?"
            )
        start = False
        run = run + 1 if token not in STOP_WORDS else 0
        faults += run > LONGEST_RUN
    share = faults / words if words else 0.0
    return min(1.0, max(0.0, (FAULTS_MOST - share) / (FAULTS_MOST - FAULTS_ALLOWED)))


def impossible(word: str, following: str, lexicon: Lexicon) -> bool:
    """Says whether no description has these two words in this order."""
    if word in ENDS:
        return False
    ends = following in ENDS
    if word in DETERMINERS or word == "no":
        return ends or following in FUNCTION | FINITE_VERBS or following in ("there", "not", "no")
    if word in PREPOSITIONS:
        bad = following in FUNCTION - AFTER_PREPOSITION or following in ("there", "not")
        return bad or (ends and following != ":")
    if word in CONJUNCTIONS:
        return ends or following in CONJUNCTIONS
    if word in BE:
        return following in BE | FINITE_VERBS or following == "of"
    if word in FINITE_VERBS and following in BE:
        return True
    if word == "there":
        return not ends and following not in AFTER_THERE and following not in STOP_WORDS
    return False


def misplaced(word: str, following: str, lexicon: Lexicon) -> bool:
    """Says whether an adjective follows its noun."""
    if {word, following} & (ENDS | STOP_WORDS) or following.endswith("ly"):
        return False
    if ADJECTIVE.search(word):
        return False
    place = kind_of(following, lexicon)
    adjective = place in ADJECTIVES or (place in PARTS and ADJECTIVE.search(following))
    return bool(adjective) and kind_of(word, lexicon) in NOUNS


def heads(words: Collection[str], lexicon: Lexicon) -> int:
    """Returns how many things concepts name: findings and techniques, or organs with a
    quality."""
    kinds = [lexicon.kinds.get(word) for word in words]
    technique = any(kind in ("modality", "plane") for kind in kinds)
    qualified = min(kinds.count("quality"), kinds.count("anatomy"))
    return max(kinds.count("finding") + kinds.count("device") + technique, qualified)


@lru_cache(maxsize=16384)
def kind_of(word: str, lexicon: Lexicon) -> str:
    """Returns the kind of a word that is a form by itself, else nothing."""
    found = stem(word)
    for form, concepts in lexicon.forms.get(found, ()):
        if len(form) == 1:
            return lexicon.kinds.get(concepts[0], "")
    return ""
