"""Which rows a step trains on: a pure function of seed and step, so that nothing about the data
needs saving."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rarl.data.parquet import RowRange
from rarl.errors import UserError

CYCLE = 1000  # draws in which each data set of a mixture has its exact share


class StepOrder:
    """Every epoch is a fresh permutation; steps cross its borders, so no example is left out."""

    def __init__(self, rows: NDArray[np.int64], prompts_per_step: int, seed: int) -> None:
        self.rows, self.prompts_per_step, self.seed = rows, prompts_per_step, seed
        self.last: tuple[int, NDArray[np.int64]] | None = None  # the epoch that was asked for last

    def epoch(self, number: int) -> NDArray[np.int64]:
        if self.last is None or self.last[0] != number:
            self.last = number, np.random.default_rng([self.seed, number]).permutation(self.rows)
        return self.last[1]

    def at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the rows at these positions, ascending, of the endless sequence of epochs."""
        epochs, offsets = np.divmod(positions, len(self.rows))
        return np.concatenate([self.epoch(int(e))[offsets[epochs == e]] for e in np.unique(epochs)])

    def rows_of(self, step: int) -> NDArray[np.int64]:
        """Returns the row numbers of a step (from 0), shape (prompts_per_step,)."""
        first = step * self.prompts_per_step
        return self.at(np.arange(first, first + self.prompts_per_step))


class CurriculumOrder(StepOrder):
    """The first epoch goes from the easiest to the hardest, equally easy ones in the order of the
    seed; those after it are as without a curriculum."""

    def __init__(
        self,
        rows: NDArray[np.int64],
        ease: NDArray[np.float64],
        prompts_per_step: int,
        seed: int,
    ) -> None:
        """`ease`: of each of the rows, the higher the easier."""
        super().__init__(rows, prompts_per_step, seed)
        self.ease = dict(zip(rows.tolist(), ease.tolist(), strict=True))

    def epoch(self, number: int) -> NDArray[np.int64]:
        drawn = super().epoch(number)
        if number:
            return drawn
        hardness = [-self.ease[row] for row in drawn.tolist()]
        return drawn[np.argsort(hardness, kind="stable")]


class MixtureOrder(StepOrder):
    """Draws from several data sets by weight, each going through its own epochs at its own pace. In
    every cycle of CYCLE draws each has exactly its share, at places that the seed chooses."""

    def __init__(
        self, parts: list[tuple[NDArray[np.int64], float]], prompts_per_step: int, seed: int
    ) -> None:
        """`parts`: row numbers and weight of each data set."""
        super().__init__(np.concatenate([rows for rows, _ in parts]), prompts_per_step, seed)
        # How often each is drawn in a cycle.
        self.draws = exact_shares(np.array([weight for _, weight in parts]), CYCLE)
        # Each has a seed of its own: data sets of one length would have their rows in one order.
        seeds = [hashed(f"{seed}/{number}") for number in range(len(parts))]
        self.orders = [StepOrder(part[0], 1, own) for part, own in zip(parts, seeds, strict=True)]

    def at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        found = np.empty(len(positions), np.int64)
        cycles, offsets = np.divmod(positions, CYCLE)
        for cycle in np.unique(cycles):
            sets = self.cycle(int(cycle))
            here = np.flatnonzero(cycles == cycle)
            for number, order in enumerate(self.orders):
                drawn_before = np.cumsum(sets == number) - 1  # in this cycle, at each of its places
                mine = here[sets[offsets[here]] == number]
                if len(mine):
                    before = cycle * self.draws[number] + drawn_before[offsets[mine]]
                    found[mine] = order.at(before)
        return found

    def cycle(self, number: int) -> NDArray[np.int64]:
        """Returns which data set each draw of a cycle is from, shape (CYCLE,)."""
        sets = np.repeat(np.arange(len(self.draws)), self.draws)
        return np.random.default_rng([self.seed, number, CYCLE]).permutation(sets)


def exact_shares(weights: NDArray[np.float64], total: int) -> NDArray[np.int64]:
    """Returns whole numbers in proportion to the weights, at least 1 each, that add up to `total`
    (the method of largest remainders)."""
    ideal = weights / weights.sum() * total
    shares = np.maximum(1, np.floor(ideal)).astype(np.int64)
    while shares.sum() != total:
        step = 1 if shares.sum() < total else -1
        spare = np.where((shares > 1) | (step > 0), (ideal - shares) * step, -np.inf)
        shares[int(np.argmax(spare))] += step
    return shares


def hashed(text: str) -> int:
    """Returns a number of 56 bits that depends on every character of the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


@dataclass(frozen=True)
class Selection:
    """The usable rows of the training data that are to be drawn, ascending. `right`: the share of
    right replies to each, where it was probed, or else NaN. `hard`: whether it is a hard negative;
    `hard_share` of the draws are of these."""

    rows: NDArray[np.int64]
    right: NDArray[np.float64]
    hard: NDArray[np.bool_]
    hard_share: float = 0.0
    curriculum: bool = False


def selected_order(chosen: Selection, prompts_per_step: int, seed: int) -> StepOrder:
    """Returns the order of the selected rows of one data set."""
    if chosen.curriculum:
        return CurriculumOrder(chosen.rows, chosen.right, prompts_per_step, seed)
    if chosen.hard_share:
        hard = chosen.rows[chosen.hard]
        shares = [(chosen.rows, 1.0 - chosen.hard_share), (hard, chosen.hard_share)]
        return MixtureOrder(shares, prompts_per_step, seed)
    return StepOrder(chosen.rows, prompts_per_step, seed)


def step_order(
    parts: list[RowRange], usable: NDArray[np.int64], prompts_per_step: int, seed: int
) -> StepOrder:
    """Returns the order of one data set or of a mixture; only the usable rows are drawn. Raises
    UserError if a data set of the mixture has none."""
    if len(parts) == 1:
        return StepOrder(usable, prompts_per_step, seed)
    chosen = []
    for part in parts:
        rows = usable[(usable >= part.start) & (usable < part.stop)]
        if not len(rows):
            none = f"{part.path}: not one of its rows can be used"
            raise UserError(f"{none}, so the mixture cannot draw from it")
        chosen.append((rows, part.weight))
    return MixtureOrder(chosen, prompts_per_step, seed)


def sampling_seed(seed: int, step: int, position: int, group_size: int) -> int:
    """Returns the seed of the first completion of the prompt at `position` in `step`; completion g
    of its group uses seed + g. vLLM draws the same random numbers for equal seeds."""
    return hashed(f"{seed}/{step}/{position}") // group_size * group_size
