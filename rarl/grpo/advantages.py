"""Group-relative advantages."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

EPSILON = 1e-4


def group_advantages(rewards: ArrayLike) -> NDArray[np.float32]:
    """(groups, G) rewards → (groups, G) advantages: reward minus the group's mean, over its standard deviation.

    GRPO (DeepSeekMath, arXiv 2402.03300, section 4.1.2), with the sample standard deviation (G - 1) and a small
    constant, so that a group of equal rewards gets zeros.
    """
    r = np.asarray(rewards, dtype=np.float64)
    spread = r.std(axis=1, ddof=1, keepdims=True)
    return ((r - r.mean(axis=1, keepdims=True)) / (spread + EPSILON)).astype(np.float32)
