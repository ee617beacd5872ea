"""Reading a reply: the tags, and words rather than substrings ("no" is not in "normal")."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

WELL_FORMED = re.compile(r"\s*<think>(?P<thinking>.*?)</think>\s*<answer>(?P<answer>.*?)</answer>\s*", re.DOTALL)
ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
TAG = re.compile(r"</?(think|answer)>")


@dataclass(frozen=True)
class Reply:
    """`answer` is None unless exactly one answer is tagged. `well_formed` asks for the whole reply to be thinking and
    answer, each tagged once, neither empty, and nothing outside the tags."""

    thinking: str | None
    answer: str | None
    well_formed: bool


def parse_reply(text: str) -> Reply:
    whole = WELL_FORMED.fullmatch(text)
    if whole and len(TAG.findall(text)) == 4:
        thinking, answer = whole["thinking"].strip(), whole["answer"].strip()
        return Reply(thinking, answer, bool(thinking and answer))
    answers = ANSWER.findall(text)
    tags = sum(1 for tag in TAG.finditer(text) if tag[1] == "answer")
    return Reply(None, answers[0].strip() if len(answers) == 1 and tags == 2 else None, False)


def words(text: str) -> list[str]:
    """Lower-cased words: Unicode compatibility forms unified, punctuation and articles gone; inner hyphens, slashes
    and decimal points stay."""
    folded = unicodedata.normalize("NFKC", text).lower()
    stripped = (word.strip(string.punctuation + "“”‘’…") for word in folded.split())
    return [word for word in stripped if word and word not in ("a", "an", "the")]


def normalise(text: str) -> str:
    return " ".join(words(text))


def yes_or_no(text: str) -> str | None:
    """ "yes" or "no" when exactly one of the two occurs as a word."""
    found = {"yes", "no"} & set(words(text))
    return found.pop() if len(found) == 1 else None


def chosen_option(answer: str, options: Sequence[str]) -> str | None:
    """The option that an answer names: by its text, by its letter ("B", "(b)", "B."), or by both ("B. chest")."""
    given = normalise(answer)
    by_text = [option for option in options if normalise(option) == given]
    if len(by_text) == 1:
        return by_text[0]
    match = re.fullmatch(r"\(?([A-Za-z])[).:]*(?:\s+(.*))?", answer.strip(), re.DOTALL)
    index = ord(match[1].upper()) - ord("A") if match else len(options)
    if match is None or index >= len(options):
        return None
    text = match[2]
    return options[index] if not text or normalise(text) == normalise(options[index]) else None


def token_f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall over the multiset of words (SQuAD, Rajpurkar et al. 2016)."""
    given, wanted = words(answer), words(reference)
    remaining = list(wanted)
    common = 0
    for word in given:
        if word in remaining:
            remaining.remove(word)
            common += 1
    if not common:
        return 0.0
    precision, recall = common / len(given), common / len(wanted)
    return 2 * precision * recall / (precision + recall)
