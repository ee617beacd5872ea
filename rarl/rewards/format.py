"""`format`: is the whole reply what the prompt asked for?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rarl.replies.tags import TAG, is_structured, parse_reply
from rarl.replies.words import is_blank
from rarl.schema import ReplyForm

# of the full reward, that a reply which meets all conditions but one stays below
PARTIAL_SHARE = 0.5


def format_reward(
    prompts: Sequence[str],
    completions: Sequence[str],
    form: Sequence[ReplyForm] | None = None,
    *,
    partial: bool = False,
    **columns: Any,
) -> list[float | None]:
    """Pays 1 for a reply that is well formed as a whole, else 0 (Med-R1, arXiv 2503.13939): each
    tag of the form once, in order, nothing outside, words inside.

    `partial`: half of the share of the conditions that hold, for a base model that hardly ever
    meets all of them.
    """
    forms: Sequence[ReplyForm] = form or ["think"] * len(completions)
    return [score_format(text, how, partial) for text, how in zip(completions, forms, strict=True)]


def score_format(text: str, form: ReplyForm, partial: bool) -> float:
    reply = parse_reply(text, form)
    readable = form == "answer" or not is_blank(reply.thinking or "")
    if reply.well_formed and readable and not is_blank(reply.answer or ""):
        return 1.0
    if not partial:
        return 0.0
    conditions = format_conditions(text, form)
    return PARTIAL_SHARE * sum(conditions) / len(conditions)


def format_conditions(text: str, form: ReplyForm) -> list[bool]:
    """Each tag once; in order; nothing outside; each part with words; findings and impression where
    asked for."""
    expected = (
        ["<answer>", "</answer>"]
        if form == "answer"
        else ["<think>", "</think>", "<answer>", "</answer>"]
    )
    tags = [match[0] for match in TAG.finditer(text)]
    # the tag's name is captured, so every second piece is text between tags
    pieces = TAG.split(text)[::2]
    ordered = tags == expected
    conditions = [tags.count(tag) == 1 for tag in expected]
    conditions += [ordered, ordered and all(not piece.strip() for piece in pieces[::2])]
    conditions += [
        ordered and not is_blank(piece) for piece in (pieces[1::2] if ordered else expected[::2])
    ]
    if form == "structured":
        conditions.append(ordered and is_structured(pieces[1].strip()))
    return conditions
