"""Named scores → one reward: gates, missing values, normalisation, weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rarl.config import RewardConfig
from rarl.errors import UserError
from rarl.rewards.registry import EXAMPLE_COLUMNS, Reward
from rarl.schema import Example, Prompt, Score, Verdict

EPSILON = 1e-4  # added to a standard deviation, as in the advantages


@dataclass(frozen=True)
class ScoredReply:
    """A reply with all that its rewards may read."""

    example: Example
    prompt: Prompt
    completion: str
    rederived: str | None = None
    verdict: Verdict | None = None


def score_groups(
    groups: Sequence[Sequence[ScoredReply]],
    rewards: Mapping[str, Reward],
    settings: Mapping[str, RewardConfig],
) -> list[list[Score]]:
    """One Score per reply, in the same nesting. Every reward is called once, with all replies.

    `Score.rewards` holds the raw values. The total is the weighted sum of these after the gate
    (multiplied by the gate reward's raw value) and, where asked for, normalisation within the
    group. A value that is missing counts as the mean of its group's, so that it neither helps nor
    hurts.
    """
    replies = [reply for group in groups for reply in group]
    prompts, completions = (
        [reply.prompt.text for reply in replies],
        [reply.completion for reply in replies],
    )
    columns = columns_of(replies)
    raw = {
        name: checked(name, reward, prompts, completions, columns)
        for name, reward in rewards.items()
    }
    scores: list[list[Score]] = []
    start = 0
    for group in groups:
        own = {name: values[start : start + len(group)] for name, values in raw.items()}
        scores.append(score_group(len(group), own, settings))
        start += len(group)
    return scores


def score_group(
    size: int, raw: Mapping[str, Sequence[float | None]], settings: Mapping[str, RewardConfig]
) -> list[Score]:
    totals = np.zeros(size)
    for name, values in raw.items():
        setting = settings[name]
        gated = apply_gate(values, raw[setting.gate]) if setting.gate is not None else values
        totals += setting.weight * complete(gated, setting.normalise)
    return [Score({name: raw[name][i] for name in raw}, float(totals[i])) for i in range(size)]


def apply_gate(values: Sequence[float | None], gate: Sequence[float | None]) -> list[float | None]:
    """Products; None where either is."""
    return [None if v is None or g is None else v * g for v, g in zip(values, gate, strict=True)]


def complete(values: Sequence[float | None], normalise: bool) -> np.ndarray:
    """One group's values with the missing ones at the mean of the others, and zeros where all are
    missing.

    Normalised, they have mean 0 and, but for EPSILON, sample standard deviation 1 over those that
    are not missing (GDPO, arXiv 2601.05242, has a group's rewards normalised one by one).
    """
    known = np.array([value for value in values if value is not None], dtype=np.float64)
    if not known.size:
        return np.zeros(len(values))
    mean = known.mean()
    filled = np.array([mean if value is None else value for value in values], dtype=np.float64)
    if not normalise:
        return filled
    deviation = known.std(ddof=1) if known.size > 1 else 0.0
    return (filled - mean) / (deviation + EPSILON)


def columns_of(replies: Sequence[ScoredReply]) -> dict[str, list[Any]]:
    """The columns that rewards see, by name."""
    columns: dict[str, list[Any]] = {
        name: [getattr(reply.example, name) for reply in replies] for name in EXAMPLE_COLUMNS
    }
    columns["form"] = [reply.prompt.form for reply in replies]
    columns["wording"] = [reply.prompt.wording for reply in replies]
    columns["rederived"] = [reply.rederived for reply in replies]
    columns["verdict"] = [reply.verdict for reply in replies]
    return columns


def checked(
    name: str,
    reward: Reward,
    prompts: Sequence[str],
    completions: Sequence[str],
    columns: Mapping[str, Sequence[object]],
) -> list[float | None]:
    """Calls a reward and refuses what its contract does not allow."""
    values = reward(prompts=prompts, completions=completions, **columns)
    if len(values) != len(completions):
        raise UserError(
            f"reward '{name}' returned {len(values)} values for {len(completions)} completions"
        )
    return [None if value is None else checked_value(name, value) for value in values]


def checked_value(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number <= 1:
        raise UserError(f"reward '{name}' returned {value}; values must lie in [0, 1] or be None")
    return number
