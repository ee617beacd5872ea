"""How well boxes point: overlap, the best matching of named boxes with true ones, and the figures
that follow from it.

All functions take the boxes that a reply names, in its order, and the true ones, in pixels of the
same image. None of them raises for boxes that are inside out, outside or not numbers: these overlap
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from rarl.replies.grading import same_meaning
from rarl.schema import Box

FOUND = 0.5  # the overlap from which a box is right, as in PASCAL VOC


def overlap(one: Box, other: Box) -> float:
    """Returns the area that two boxes share over what they cover together, IoU in [0, 1]."""
    if not all(map(math.isfinite, (*one.corners, *other.corners))):
        return 0.0
    across = min(one.x2, other.x2) - max(one.x1, other.x1)
    down = min(one.y2, other.y2) - max(one.y1, other.y1)
    if across <= 0 or down <= 0:
        return 0.0
    together = area(one) + area(other) - across * down
    return across * down / together


def area(box: Box) -> float:
    return max(0.0, box.x2 - box.x1) * max(0.0, box.y2 - box.y1)


@lru_cache(maxsize=4096)
def same_label(named: str, true: str) -> bool:
    """Whether two labels are equal words or, by the lexicon, names of the same: "effusion" and
    "pleural fluid"."""
    return same_meaning(named, true)


def labels_agree(named: Sequence[Box], true: Sequence[Box]) -> NDArray[np.bool_]:
    """Returns whether the labels agree, (named, true). A box without a label agrees where all true
    boxes have the same one: then the question has said what is meant."""
    only_one = len({box.label for box in true}) == 1
    rows = [
        [only_one if not one.label else same_label(one.label, box.label) for box in true]
        for one in named
    ]
    return np.array(rows, dtype=bool).reshape(len(named), len(true))


def overlaps(named: Sequence[Box], true: Sequence[Box]) -> NDArray[np.float64]:
    """Returns the overlap of each pair, (named, true), 0 where the labels do not agree."""
    values = [[overlap(one, box) for box in true] for one in named]
    its = np.array(values, dtype=np.float64).reshape(len(named), len(true))
    return its * labels_agree(named, true)


def best_matching(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the values of the pairs of the one-to-one matching whose sum is the largest, those
    above 0 alone."""
    # SciPy is hidden while a train worker imports what it trains with.
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(values, maximize=True)
    matched: NDArray[np.float64] = values[rows, columns]
    return matched[matched > 0]


def boxes_value(named: Sequence[Box] | None, true: Sequence[Box]) -> float:
    """Returns the sum of the matched boxes' overlaps over the number of named or of true boxes,
    whichever is larger: so an extra box costs as much as a missing one. Where there is nothing to
    point at, 1 for saying so. `named` is None where no boxes can be read: 0."""
    if named is None:
        return 0.0
    if not named or not true:
        return float(not named and not true)
    return math.fsum(best_matching(overlaps(named, true))) / max(len(named), len(true))


def all_found(named: Sequence[Box] | None, true: Sequence[Box]) -> bool:
    """Whether a reply names all true boxes and no other, each with an overlap of FOUND or more."""
    if named is None or len(named) != len(true):
        return False
    enough = overlaps(named, true) >= FOUND
    return not named or len(best_matching(enough.astype(np.float64))) == len(true)


def average_precision(named: Sequence[Box] | None, true: Sequence[Box], least: float) -> float:
    """Returns the mean over true boxes of the precision at which each is found with an overlap of
    at least `least`, 0 for those that are not. The boxes rank as they are named, since a reply says
    of none how sure it is; each finds the true box that it overlaps most of those still free. Where
    there is nothing to point at, 1 for saying so."""
    if named is None:
        return 0.0
    if not true:
        return float(not named)
    free = overlaps(named, true)
    hits, total = 0, 0.0
    for rank, row in enumerate(free, start=1):
        best = int(row.argmax())
        if row[best] >= least:
            hits += 1
            total += hits / rank
            free[:, best] = 0.0
    return total / len(true)


def pointing(named: Sequence[Box] | None, true: Sequence[Box]) -> float:
    """Returns the share of boxes that point: whose centre lies in a true box of the same label that
    no other box points at, over the number of named or of true boxes, whichever is larger. That is
    the pointing game (Zhang et al. 2018), with a price for further boxes."""
    if named is None:
        return 0.0
    if not named or not true:
        return float(not named and not true)
    inside = [[has_centre(box, one) for box in true] for one in named]
    hits = np.array(inside, dtype=np.float64) * labels_agree(named, true)
    return len(best_matching(hits)) / max(len(named), len(true))


def has_centre(box: Box, named: Box) -> bool:
    """Whether the centre of a named box, which has an area, lies in a true one."""
    x, y = (named.x1 + named.x2) / 2, (named.y1 + named.y2) / 2
    return area(named) > 0 and box.x1 <= x <= box.x2 and box.y1 <= y <= box.y2
