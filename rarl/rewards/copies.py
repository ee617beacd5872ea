"""Copies of a reply that say something else, or nothing: whoever rewards what a thinking says must
pay them less. They are what the live check of a run's rewards, and tests of rewards, compare with.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

SENTENCE = re.compile(r"[^.!?;\n]+[.!?;\n]*")
SIDES = {"left": "right", "upper": "lower", "superior": "inferior", "anterior": "posterior"}
SIDES |= {other: side for side, other in SIDES.items()}
SIDE = re.compile(rf"\b({'|'.join(SIDES)})\b", re.IGNORECASE)
DENIAL = re.compile(r"\b(?:no|not|without)\s+", re.IGNORECASE)
THERE_IS = re.compile(r"\b(there (?:is|are))\s+(?:an?\s+|some\s+)?", re.IGNORECASE)
VERB = re.compile(r"\b(is|are|was|were|has|have|does|do|can)\b", re.IGNORECASE)
THINKING = re.compile(r"(?<=<think>)(.*?)(?=</think>)", re.DOTALL)
SILENT = "The image was looked at."


def mirrored(text: str) -> str:
    """Returns the text with its sides swapped: left and right, upper and lower, and so on."""

    def swap(found: re.Match[str]) -> str:
        other = SIDES[found[0].lower()]
        return other.capitalize() if found[0][0].isupper() else other

    return SIDE.sub(swap, text)


def negated(text: str) -> str:
    """Returns the text with every sentence denied, and every denial taken out of those that have
    one."""
    return by_sentence(text, deny)


def deny(sentence: str) -> str:
    if DENIAL.search(sentence):
        return DENIAL.sub("", sentence)
    if THERE_IS.search(sentence):
        return THERE_IS.sub(r"\1 no ", sentence, count=1)
    if VERB.search(sentence):
        return VERB.sub(r"\1 not", sentence, count=1)
    return f"No {sentence[0].lower()}{sentence[1:]}"


def conditional(text: str) -> str:
    """Returns the text with nothing asserted any more: each sentence stands under an "if"."""
    return by_sentence(
        text,
        lambda one: f"If this were another picture, one might say that {one[0].lower()}{one[1:]}",
    )


def shuffled(text: str) -> str:
    """Returns the words of the text in another order, the same for the same text."""
    words = text.split()
    random.Random(text).shuffle(words)
    return " ".join(words)


def by_sentence(text: str, change: Callable[[str], str]) -> str:
    found = (sentence.strip() for sentence in SENTENCE.findall(text))
    return " ".join(change(sentence) for sentence in found if sentence)


COPIES: dict[str, Callable[[str], str]] = {
    "mirrored": mirrored,
    "negated": negated,
    "conditional": conditional,
    "shuffled": shuffled,
}


def with_thinking(reply: str, change: Callable[[str], str]) -> str | None:
    """Returns a reply whose thinking is changed; None if it has none, or nothing in it that the
    change concerns."""
    changed = THINKING.sub(lambda found: change(found[0]), reply, count=1)
    return None if changed == reply else changed
