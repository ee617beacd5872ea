"""Concepts of a text: the names of `lexicon.tsv`, sizes, counts, ordinals and other words of
content; which of them exclude each other, and which come near."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache

from rarl.replies.lexicon import (
    EMPTY_WORDS,
    MILLIMETRES,
    NUMBER_WORDS,
    ORDINALS,
    PERCENT,
    SHIPPED,
    STOP_WORDS,
    Lexicon,
    stem,
    stems,
)
from rarl.replies.words import VOCABULARY

TOLERANCE = 0.25  # two sizes so near are one
AXES = (
    frozenset(("left", "right", "midline")),
    frozenset(("upper", "middle", "lower")),
    frozenset(("anterior", "posterior")),
    frozenset(("medial", "lateral")),
    frozenset(("proximal", "distal")),
    frozenset(("central", "peripheral")),
    frozenset(("superficial", "deep")),
    frozenset(("internal", "external")),
    frozenset(("above", "below")),
)
IDLE = frozenset(stem(word) for word in STOP_WORDS | EMPTY_WORDS)
NUMBER_ENDINGS = frozenset(("st", "nd", "rd", "th"))
NOTHING = IDLE | MILLIMETRES.keys() | NUMBER_ENDINGS | {PERCENT}


def concept_pairs(name: str) -> list[frozenset[str]]:
    """Returns a list of pairs of the vocabulary's, by the names of the concepts."""
    return [
        frozenset(SHIPPED.concepts(stems(word))[0][0] for word in pair.split("/"))
        for pair in VOCABULARY[name].split()
    ]


# Beginnings that turn a word's meaning round.
PREFIXES = [("hyper", "hypo"), ("hypo", "hyper")]
PREFIXES += [pair for no in ("non", "un", "in") for pair in ((no, ""), ("", no))]
OPPOSITES, NEAR = concept_pairs("opposites"), concept_pairs("near")
BROADER = concept_pairs("broader")


@lru_cache(maxsize=16384)
def content_words(text: str, lexicon: Lexicon = SHIPPED) -> frozenset[str]:
    """Returns the concepts, sizes, counts and other words of content of a text."""
    found = stems(text)
    words = set()
    for concept, _, end in lexicon.concepts(found):
        if concept in lexicon.kinds:
            words.add(concept)
        elif (number := NUMBER_WORDS.get(concept)) is not None or concept[0].isdigit():
            following = found[end] if end < len(found) else ""
            # A pronoun, unless it is the whole answer: also "the right one larger".
            pronoun = following in {"", *IDLE} or "the" in found[max(0, end - 3) : end]
            if concept in ("one", "pair") and len(found) > 1 and pronoun:
                continue
            value = float(concept.replace(",", ".")) if number is None else float(number)
            words.add(number_of(value, found[end : end + 6]))
        elif (nth := ORDINALS.get(concept)) is not None and concept not in IDLE:
            words.add(f"#{nth}")
        elif len(concept) > 1 and concept not in NOTHING:
            words.add(concept)
    return frozenset(words)


def number_of(value: float, following: Sequence[str]) -> str:
    """Returns a size in millimetres, also the first of "3 x 4 cm", an ordinal or a count."""
    for word in following:
        if word == PERCENT:
            return f"{value / 100:g}"
        if word in MILLIMETRES:
            return f"{value * MILLIMETRES[word]:g} mm"
        if word in NUMBER_ENDINGS:
            return f"#{value:g}"
        if word not in ("x", "by") and not word[0].isdigit():
            break
    return f"{value:g}"


@lru_cache(maxsize=8192)
def opposites(word: str) -> frozenset[str]:
    """Returns words that cannot be true of the same thing as `word`, a concept or a stem."""
    found = {other for pair in OPPOSITES if word in pair for other in pair if other != word}
    for prefix, other in PREFIXES:
        if word.startswith(prefix) and len(word) > len(prefix) + 2:
            found.add(other + word.removeprefix(prefix))
    return frozenset(found)


@lru_cache(maxsize=8192)
def near(word: str) -> frozenset[str]:
    """Returns the concepts that come near one: nearly right where it is true."""
    return frozenset(other for pair in NEAR if word in pair for other in pair if other != word)


@lru_cache(maxsize=8192)
def broader(word: str) -> frozenset[str]:
    """Returns the concepts that one may stand for, or that may stand for it."""
    return frozenset(other for pair in BROADER if word in pair for other in pair if other != word)


def is_size(word: str) -> bool:
    return word.endswith(" mm")


def is_count(word: str) -> bool:
    return word[0].isdigit() and not is_size(word)


def is_ordinal(word: str) -> bool:
    return word[0] == "#"


def is_vertebra(word: str) -> bool:
    return len(word) < 4 and word[0] in "clts" and word[1:].isdigit()


@lru_cache(maxsize=16384)
def is_slot(word: str) -> bool:
    """Whether a concept is a side, a level or a number."""
    kinds = (is_size, is_count, is_ordinal, is_vertebra)
    return any(word in axis for axis in AXES) or any(kind(word) for kind in kinds)


def same_slot(slot: str, words: Collection[str]) -> bool:
    """Whether a slot is among words, a size within a quarter."""
    if not is_size(slot):
        return slot in words
    size = float(slot.removesuffix(" mm"))
    others = (float(word.removesuffix(" mm")) for word in words if is_size(word))
    return any(abs(size - other) <= TOLERANCE * max(size, other) for other in others)
