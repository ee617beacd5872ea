"""`items`: answers that are lists."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rarl.replies.tags import parse_reply
from rarl.replies.words import normalise
from rarl.schema import ReplyForm

SEPARATOR = re.compile(r"[,;\n•]|(?:^|\s)[-*]\s|\band\b", re.IGNORECASE)
NUMBERING = re.compile(r"^\s*\d+[.)]\s+")


def items_reward(
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    form: Sequence[ReplyForm],
    answer: Sequence[str],
    alpha: float = 0.5,
    **columns: Any,
) -> list[float | None]:
    """Pays `alpha` × precision + (1 − `alpha`) × recall of the answer's items against the
    reference's, one to one, equal after normalisation (Medical VIE, arXiv 2506.13363). None where
    the reference has no items.

    Near 1, `alpha` pays for one sure item alone; near 0, for listing everything.
    """
    rows = zip(completions, form, answer, strict=True)
    return [score_items(parse_reply(text, how).answer, wanted, alpha) for text, how, wanted in rows]


def score_items(given: str | None, reference: str, alpha: float) -> float | None:
    wanted = split_items(reference)
    if not wanted:
        return None
    named = split_items(given or "")
    common = (Counter(named) & Counter(wanted)).total()
    if not common:
        return 0.0
    return alpha * common / len(named) + (1 - alpha) * common / len(wanted)


def split_items(text: str) -> list[str]:
    """Normalised items between commas, semicolons, line ends, bullets and "and"; a number before an
    item is dropped."""
    parts = (normalise(NUMBERING.sub("", part)) for part in SEPARATOR.split(text))
    return [part for part in parts if part]
