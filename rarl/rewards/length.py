"""`length`: a guard against replies that grow or shrink."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rarl.replies.words import length_in_words


def length_reward(
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    min_words: int = 1,
    max_words: int = 256,
    **columns: Any,
) -> list[float | None]:
    """Pays 1 for a reply of `min_words` to `max_words` words, tags included; below in proportion,
    above falling linearly to 0 at twice the maximum.

    It does not look at correctness, and no schedule of it can: alone it pays wrong answers of the
    right length. Gate it with `accuracy`.
    """
    return [length_factor(text, min_words, max_words) for text in completions]


def length_factor(text: str, min_words: int, max_words: int) -> float:
    length = length_in_words(text)
    if length < min_words:
        return length / min_words
    return min(1.0, max(0.0, 2 - length / max_words)) if max_words > 0 else 0.0
