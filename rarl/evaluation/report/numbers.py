"""Everything that the report says in numbers: the one table of results, looked up by line."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations

from rarl.evaluation.consistency import ABILITY
from rarl.evaluation.group_table import Groups, groups_in, unit_of
from rarl.evaluation.groups import GAP
from rarl.evaluation.metrics import UNBOUNDED
from rarl.evaluation.report.gather import Report
from rarl.evaluation.results import WITH_IMAGE, BySeed, clear_sign, differences, results
from rarl.intervals import FEWEST_VALUES


@dataclass(frozen=True)
class Measure:
    """A mean over `n` replies in per cent, or a difference of `n` pairs in points, with its 95 %
    interval. `questions` are those of a difference."""

    n: int
    mean: float
    low: float
    high: float
    seeds: dict[int, float]
    questions: int = 0

    @property
    def has_interval(self) -> bool:
        """Whether its interval says anything."""
        return self.n >= FEWEST_VALUES

    @property
    def sign(self) -> int:
        """Of a difference: 1 or -1 if it is clear, else 0; see `clear_sign`."""
        return clear_sign(self.questions, self.low, self.high)


@dataclass(frozen=True)
class Numbers:
    """The results of a report. `means` are by (model, data set, group, metric), where a group is
    "all" or an answer type; `gains` are by (model, data set, metric, the line that it is compared
    with), "" being its own base, and of a control, WITH_IMAGE its own model and prompt with the
    image, which is then what is ahead. `groups` are by (model, data set), column by
    column; `abilities` by (model, data set, ability, metric)."""

    means: dict[tuple[str, ...], Measure]
    gains: dict[tuple[str, ...], Measure]
    groups: dict[tuple[str, str], list[Groups]] = field(default_factory=dict)
    abilities: dict[tuple[str, ...], Measure] = field(default_factory=dict)

    def mean(
        self, model: str, data: str, metric: str = "accuracy", group: str = "all"
    ) -> Measure | None:
        """Returns None for what was not measured."""
        return self.means.get((model, data, group, metric))

    def gain(
        self, model: str, data: str, metric: str = "accuracy", against: str = ""
    ) -> Measure | None:
        """Returns the difference paired by question; None if there is no such pair."""
        return self.gains.get((model, data, metric, against))

    def kinds(self, data: str) -> list[str]:
        """Returns the answer types of a data set, if there are several."""
        kinds = sorted({group for _, its, group, _ in self.means if its == data and group != "all"})
        return kinds if len(kinds) > 1 else []


def numbers_of(report: Report) -> Numbers:
    """Computes everything that the page says in numbers."""
    replies: dict[tuple[str, str], BySeed] = {}
    pairs: dict[tuple[str, str, str], tuple[BySeed, BySeed]] = {}
    best = report.best
    for data in report.data_sets:
        measured = [model for model in report.lines if data in model.replies]
        plain = [model for model in measured if model.way.is_plain]
        trained = [model for model in plain if not model.is_base]
        for model in measured:
            replies[model.name, data] = dict(sorted(model.replies[data].items()))
            if data in model.before and model.way.is_plain:
                pairs[model.name, "", data] = (model.before[data], model.replies[data])
            if data in model.with_image:
                pairs[model.name, WITH_IMAGE, data] = (model.replies[data], model.with_image[data])
        leads = [(best, model) for model in plain] if best in plain else []
        for first, second in [*combinations(trained, 2), *leads]:
            if first is not second:
                pairs[first.name, second.name, data] = (second.replies[data], first.replies[data])
    means, abilities = dict[tuple[str, ...], Measure](), dict[tuple[str, ...], Measure]()
    table = results(replies, ("all", "answer_type", ABILITY), report.by)
    shown = table["by"].isin(("all", "answer_type", ABILITY)) & (table["group"] != GAP)
    for row in table[shown].to_dict("records"):
        scale = 1.0 if row["metric"] in UNBOUNDED else 100.0
        mean, low, high = (scale * row[name] for name in ("mean", "low", "high"))
        seeds = {seed: scale * own for seed, own in row["seeds"].items()}
        key = (row["model"], row["data"], row["group"], row["metric"])
        found = abilities if row["by"] == ABILITY else means
        found[key] = Measure(row["n"], mean, low, high, seeds)
    groups: dict[tuple[str, str], list[Groups]] = {}
    for (name, data), by_seed in replies.items() if report.by else ():
        own = table[(table["model"] == name) & (table["data"] == data)]
        unit = unit_of([one for its in by_seed.values() for one in its])
        parts = [groups_in(own, column, unit) for column in report.by]
        groups[name, data] = [one for one in parts if len(one.groups) > 1]
    gains: dict[tuple[str, ...], Measure] = {}
    for row in differences(pairs).to_dict("records"):
        key = (row["model"], row["data"], row["metric"], row["against"])
        gains[key] = Measure(row["n"], row["points"], row["low"], row["high"], {}, row["questions"])
    return Numbers(means, gains, groups, abilities)
