"""Group-relative advantages."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rarl.samples import Group

EPSILON = 1e-4


def set_advantages(groups: Iterable[Group], scale: bool) -> None:
    """Writes on every sample how much better its total reward is than its group's mean. The value
    is exactly a float32. Raises ValueError if a sample is not scored."""
    for group in groups:
        totals = [sample.score.total for sample in group if sample.score is not None]
        if len(totals) < len(group):
            raise ValueError(f"some samples of '{group[0].example.id}' have not been scored")
        for sample, value in zip(group, group_advantages([totals], scale)[0], strict=True):
            sample.advantage = float(value)


def group_advantages(rewards: ArrayLike, scale: bool = True) -> NDArray[np.float32]:
    """(groups, G) rewards → (groups, G) advantages: reward minus the group's mean, over its
    standard deviation.

    GRPO (DeepSeekMath, arXiv 2402.03300, section 4.1.2), with the sample standard deviation (G - 1)
    and a small constant, so that a group of equal rewards gets zeros. Without `scale` the
    difference alone, which weights easy and hard questions alike (Dr. GRPO, arXiv 2503.20783,
    section 3.1).
    """
    r = np.asarray(rewards, dtype=np.float64)
    centred = r - r.mean(axis=1, keepdims=True)
    if not scale:
        return centred.astype(np.float32)
    return (centred / (r.std(axis=1, ddof=1, keepdims=True) + EPSILON)).astype(np.float32)
