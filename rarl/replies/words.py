"""Words rather than substrings: "no" is not in "normal"."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

LISTS = Path(__file__).with_name("vocabulary.yaml").read_text(encoding="utf-8")
VOCABULARY: dict[str, Any] = yaml.safe_load(LISTS)
ARTICLES = frozenset(("a", "an", "the"))
# By language, English first: the words for yes, and those for no.
YES_NO = [
    [frozenset(words.split(",")) for words in language.split("/")]
    for language in VOCABULARY["yes_no"].split()
]
# Signs that change what a word says ("<5", "HER2+") are part of it.
EDGES = "".join(set(string.punctuation) - set("<>+")) + "“”‘’…•·–—"
LETTER = re.compile(r"\(?([A-Za-z])(?:[).:]+|(?=\s|$))\s*(.*)", re.DOTALL)


def pattern(name: str) -> re.Pattern[str]:
    """Returns one of the vocabulary's expressions; `^` in it is the beginning of any line."""
    return re.compile("|".join(VOCABULARY["patterns"][name]), re.MULTILINE)


def visible(text: str) -> str:
    """Returns a text as it looks: Unicode compatibility forms unified, invisible format characters
    (zero-width ones, soft hyphens, direction marks) gone."""
    unified = unicodedata.normalize("NFKC", text)
    if unified.isascii():
        return unified
    return "".join(char for char in unified if unicodedata.category(char) != "Cf")


def fold(text: str) -> str:
    return visible(text).lower()


def words(text: str) -> list[str]:
    """Returns folded words without punctuation at their edges and without articles; inner hyphens,
    slashes and decimal points stay."""
    stripped = (word.strip(EDGES) for word in fold(text).split())
    return [word for word in stripped if word and word not in ARTICLES]


def normalise(text: str) -> str:
    return " ".join(words(text))


def same_words(first: str, second: str) -> bool:
    """Whether two texts are equal after normalisation; those without words are compared as they
    are."""
    one, other = normalise(first), normalise(second)
    return one == other if one or other else first.strip() == second.strip()


def is_blank(text: str) -> bool:
    """Whether there is nothing to read: empty, white space, punctuation, invisible characters."""
    return not fold(text).strip(EDGES + string.whitespace)


def length_in_words(text: str) -> float:
    """Returns the number of words, or a twelfth of the characters where that is more, so that
    leaving out spaces does not shorten a text."""
    return max(len(text.split()), len(text) / 12)


def yes_or_no(text: str, reference: str = "yes") -> str | None:
    """Returns "yes" or "no" when words for exactly one of the two occur, however often; "yes/no" is
    two words. Those of the reference's languages count; where none of them occurs, the English."""
    found, wanted = answer_words(text), answer_words(reference)
    own = [pair for pair in YES_NO if wanted & (pair[0] | pair[1])]
    for languages in (own, YES_NO[:1]):
        yes, no = (any(found & pair[side] for pair in languages) for side in (0, 1))
        if yes or no:
            return None if yes and no else "yes" if yes else "no"
    return None


def answer_words(text: str) -> set[str]:
    """Returns the words of a text, also those with only a mark between. "si" alone is the Spanish
    or Italian yes without its accent; beside others it is another word."""
    found = set(words(re.sub(r"[/|,;.]", " ", text)))
    return {"sí"} if found == {"si"} else found


def chosen_option(answer: str, options: Sequence[str]) -> str | None:
    """Returns the option that an answer names: by its text, by its letter ("B", "(b)", "B."), or by
    both ("B. chest"); None where it names none, or several."""
    by_text = [option for option in options if same_words(answer, option)] if answer.strip() else []
    if len(by_text) == 1:
        return by_text[0]
    match = LETTER.fullmatch(visible(answer).strip())
    index = ord(match[1].upper()) - ord("A") if match else len(options)
    if match is None or index >= len(options):
        return None
    text = normalise(match[2])
    return options[index] if not text or text == normalise(options[index]) else None


def token_f1(answer: str, reference: str) -> float:
    """Returns the harmonic mean of precision and recall over the multiset of words (SQuAD,
    Rajpurkar et al. 2016)."""
    given, wanted = words(answer), words(reference)
    common = (Counter(given) & Counter(wanted)).total()
    if not common:
        return 0.0
    precision, recall = common / len(given), common / len(wanted)
    return 2 * precision * recall / (precision + recall)
