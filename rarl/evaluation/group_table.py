"""What the table of results says of groups: of one model on one data set by one column, for
terminal, summary.json, Markdown and report alike."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from rarl.evaluation.groups import FEWEST_UNITS, GAP, OPPORTUNITY, TESTED, UNKNOWN
from rarl.intervals import p_in_words
from rarl.samples import Sample

CERTAIN = 0.05  # a p below it is called more than chance


@dataclass(frozen=True)
class Value:
    """A mean over `n` replies about `units` patients or images, or the gap between two, with its
    95 % interval, in the metric's own unit."""

    n: int
    units: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Group:
    """`values` are by metric. `rest` and `p` are by metric of TESTED, of a group that is ranked
    there: how far it is above the others, and how likely chance alone would bring it so far,
    corrected."""

    name: str
    values: dict[str, Value] = field(default_factory=dict)
    rest: dict[str, float] = field(default_factory=dict)
    p: dict[str, float] = field(default_factory=dict)

    @property
    def accuracy(self) -> Value:
        """Exactly right, over all types of questions."""
        return self.values["accuracy"]

    @property
    def ranked(self) -> bool:
        """Whether it is large enough."""
        return "accuracy" in self.rest


@dataclass(frozen=True)
class Groups:
    """The groups of a column: those that are ranked from the worst on, then the others. `gaps` are
    by metric. `unit` says what intervals are over, such as "patients"."""

    column: str
    groups: list[Group]
    gaps: dict[str, Value]
    unit: str

    @property
    def worst(self) -> Group | None:
        """The group with the lowest accuracy; None where fewer than two are ranked."""
        return self.groups[0] if "accuracy" in self.gaps else None

    @property
    def is_behind(self) -> bool:
        """Whether the worst group is behind the others by more than chance."""
        worst = self.worst
        return worst is not None and worst.rest["accuracy"] < 0 and worst.p["accuracy"] < CERTAIN

    @property
    def opportunity_p(self) -> float:
        """The smallest p of the groups' true-positive rates; 1 where none is tested."""
        return min((one.p[OPPORTUNITY] for one in self.groups if OPPORTUNITY in one.p), default=1.0)

    @property
    def is_unequal(self) -> bool:
        """Whether a group's true-positive rate is apart from the others by more than chance."""
        return self.opportunity_p < CERTAIN

    def headline(self) -> str:
        """Returns which group is the worst, and whether that is more than chance."""
        worst = self.worst
        if worst is None:
            few = f"fewer than two groups have {FEWEST_UNITS} {self.unit}, so none is ranked"
            return f"by {self.column}, {few}"
        below, p = abs(100.0 * worst.rest["accuracy"]), p_in_words(worst.p["accuracy"])
        far = f"{100.0 * worst.accuracy.mean:.1f} %, {below:.1f} points below the others ({p})"
        if self.is_behind:
            return f"by {self.column}, {worst.name} is worst, by more than chance: {far}"
        return f"by {self.column}, {worst.name} is lowest, by no more than chance gives: {far}"

    def details(self) -> str:
        """Returns how far the groups lie apart; nothing where fewer than two are ranked."""
        if "accuracy" not in self.gaps:
            return ""
        told = f"largest − smallest {in_points(self.gaps['accuracy'])}"
        if OPPORTUNITY in self.gaps:
            chance = "more than chance" if self.is_unequal else "no more than chance gives"
            told += f"; of the true-positive rate {in_points(self.gaps[OPPORTUNITY])}, {chance}"
            told += f" ({p_in_words(self.opportunity_p)})"
        return told

    def told(self) -> str:
        """Returns both in one line."""
        return "; ".join(part for part in (self.headline(), self.details()) if part)


def in_points(gap: Value) -> str:
    """Returns the gap of a fraction in words."""
    ends = f"{100 * gap.low:.1f} to {100 * gap.high:.1f}"
    return f"{100 * gap.mean:.1f} points (95 % interval {ends})"


def groups_in(table: pd.DataFrame, column: str, unit: str) -> Groups:
    """Returns the groups by a column in a table of one model's results on one data set."""
    rows = table[table["by"] == column].to_dict("records")
    found: dict[str, Group] = {}
    for row in rows:
        name, metric = row["group"], row["metric"]
        if name != GAP:
            one = found.setdefault(name, Group(name))
            one.values[metric] = value_in(row)
            if row["ranked"] and metric in TESTED:
                one.rest[metric], one.p[metric] = row["rest"], row["p"]
    known = [one for one in found.values() if "accuracy" in one.values]
    known.sort(key=lambda one: (not one.ranked, one.name == UNKNOWN, one.accuracy.mean, one.name))
    gaps = {row["metric"]: value_in(row) for row in rows if row["group"] == GAP}
    return Groups(column, known, gaps, unit)


def value_in(row: dict[Any, Any]) -> Value:
    """Returns the mean and the interval of a row."""
    return Value(*(row[name] for name in ("n", "units", "mean", "low", "high")))


def unit_of(samples: Sequence[Sample]) -> str:
    """Returns what intervals of these samples are over."""
    known = {one.example.patient is not None for one in samples}
    if len(known) > 1:
        return "patients or images"
    return "patients" if True in known else "images"


def groups_json(groups: Groups) -> dict[str, Any]:
    """Returns what summary.json holds of the groups of a column: gaps and `minus_others` in
    percentage points, all else as elsewhere there."""
    worst = groups.worst
    return {
        "unit": groups.unit,
        "groups": {one.name: group_json(one) for one in groups.groups},
        "worst": worst and worst.name,
        "more_than_chance": groups.is_behind,
        "gap": points_of(groups.gaps.get("accuracy")),
        "equal_opportunity_gap": points_of(groups.gaps.get(OPPORTUNITY)),
        "unequal_opportunity": groups.is_unequal,
        "told": groups.told(),
    }


def group_json(group: Group) -> dict[str, Any]:
    """Returns what summary.json holds of a group."""
    own = group.accuracy
    found: dict[str, Any] = {"n": own.n, "units": own.units, "accuracy": own.mean}
    found |= {"ci95": [own.low, own.high], "ranked": group.ranked}
    if group.ranked:
        found |= {"minus_others": 100.0 * group.rest["accuracy"], "p": group.p["accuracy"]}
    found["metrics"] = {
        metric: {"n": one.n, "units": one.units, "mean": one.mean, "ci95": [one.low, one.high]}
        for metric, one in group.values.items()
        if metric != "accuracy"
    }
    return found


def points_of(gap: Value | None) -> dict[str, Any] | None:
    """Returns a gap in percentage points."""
    return (
        None
        if gap is None
        else {"points": 100.0 * gap.mean, "ci95": [100.0 * gap.low, 100.0 * gap.high]}
    )


def known_columns(evaluation: Path) -> list[str]:
    """Returns the columns by which the measurements of a run were compared, by the summaries that
    are beside them."""
    found: dict[str, None] = {}
    for path in sorted(evaluation.glob("summary*.json")):
        held = json.loads(path.read_text(encoding="utf-8")).get("base", {})
        for one in held.values():
            found |= dict.fromkeys(one.get("groups", {}))
    return list(found)
