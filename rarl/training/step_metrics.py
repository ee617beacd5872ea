"""The figures of one step over all workers, by the names that `metrics.jsonl` uses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from rarl.collect import Collector
from rarl.grpo.update import UpdateStats
from rarl.grpo.workers import Workers
from rarl.rewards.sensitivity import copied_gains
from rarl.samples import Group, flatten

ROUNDING = 1e-9  # a missing value filled with its group's mean is not equal to the last bit


@dataclass
class Tally:
    """Means and totals in the making. Each worker adds its own values, under the same names in the
    same order; `over` gives the figures of all workers."""

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    totals: dict[str, float] = field(default_factory=dict)

    def mean(self, name: str, values: Iterable[float]) -> None:
        numbers = [float(value) for value in values]
        self.sums[name], self.counts[name] = sum(numbers), len(numbers)

    def ratio(self, name: str, part: float, whole: float) -> None:
        """Adds to a quotient of sums; it is None where the whole is 0."""
        self.sums[name], self.counts[name] = part, whole

    def total(self, name: str, value: float) -> None:
        self.totals[name] = float(value)

    def over(self, workers: Workers) -> dict[str, float | None]:
        """Returns every figure; a mean of no values is None."""
        added = workers.sum([*self.sums.values(), *self.counts.values(), *self.totals.values()])
        size, figures = len(self.sums), dict[str, float | None]()
        columns = zip(self.sums, added[:size], added[size : 2 * size], strict=True)
        for name, total, count in columns:
            figures[name] = total / count if count else None
        return figures | dict(zip(self.totals, added[2 * size :], strict=True))


def step_metrics(
    groups: Sequence[Group],
    trained: Sequence[Group],
    version: int,
    collector: Collector,
    workers: Workers,
) -> dict[str, float | None]:
    """Returns the figures of what a step sampled; `version` is that of the policy, in steps."""
    tally = Tally()
    add_rewards(tally, groups, list(collector.rewards))
    if collector.judge is not None:
        add_verdicts(tally, groups)
    samples = flatten(groups)
    # What copies that say something else earn, of what the thinkings earn above silence.
    for name, gains in copied_gains(samples, collector.rewards).items():
        tally.ratio(f"sensitivity/{name}", gains.copies, gains.originals)
    lengths = [len(sample.rollout.completion_token_ids) for sample in samples]
    tally.mean("completion_tokens", lengths)
    tally.total("completion_tokens/total", sum(lengths))
    tally.mean("completion_truncated", [s.rollout.finish_reason == "length" for s in samples])
    tally.total("groups/sampled", len(groups))
    tally.total("groups/trained", len(trained))
    tally.mean("staleness", [version - sample.rollout.adapter_version for sample in samples])
    return tally.over(workers)


def add_rewards(tally: Tally, groups: Sequence[Group], names: Sequence[str]) -> None:
    """Adds, of the sum and of each reward: the mean over the completions that could be scored, how
    far apart the completions of a group are (standard deviation, mean over groups), and the share
    of groups in which nothing tells them apart."""
    totals = [[sample.score.total for sample in group if sample.score] for group in groups]
    tally.mean("reward/mean", [total for group in totals for total in group])
    for name in names:
        values = [[sample.rewards[name] for sample in group] for group in groups]
        known = [[value for value in group if value is not None] for group in values]
        tally.mean(f"reward/{name}", [value for group in known for value in group])
        tally.mean(f"spread/{name}", [float(np.std(group)) for group in known if group])
        tally.mean(f"without_spread/{name}", [len(set(group)) < 2 for group in known])
        tally.mean(f"unscored/{name}", [value is None for group in values for value in group])
    tally.mean("spread/mean", [float(np.std(group)) for group in totals])
    tally.mean("groups_without_spread", [not has_spread(group) for group in groups])


def add_verdicts(tally: Tally, groups: Sequence[Group]) -> None:
    """Adds the shares of the judged completions without a verdict, and the judge's means."""
    verdicts = [sample.verdict for sample in flatten(groups) if sample.verdict is not None]
    for status in ("unparsable", "unreachable"):
        tally.mean(f"judge/{status}", [verdict.status == status for verdict in verdicts])
    for name in ("correctness", "explanation"):
        values = [getattr(verdict, name) for verdict in verdicts]
        tally.mean(f"judge/{name}", [value for value in values if value is not None])


def has_spread(group: Group) -> bool:
    """Tells whether the group's completions earned different rewards, rounding aside."""
    totals = [sample.score.total for sample in group if sample.score is not None]
    return max(totals) - min(totals) > ROUNDING


class Mismatch(NamedTuple):
    """Mean and largest |log-prob of the policy - of the sampler|, in nats."""

    mean: float
    largest: float


def update_metrics(stats: UpdateStats | None, mismatch: Mismatch | None) -> dict[str, Any]:
    """Returns the update's figures, which are of all workers already; all are None if the step had
    nothing to learn from. `mismatch` is None if the policy that sampled is the one that trains: the
    mismatch is then the drift."""
    names = ("loss", "grad_norm", "kl", "clipped", "entropy")
    if stats is None:
        empty = ("drift", "drift/max", "sampler_mismatch", "sampler_mismatch/max")
        return dict.fromkeys((*names, *empty))
    mean, largest = mismatch or (stats.drift, stats.drift_max)
    return {name: getattr(stats, name) for name in names} | {
        "drift": stats.drift,
        "drift/max": stats.drift_max,
        "sampler_mismatch": mean,
        "sampler_mismatch/max": largest,
    }
