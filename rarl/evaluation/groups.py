"""Groups of questions, such as those of a sex or a site: which column tells them, how far they lie
apart, and which of them falls behind the others by more than chance."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit
from scipy.stats import studentized_range

from rarl.data.columns import MORE_TEXTS
from rarl.data.parquet import ParquetRows
from rarl.errors import UserError
from rarl.evaluation.consistency import ABILITY, ability_of
from rarl.intervals import effective_size, holm, lies_at
from rarl.prepare.followed import MOST_GROUPS
from rarl.samples import Sample
from rarl.schema import Example

UNKNOWN = "unknown"  # the group of what has no modality or organ, beside those that have
FEWEST_UNITS = 30  # patients or images; a group of fewer is shown, and never ranked
# The metrics of groups that are compared.
GROUP_METRICS = (
    *("accuracy", "judge_correctness", "reasoning", "true_positive_rate", "true_negative_rate"),
    *("option_probability", "option_margin"),
)
GAP = "largest − smallest"  # the group of the row that tells how far groups lie apart
# The metrics in which a group is tested against the others, each a family of its own: accuracy, and
# that of equal opportunity (Hardt, Price and Srebro 2016).
OPPORTUNITY = "true_positive_rate"
TESTED = ("accuracy", OPPORTUNITY)
# What a report must not list, and what is no text.
NO_GROUPS = ("patient", "study")
COLUMNS = [
    *("question", "answer", "answer_type", "dataset", "split"),
    *(name for name in MORE_TEXTS if name not in (*NO_GROUPS, "rationale", "id", "image_id")),
]


def groups_of(samples: Sequence[Sample], name: str) -> list[str | None]:
    """Returns the group that each sample belongs to. It is None for all if only some values are
    known, and only one of them: whether the rest has another is not."""
    if name == "all":
        return ["all"] * len(samples)
    values = [value_of(one.example, name) for one in samples]
    if None in values and len(set(values)) < 3:
        return [None] * len(values)
    return [UNKNOWN if value is None else value for value in values]


def value_of(example: Example, name: str) -> str | None:
    """Returns what an example has in a column, one of the user's table or its own."""
    value = example.extra.get(name)
    if value is None and name in COLUMNS:
        value = getattr(example, name) or None
    if value is None and name == ABILITY:
        return ability_of(example)
    return None if value is None else str(value)


def without_values(names: Sequence[str], samples: Sequence[Sample]) -> list[str]:
    """Returns the columns that no sample has a value of."""
    return [name for name in names if all(value_of(one.example, name) is None for one in samples)]


def grouping_columns(samples: Sequence[Sample]) -> list[str]:
    """Returns the further columns of the user's own table that part the questions into groups."""
    values: dict[str, set[str]] = {}
    for sample in samples:
        for name, value in sample.example.extra.items():
            if value is not None and name not in ("all", ABILITY):
                values.setdefault(name, set()).add(value)
    return [name for name, known in values.items() if 2 <= len(known) <= MOST_GROUPS]


def require_columns(by: Sequence[str], data: Mapping[str, str]) -> None:
    """Raises UserError for a column of `evaluation.by` that no measured data set has; `data` maps
    their names to their paths. One of them is enough: others have no such groups."""
    if not by or not data:
        return
    known: dict[str, None] = {}
    for path in data.values():
        known |= dict.fromkeys(columns_of(ParquetRows(path)))
    for name in by:
        if name not in known:
            near = difflib.get_close_matches(name.lower(), known, n=1)
            what = f"nothing in {', '.join(data)} has a column '{name}' with values"
            if name in NO_GROUPS:
                what = f"'{name}' may tell who somebody is, and makes no groups"
            meant = f"; did you mean '{near[0]}'?" if near else ""
            raise UserError(f"evaluation.by: {what}{meant}; there are {', '.join(known)}")


def columns_of(rows: ParquetRows) -> list[str]:
    """Returns the columns of a data set that may tell groups and have a value anywhere."""
    own = [name for name in COLUMNS if any(rows.column(name))]
    further: dict[str, None] = {}
    for row in rows.column("extra"):
        further |= {name: None for name, value in row or () if value is not None}
    return list(dict.fromkeys([*own, *further]))


@dataclass(frozen=True)
class Contrast:
    """How the groups of one column lie apart in one metric, in the metric's unit. `rest` and `p`
    are by group, of those that are ranked: how far it is above the others together, and the p-value
    of that before any correction. `gap` is largest minus smallest of the ranked groups, with its
    95 % interval."""

    rest: dict[str, float]
    p: dict[str, float]
    gap: float
    low: float
    high: float


