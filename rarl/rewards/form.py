"""Rewards for how a reply is made: `format`, and the guards `length` and `repetition`."""

from __future__ import annotations

from rarl.replies.tags import ONE_TAG, TAG, asks_thinking, is_structured, parse_reply
from rarl.replies.words import is_blank, length_in_words, words
from rarl.rewards import per_reply
from rarl.schema import ReplyForm

PARTIAL_SHARE = 0.5  # of the full reward, for a reply that meets all conditions but one: below it


@per_reply
def format_reward(text: str, *, form: ReplyForm = "think", partial: bool = False) -> float | None:
    """Pays 1 for a reply that is well formed as a whole, else 0 (Med-R1, arXiv 2503.13939): each
    tag of the form once, in order, nothing outside, words inside.

    `partial`: half of the share of the conditions that hold, for a base model that hardly ever
    meets all of them.
    """
    reply = parse_reply(text, form)
    readable = not asks_thinking(form) or not is_blank(reply.thinking or "")
    if reply.well_formed and readable and not is_blank(reply.answer or ""):
        return 1.0
    if not partial:
        return 0.0
    conditions = format_conditions(text, form)
    return PARTIAL_SHARE * sum(conditions) / len(conditions)


def format_conditions(text: str, form: ReplyForm) -> list[bool]:
    """Says whether each tag stands there once; all are in order; nothing is outside; each part has
    words; findings and impression are there where asked for."""
    names = [ONE_TAG[form]] if form in ONE_TAG else ["think", "answer"]
    expected = [tag for name in names for tag in (f"<{name}>", f"</{name}>")]
    tags = [match[0] for match in TAG.finditer(text)]
    # The tag's name is captured, so every second piece is text between tags.
    pieces = TAG.split(text)[::2]
    ordered = tags == expected
    conditions = [tags.count(tag) == 1 for tag in expected]
    conditions += [ordered, ordered and all(not piece.strip() for piece in pieces[::2])]
    parts = pieces[1::2] if ordered else names
    conditions += [ordered and not is_blank(part) for part in parts]
    if form == "structured":
        conditions.append(ordered and is_structured(pieces[1].strip()))
    return conditions


@per_reply
def length_reward(text: str, *, min_words: int = 1, max_words: int = 256) -> float | None:
    """Pays 1 for a reply of `min_words` to `max_words` words, tags included; below in proportion,
    above falling linearly to 0 at twice the maximum.

    It does not look at correctness, and no schedule of it can: alone it pays wrong answers of the
    right length. Gate it with `accuracy`.
    """
    return length_factor(text, min_words, max_words)


def length_factor(text: str, min_words: int, max_words: int) -> float:
    length = length_in_words(text)
    if length < min_words:
        return length / min_words
    return min(1.0, max(0.0, 2 - length / max_words)) if max_words > 0 else 0.0


@per_reply
def repetition_reward(text: str) -> float | None:
    """Pays 1 − the share of word trigrams that occurred before in the reply.

    Blind to everything else, an empty reply included: let `accuracy` gate it.
    """
    found = words(text)
    trigrams = list(zip(found, found[1:], found[2:], strict=False))
    return 1 - (1 - len(set(trigrams)) / len(trigrams)) if trigrams else 1.0
