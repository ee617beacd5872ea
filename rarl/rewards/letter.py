"""`letter`: the option's letter and nothing else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rarl.replies.grading import is_yes_no
from rarl.replies.tags import parse_reply
from rarl.replies.words import normalise, same_words, visible, words, yes_or_no
from rarl.schema import ReplyForm

BARE_LETTER = re.compile(r"\(?([A-Za-z])[).:]?")
# A letter that stands for an option: a capital on its own, or any letter in brackets or before ")",
# "." or ":"; the article before a word is none.
NAMED_LETTER = re.compile(
    r"\(([A-Za-z])\)|\b([A-Za-z])(?=[).:](?!\w))|\b([B-Z]|A(?!\s+(?!or\b|and\b)[a-z]))\b"
)


def letter_reward(
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    form: Sequence[ReplyForm],
    answer: Sequence[str],
    options: Sequence[Sequence[str] | None],
    extra_text: float = 0.5,
    **columns: Any,
) -> list[float | None]:
    """Pays 1 for an answer that is the right option's letter or text alone, `extra_text` where it
    is named with other text around it and no other option is (0.5 in MedVLM-R1, arXiv 2502.19634; 0
    in Med-R1, arXiv 2503.13939), else 0.

    A yes/no question without options is treated alike: the bare word, or the word in a sentence.
    None for other questions without options.
    """
    rows = zip(completions, form, answer, options, strict=True)
    return [
        score_letter(parse_reply(text, how).answer, wanted, choices, extra_text)
        for text, how, wanted, choices in rows
    ]


def score_letter(
    given: str | None, reference: str, options: Sequence[str] | None, extra_text: float
) -> float | None:
    if not options and not is_yes_no(reference):
        return None
    if given is None:
        return 0.0
    if not options:
        right = yes_or_no(given) == normalise(reference)
        return (1.0 if len(words(given)) == 1 else extra_text) if right else 0.0
    if bare_option(given, options) == reference:
        return 1.0
    return extra_text if named_options(given, options) == {reference} else 0.0


def bare_option(given: str, options: Sequence[str]) -> str | None:
    """The option of which the answer is the text or the letter, and nothing else."""
    by_text = [option for option in options if same_words(given, option)]
    if len(by_text) == 1:
        return by_text[0]
    match = BARE_LETTER.fullmatch(visible(given).strip())
    return lettered(match[1], options) if match else None


def lettered(letter: str, options: Sequence[str]) -> str | None:
    index = ord(letter.upper()) - ord("A")
    return options[index] if index < len(options) else None


def named_options(given: str, options: Sequence[str]) -> set[str | None]:
    """The options that an answer names, by letter or by text; None stands for a letter without an
    option."""
    letters = {
        next(filter(None, match.groups())) for match in NAMED_LETTER.finditer(visible(given))
    }
    text = f" {normalise(given)} "
    named = [option for option in options if f" {normalise(option)} " in text]
    # "left" is not meant where "upper left" is said
    longest = [
        one
        for one in named
        if not any(f" {normalise(one)} " in f" {normalise(o)} " for o in named if o != one)
    ]
    return {lettered(letter, options) for letter in letters} | set(longest)