def contrast(
    values: ArrayLike, units: Sequence[str], groups: Sequence[str], is_fraction: bool = True
) -> Contrast | None:
    """Compares the groups that are ranked, see `ranked_totals`; None if there are fewer than two.
    Inputs are (n,): the values, and the unit (patient or image) and the group of each. A unit may
    have values in several groups, as an image has questions of several types.

    Standard errors are cluster-robust (Liang and Zeger 1986; Cameron and Miller 2015), with units
    as clusters. The interval of the gap is that of all pairs at once (Tukey and Kramer, which
    Hayter 1984 shows to be conservative): the largest of several noisy groups lies above the
    smallest even where nothing sets them apart, so that the interval of their difference alone
    would never hold 0. It begins above 0 where a pair differs by more than chance. p is Student's,
    with the units of the smaller side less one as degrees of freedom.
    """
    names, sums, sizes = ranked_totals(np.asarray(values, dtype=np.float64), units, groups)
    if len(names) < 2:
        return None
    counts = (sizes > 0).sum(1)
    means = sums.sum(1) / sizes.sum(1)
    above = means - means_of_others(sums, sizes)
    gap = float(means.max() - means.min())
    if is_fraction:
        sums, sizes = with_pseudo_units(sums, sizes)
    centres = sums.sum(1) / sizes.sum(1)
    moved = influences(sums, sizes)
    first, second = np.triu_indices(len(names), 1)
    apart = np.abs(centres[first] - centres[second])
    shared = moved @ moved.T
    variance = shared[first, first] + shared[second, second] - 2.0 * shared[first, second]
    reach = tukey(len(names), int(counts.min()) - 1) * np.sqrt(np.maximum(variance, 0.0))
    low, high = max(0.0, float((apart - reach).max())), float((apart + reach).max())
    others = sums.sum(0) - sums, sizes.sum(0) - sizes
    error = np.maximum(np.linalg.norm(moved - influences(*others), axis=1), 1e-12)
    freedom = np.minimum(counts, (others[1] > 0).sum(1)) - 1
    p = 2.0 * stdtr(freedom, -np.abs(centres - others[0].sum(1) / others[1].sum(1)) / error)
    return Contrast(
        rest=dict(zip(names, above.tolist(), strict=True)),
        p=dict(zip(names, p.tolist(), strict=True)),
        gap=gap,
        low=min(low, gap),
        high=max(gap, min(high, 1.0) if is_fraction else high),
    )


def ranked_totals(
    values: NDArray[np.float64], units: Sequence[str], groups: Sequence[str]
) -> tuple[list[str], NDArray[np.float64], NDArray[np.float64]]:
    """Returns the groups that have at least FEWEST_UNITS units, UNKNOWN left out, and the sums and
    the sizes of their units, each of shape (groups, units), 0 where a unit has none of a group."""
    every, unit = np.unique(np.asarray(units, dtype=str), return_inverse=True)
    names, sums, sizes = [], [], []
    labels = np.asarray(groups, dtype=object)
    for name in sorted(set(groups) - {UNKNOWN}):
        own = labels == name
        size = np.bincount(unit[own], minlength=len(every)).astype(np.float64)
        if (size > 0).sum() >= FEWEST_UNITS:
            names.append(name)
            sizes.append(size)
            sums.append(np.bincount(unit[own], weights=values[own], minlength=len(every)))
    shape = (len(names), len(every))
    return names, np.reshape(sums, shape), np.reshape(sizes, shape)


def with_pseudo_units(
    sums: NDArray[np.float64], sizes: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the same with one more unit that is right and one that is wrong for each group of
    which nearly all units are right, or wrong (Agresti and Caffo 2000): what was never seen may
    still be. Such a unit weighs as much as one independent value does in its group."""
    further = []
    for place, (own, size) in enumerate(zip(sums, sizes, strict=True)):
        totals = np.stack([own, size])[:, size > 0]
        if lies_at(totals, (0.0, 1.0)):
            mean = totals[0].sum() / totals[1].sum()
            weight = totals[1].sum() / effective_size(totals, mean * (1.0 - mean))
            for right in (1.0, 0.0):
                unit = np.zeros((2, len(sums)))
                unit[:, place] = weight * right, weight
                further.append(unit)
    added = np.stack(further, axis=2) if further else np.zeros((2, len(sums), 0))
    return np.hstack([sums, added[0]]), np.hstack([sizes, added[1]])


def means_of_others(sums: NDArray[np.float64], sizes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns for each group the mean of all others together, shape (groups,)."""
    total, size = sums.sum(1), sizes.sum(1)
    return (total.sum() - total) / (size.sum() - size)


def influences(sums: NDArray[np.float64], sizes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns how far each unit moves the mean of each group, shape (groups, units). The squares of
    a row add up to the variance of the mean, and those of the difference of two rows to that of the
    difference of the means."""
    count, total = (sizes > 0).sum(1, keepdims=True), sizes.sum(1, keepdims=True)
    mean = sums.sum(1, keepdims=True) / total
    return (sums - mean * sizes) / total * np.sqrt(count / np.maximum(count - 1, 1))


@cache
def tukey(groups: int, freedom: int) -> float:
    """Returns how many standard errors the difference of a pair of so many groups may be away from
    the truth, for all pairs at once in 95 of 100 cases; Student's quantile for two groups."""
    if groups == 2:
        return float(stdtrit(freedom, 0.975))
    return float(studentized_range.ppf(0.95, groups, freedom)) / math.sqrt(2.0)


def with_tests(rows: Sequence[dict[str, Any]], found: Contrast) -> list[dict[str, Any]]:
    """Writes what the comparison says of each group into its row, and returns the rows that are
    tests of their own: of two groups, which are each other's rest, the first alone."""
    own = [row for row in rows if row["ranked"]]
    for row in own:
        row["rest"], row["p"] = found.rest[row["group"]], found.p[row["group"]]
    if len(own) > 2:
        return own
    own[0]["same_test"] = own[1]
    return own[:1]


def adjust(tested: Sequence[dict[str, Any]]) -> None:
    """Corrects the p-values of a family of tests in their rows."""
    for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p"] = row.get("same_test", row)["p"] = p
