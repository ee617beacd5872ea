"""`repetition`: a guard against replies that go round in circles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rarl.replies.words import words


def repetition_reward(
    prompts: Sequence[str], completions: Sequence[str], **columns: Any
) -> list[float | None]:
    """Pays 1 − the share of word trigrams that occurred before in the reply.

    Blind to everything else, an empty reply included: let `accuracy` gate it.
    """
    return [1 - repeated_share(text) for text in completions]


def repeated_share(text: str, size: int = 3) -> float:
    """Share of the word n-grams that are repeats of an earlier one; 0 for a text shorter than
    one."""
    found = words(text)
    grams = list(zip(*(found[start:] for start in range(size)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
