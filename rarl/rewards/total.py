"""Named rewards become one number: gates, missing values, normalisation, weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rarl.config import RewardConfig
from rarl.errors import UserError
from rarl.rewards import EXAMPLE_COLUMNS, OF_PROMPT, OF_REPLY, Reward
from rarl.samples import Group, Sample, flatten
from rarl.schema import Score

EPSILON = 1e-4  # is added to a standard deviation, as in the advantages


def score_groups(
    groups: Sequence[Group], rewards: Mapping[str, Reward], settings: Mapping[str, RewardConfig]
) -> None:
    """Writes a Score on every sample. Every reward is called once, with all samples.

    `Score.rewards` holds the raw values. The total is the weighted sum of these after the gates
    (multiplied by the raw values of the rewards that gate) and, if asked for, normalisation within
    the group. A value that is missing counts as the mean of its group's, so that it neither helps
    nor hurts.
    """
    samples = flatten(groups)
    columns = columns_of(samples)
    raw = {name: call_reward(name, reward, columns) for name, reward in rewards.items()}
    start = 0
    for group in groups:
        own = {name: values[start : start + len(group)] for name, values in raw.items()}
        totals = weigh(len(group), own, settings)
        for index, sample in enumerate(group):
            values = {name: column[index] for name, column in own.items()}
            sample.score = Score(float(totals[index]), values)
        start += len(group)


def weigh(
    size: int, raw: Mapping[str, Sequence[float | None]], settings: Mapping[str, RewardConfig]
) -> np.ndarray:
    """Returns the totals of one group, float64 of shape (size,)."""
    totals = np.zeros(size)
    for name, values in raw.items():
        setting, gated = settings[name], values
        for gate in setting.gates:
            pairs = zip(gated, raw[gate], strict=True)
            gated = [None if v is None or by is None else v * by for v, by in pairs]
        totals += setting.weight * without_gaps(gated, setting.normalise)
    return totals


def without_gaps(values: Sequence[float | None], normalise: bool) -> np.ndarray:
    """Returns one group's values with the missing ones at the mean of the others, and zeros if all
    are missing. Normalised, they have mean 0 and, but for EPSILON, sample standard deviation 1 over
    those that are known (GDPO, arXiv 2601.05242, normalises a group's rewards one by one)."""
    known = np.array([value for value in values if value is not None], dtype=np.float64)
    if not known.size:
        return np.zeros(len(values))
    mean = known.mean()
    filled = np.array([mean if value is None else value for value in values], dtype=np.float64)
    if not normalise:
        return filled
    deviation = known.std(ddof=1) if known.size > 1 else 0.0
    return (filled - mean) / (deviation + EPSILON)


def columns_of(samples: Sequence[Sample]) -> dict[str, list[Any]]:
    columns = {name: [getattr(one.example, name) for one in samples] for name in EXAMPLE_COLUMNS}
    return columns | {
        "prompts": [one.prompt.text for one in samples],
        "completions": [one.rollout.text for one in samples],
        **{name: [getattr(one.prompt, name) for one in samples] for name in OF_PROMPT},
        **{name: [getattr(one, name) for one in samples] for name in OF_REPLY},
    }


def call_reward(
    name: str, reward: Reward, columns: Mapping[str, Sequence[object]]
) -> list[float | None]:
    """Calls a reward. Raises UserError unless it returns None or a value in [0, 1] for each."""
    returned: Sequence[Any] = reward(**columns)
    count, values = len(columns["completions"]), []
    if len(returned) != count:
        raise UserError(f"reward '{name}' returned {len(returned)} values for {count} completions")
    for value in returned:
        try:
            number = None if value is None else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if number is not None and not 0 <= number <= 1:
            allowed = "values must lie in [0, 1] or be None"
            raise UserError(f"reward '{name}' returned {value}; {allowed}")
        values.append(number)
    return values
