"""Medical words: stems, numbers with units, and the concepts that several names stand for.

`lexicon.tsv` says which names are one: right upper lobe and RUL, collapsed lung and pneumothorax. A
user's file of the same form adds to it. What it does not name is compared by its stem.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from rarl.errors import UserError
from rarl.replies.words import VOCABULARY, fold

FILE = Path(__file__).with_name("lexicon.tsv")
KINDS = (
    "finding", "device", "anatomy", "quality", "severity", "side", "level", "modality", "plane",
    "sequence", "compound",
)  # fmt: skip

WORD = re.compile(r"\d+(?:[.,]\d+)?|[^\W\d_]+\d+|[^\W\d_]+")
JOINED = re.compile(r"\bnon[- ](?=[a-z])|\bx[- ]?ray")
# Two vertebrae of which only the first has its letter.
VERTEBRAE = re.compile(r"\b([ctls])(\d{1,2})\s?[-/–]\s?(\d{1,2})\b")
ROMANS = ("i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x")
ROMAN = re.compile(rf"\b(segment|stage|grade|type|class) ({'|'.join(ROMANS)})\b")
BRITISH = [
    (re.compile(pattern), american)
    for pattern, american in (
        ("aem", "em"), ("^oe(?=[ds])", "e"), ("aed", "ed"), ("aec", "ec"), ("aes", "es"),
        ("foet", "fet"), ("rrhoea", "rrhea"), ("(?<=..[mlbv])our", "or"), ("tre$", "ter"),
        ("bre$", "ber"), ("^grey", "gray"), ("is(?=(?:e|ed|es|ing|ation)$)", "iz"),
    )
]  # fmt: skip
PLURALS = (
    ("ies", "y"), ("sses", "ss"), ("lves", "lf"), ("oses", "osis"), ("stases", "stasis"),
    ("xes", "x"), ("shes", "sh"), ("ches", "ch"), ("s", ""),
)  # fmt: skip
ENDINGS = (
    "ification", "ified", "ifying", "ify", "ation", "ating", "ated", "ate", "ion", "ement", "ment",
    "ance", "ancy", "ence", "ency", "ant", "ent", "ing", "ed", "ity", "ness", "ly", "e",
)  # fmt: skip
SHORTEST_STEM = 4
MILLIMETRES = {
    "mm": 1.0, "millimeter": 1.0, "cm": 10.0, "centimeter": 10.0, "m": 1000.0, "inch": 25.4
}  # fmt: skip
PERCENT = "perc"  # stem
STOP_WORDS = frozenset(VOCABULARY["stop_words"].split())
EMPTY_WORDS = frozenset(VOCABULARY["empty_words"].split())


@lru_cache(maxsize=16384)
def stem(word: str) -> str:
    """Returns what the forms of a folded English word have in common: American spelling, singular,
    without the commonest endings of verbs and nouns."""
    if len(word) >= 4 and not word.endswith(("ss", "us", "is", "as")):
        for plural, single in PLURALS:
            if word.endswith(plural):
                word = word.removesuffix(plural) + single
                break
    for pattern, american in BRITISH:
        word = pattern.sub(american, word)
    if word.endswith("ied") and not word.endswith("ified"):
        word = word.removesuffix("ied") + "y"
    for ending in ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= SHORTEST_STEM:
            word = word.removesuffix(ending)
            return word[:-1] if word[-1] == word[-2] and word[-1] not in "sl" else word
    return word


# By stem, so that "three" is found as what becomes of it.
NUMBER_WORDS = {
    stem(name): number
    for number, names in enumerate(VOCABULARY["number_words"].split())
    for name in names.split(",")
}
ORDINALS = {
    stem(name): number + 1
    for number, names in enumerate(VOCABULARY["ordinals"].split())
    for name in names.split(",")
}


def stems(text: str) -> list[str]:
    """Returns the stems of a text's words and numbers in order. "L4-5" and "L4/L5" are the same,
    "segment VII" is "segment 7"."""
    joined = JOINED.sub(lambda match: match[0].replace("-", "").replace(" ", ""), fold(text))
    joined = joined.replace("%", " percent")
    joined = VERTEBRAE.sub(r"\1\2 \1\3", joined)
    joined = ROMAN.sub(lambda match: f"{match[1]} {ROMANS.index(match[2]) + 1}", joined)
    return [stem(word) for word in WORD.findall(joined)]


@dataclass(eq=False)
class Lexicon:
    """Forms by their first stem, longest first, each with the concepts that it names, and the kind
    of every concept. A concept goes by its preferred name."""

    forms: dict[str, list[tuple[tuple[str, ...], tuple[str, ...]]]] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    words: set[str] = field(default_factory=set)  # the stems of all forms

    def add(self, form: str, concepts: tuple[str, ...]) -> None:
        found = tuple(stems(form))
        self.words.update(found)
        known = self.forms.setdefault(found[0], [])
        known.insert(0, (found, concepts))  # a user's before the shipped one
        known.sort(key=lambda one: -len(one[0]))

    def concepts(self, found: Sequence[str]) -> list[tuple[str, int, int]]:
        """Returns the concepts among stems, each with its first place and the place behind its
        last: the longest form that fits, else the stem itself."""
        named: list[tuple[str, int, int]] = []
        place = 0
        while place < len(found):
            end = place + 1
            concepts: tuple[str, ...] = (found[place],)
            for form, meant in self.forms.get(found[place], ()):
                if tuple(found[place : place + len(form)]) == form:
                    end, concepts = place + len(form), meant
                    break
            named += [(concept, place, end) for concept in concepts]
            place = end
        return named


@lru_cache(maxsize=8)
def read_lexicon(path: str | None = None) -> Lexicon:
    """Returns the shipped lexicon, and with a path the user's file added to it. Raises UserError
    for a file that cannot be read or a line that is none of the lexicon's."""
    lexicon = Lexicon()
    lines: list[tuple[str, int, str]] = []
    for file in [FILE, *([Path(path)] if path else [])]:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"lexicon {file}: cannot be read: {error}") from None
        lines += [(str(file), number, line) for number, line in enumerate(text.split("\n"), 1)]
    compounds = []
    for name, number, line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        preferred, kind, forms = (*line.split("\t"), "", "")[:3]
        if kind not in KINDS or not stems(preferred):
            known = ", ".join(KINDS)
            fault = "expected 'preferred name, tab, kind, tab, form|form', the kind one of"
            raise UserError(f"lexicon {name}, line {number}: {fault} {known}; got {line!r}")
        names = [form for form in forms.split("|") if stems(form)]
        if kind == "compound":
            compounds.append((preferred, names))
            continue
        lexicon.kinds[preferred] = kind
        for form in [preferred, *names]:
            lexicon.add(form, (preferred,))
    for preferred, names in compounds:
        meant = tuple(concept for concept, _, _ in lexicon.concepts(stems(preferred)))
        for form in names:
            lexicon.add(form, meant)
    return lexicon


SHIPPED = read_lexicon()
