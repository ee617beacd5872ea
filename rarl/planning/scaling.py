"""How a step's seconds change with the number of GPUs: a simulation by the cost model, not a
measurement.

Every GPU has one sampler and one train worker, which take turns, as on one card.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rarl.planning.cost import Layout, Network, Speeds, StepSeconds, reply_lengths, step_seconds
from rarl.planning.shapes import ModelSize, Work

DRAWS = 5  # of reply lengths; the mean is shown


@dataclass(frozen=True)
class Scaled:
    """`speedup` is in replies per second against one GPU, `efficiency` that over the number of
    GPUs."""

    gpus: int
    prompts: int
    step: StepSeconds
    speedup: float
    efficiency: float


def scale(
    model: Any,
    size: ModelSize,
    work: Work,
    speeds: Speeds,
    network: Network,
    gpus: Sequence[int],
    grow: bool,
) -> list[Scaled]:
    """A row for each number of GPUs, of which the first is the one compared with. `grow`: the batch
    grows with the GPUs; otherwise it is shared among them, and those beyond its prompts have
    nothing to do."""
    rows: list[Scaled] = []
    for count in gpus:
        own = replace(work, prompts=work.prompts * count // gpus[0]) if grow else work
        step = mean_step(model, size, own, speeds, network, count)
        rate = own.replies / step.total
        base = rate if not rows else rows[0].prompts * work.group / rows[0].step.total
        rows.append(Scaled(count, own.prompts, step, rate / base, rate / base * gpus[0] / count))
    return rows


def mean_step(
    model: Any, size: ModelSize, work: Work, speeds: Speeds, network: Network, gpus: int
) -> StepSeconds:
    """Over `DRAWS` draws of the reply lengths."""
    layout = Layout(workers=gpus, samplers=gpus)
    drawn = []
    for seed in range(DRAWS):
        lengths = reply_lengths(work, np.random.default_rng(seed))
        drawn.append(step_seconds(model, size, work, lengths, speeds, layout, 2, network))

    def mean(name: str) -> float:
        return float(np.mean([getattr(step, name) for step in drawn]))

    return StepSeconds(
        mean("rollout"), mean("reward"), mean("update"), mean("publish"), mean("communication")
    )
