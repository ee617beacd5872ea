"""What a forward pass is given: groups of completions, and the distribution that their log-probs
are taken of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Group:
    """One prompt and its completions, on the CPU.

    prompt_token_ids: (P,) int64, image placeholder expanded. patches: (patches, D) float32. grid:
    (3,) int64. completions: token ids of each, of any length from 1. key: another one for every
    prompt of an update.
    """

    prompt_token_ids: NDArray[np.int64]
    patches: NDArray[np.float32]
    grid: NDArray[np.int64]
    completions: list[list[int]]
    key: int
