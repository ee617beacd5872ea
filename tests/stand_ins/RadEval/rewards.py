"""The stand-in for `RadEval.rewards`: its one metric counts shared words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def make_reward_fn(
    metric: str, reference_column: str = "ground_truth", key: str | None = None
) -> Callable[..., list[float]]:
    """Returns a function of completions and columns, as RadEval 2 does; raises ValueError for a
    metric that it does not know."""
    if metric != "shared_words":
        raise ValueError(f"Unknown metric '{metric}'. Available: ['shared_words']")

    def reward_fn(completions: list[str], **columns: Any) -> list[float]:
        pairs = zip(completions, columns[reference_column], strict=True)
        shared = [(set(one.split()) & set(other.split()), other) for one, other in pairs]
        if key == "count":
            return [float(len(words)) for words, _ in shared]
        return [len(words) / len(other.split()) for words, other in shared]

    return reward_fn
