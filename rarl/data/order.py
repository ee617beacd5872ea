"""Which rows a step trains on: a pure function of seed and step, so that nothing about the data needs saving."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


class StepOrder:
    """Epoch by epoch a fresh permutation; steps run across the borders of epochs, so no example is ever left out."""

    def __init__(self, rows: NDArray[np.int64], prompts_per_step: int, seed: int) -> None:
        self.rows, self.prompts_per_step, self.seed = rows, prompts_per_step, seed

    def epoch(self, number: int) -> NDArray[np.int64]:
        return np.random.default_rng([self.seed, number]).permutation(self.rows)

    def rows_of(self, step: int) -> NDArray[np.int64]:
        """Row numbers of a step (from 0), shape (prompts_per_step,)."""
        first = step * self.prompts_per_step
        positions = np.arange(first, first + self.prompts_per_step)
        epochs, offsets = np.divmod(positions, len(self.rows))
        return np.concatenate([self.epoch(int(e))[offsets[epochs == e]] for e in np.unique(epochs)])


def sampling_seed(seed: int, step: int, position: int, group_size: int) -> int:
    """Seed of the first completion of the prompt at `position` in `step`; completion g of its group uses seed + g.

    A hash, because vLLM draws the same random numbers for equal seeds whatever the prompt is.
    """
    digest = hashlib.sha256(f"{seed}/{step}/{position}".encode()).digest()
    return int.from_bytes(digest[:7], "big") // group_size * group_size
