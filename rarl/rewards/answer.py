"""Rewards for the tagged answer: `accuracy`, `letter` and `items`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from rarl.replies.answers import is_right
from rarl.replies.grading import grade_answer, is_yes_no
from rarl.replies.tags import parse_reply
from rarl.replies.words import normalise, same_words, visible, words, yes_or_no
from rarl.rewards import Options, per_reply
from rarl.schema import Answered, AnswerType, Box, Frame, ReplyForm

BARE_LETTER = re.compile(r"\(?([A-Za-z])[).:]?")
# A letter that stands for an option: a capital on its own, or any letter in brackets or before ")",
# "." or ":"; the article before a word is none.
NAMED_LETTER = re.compile(
    r"\(([A-Za-z])\)|\b([A-Za-z])(?=[).:](?!\w))|\b([B-Z]|A(?!\s+(?!or\b|and\b)[a-z]))\b"
)
SEPARATOR = re.compile(r"[,;\n•]|(?:^|\s)[-*]\s|\band\b", re.IGNORECASE)
NUMBERING = re.compile(r"^\s*\d+[.)]\s+")


@per_reply
def accuracy_reward(
    text: str,
    *,
    answer: str,
    answer_type: AnswerType,
    options: Options,
    form: ReplyForm = "think",
    also_right: Options = None,
    boxes: Sequence[Box] | None = None,
    frame: Frame | None = None,
    answered: Answered | None = None,
) -> float | None:
    """Pays 1 or 0 for closed and choice questions, boxes and reports, token F1 for open ones (0 for
    one that says the opposite); 0 where not exactly one answer is tagged. Of several right answers
    the nearest counts. The option's letter or its text, alone or together, chooses it. A look is
    paid for the answer that came after it, and with 0 where it names no place.

    It pays whatever the format: let `format` gate it where a malformed reply is to earn nothing
    (MedVLThinker, arXiv 2508.02669).
    """
    if form == "look":
        text, form = (answered.text, answered.form) if answered else ("", "answer")
    given = parse_reply(text, form).answer
    if answer_type in ("boxes", "report"):
        return float(is_right(given, answer, answer_type, boxes=boxes, frame=frame))
    references = (answer, *(also_right or ()))
    return max(grade_answer(given, one, answer_type, options) for one in references)


@per_reply
def letter_reward(
    text: str, *, form: ReplyForm, answer: str, options: Options, extra_text: float = 0.5
) -> float | None:
    """Pays 1 for an answer that is the right option's letter or text alone, `extra_text` where it
    is named with other text around it and no other option is (0.5 in MedVLM-R1, arXiv 2502.19634; 0
    in Med-R1, arXiv 2503.13939), else 0.

    A yes/no question without options is treated alike: the bare word, or the word in a sentence.
    None for other questions without options.
    """
    if not options and not is_yes_no(answer):
        return None
    given = parse_reply(text, form).answer
    if given is None:
        return 0.0
    if not options:
        right = yes_or_no(given, answer) == yes_or_no(answer, answer)
        return (1.0 if len(words(given)) == 1 else extra_text) if right else 0.0
    if bare_option(given, options) == answer:
        return 1.0
    return extra_text if named_options(given, options) == {answer} else 0.0


def bare_option(given: str, options: Sequence[str]) -> str | None:
    """Returns the option of which the answer is the text or the letter, and nothing else."""
    by_text = [option for option in options if same_words(given, option)]
    if len(by_text) == 1:
        return by_text[0]
    match = BARE_LETTER.fullmatch(visible(given).strip())
    return lettered(match[1], options) if match else None


def named_options(given: str, options: Sequence[str]) -> set[str | None]:
    """Returns the options that an answer names, by letter or by text; None stands for a letter
    without an option."""
    letters = (match[1] or match[2] or match[3] for match in NAMED_LETTER.finditer(visible(given)))
    padded = {option: f" {normalise(option)} " for option in options}
    named = [option for option in padded if padded[option] in f" {normalise(given)} "]
    found = {lettered(letter, options) for letter in letters}
    for one in named:
        # "left" is not meant where "upper left" is said.
        if not any(padded[one] in padded[other] for other in named if other != one):
            found.add(one)
    return found


def lettered(letter: str, options: Sequence[str]) -> str | None:
    """Returns the option that a letter stands for, if there are so many."""
    index = ord(letter.upper()) - ord("A")
    return options[index] if index < len(options) else None


@per_reply
def items_reward(text: str, *, form: ReplyForm, answer: str, alpha: float = 0.5) -> float | None:
    """Pays `alpha` × precision + (1 − `alpha`) × recall of the answer's items against the
    reference's, one to one, equal after normalisation (Medical VIE, arXiv 2506.13363). None where
    the reference has no items.

    Near 1, `alpha` pays for one sure item alone; near 0, for listing everything.
    """
    wanted = split_items(answer)
    if not wanted:
        return None
    named = split_items(parse_reply(text, form).answer or "")
    common = (Counter(named) & Counter(wanted)).total()
    if not common:
        return 0.0
    return alpha * common / len(named) + (1 - alpha) * common / len(wanted)


def split_items(text: str) -> list[str]:
    """Returns the normalised items between commas, semicolons, line ends, bullets and "and"; a
    number before an item is dropped."""
    parts = (normalise(NUMBERING.sub("", part)) for part in SEPARATOR.split(text))
    return [part for part in parts if part]
