"""The numbers of one step, by the names that `metrics.jsonl` uses."""

from __future__ import annotations

from typing import Any

import numpy as np

from rarl.grpo.update import UpdateStats
from rarl.schema import Rollout, Score, Verdict

ROUNDING = 1e-9  # a missing value filled with its group's mean is not equal to the last bit


def reward_metrics(scores: list[list[Score]]) -> dict[str, float | None]:
    """Of the sum and of each reward: the mean over the completions that could be scored, how far
    apart the completions of a group are (standard deviation, mean over groups), and the share of
    groups in which nothing tells them apart."""
    flat = [score for group in scores for score in group]
    metrics: dict[str, float | None] = {"reward/mean": float(np.mean([s.total for s in flat]))}
    for name in flat[0].rewards:
        groups = [[v for s in group if (v := s.rewards[name]) is not None] for group in scores]
        values = [v for group in groups for v in group]
        metrics[f"reward/{name}"] = float(np.mean(values)) if values else None
        metrics[f"spread/{name}"] = (
            float(np.mean([np.std(group) for group in groups if group])) if values else None
        )
        metrics[f"without_spread/{name}"] = float(
            np.mean([len(set(group)) < 2 for group in groups])
        )
        metrics[f"unscored/{name}"] = 1 - len(values) / len(flat)
    metrics["spread/mean"] = float(np.mean([np.std([s.total for s in group]) for group in scores]))
    metrics["groups_without_spread"] = float(np.mean([not has_spread(group) for group in scores]))
    return metrics


def judge_metrics(verdicts: list[Verdict | None]) -> dict[str, float | None]:
    """Shares of the completions that were judged; nothing where no judge is asked."""
    asked = [verdict for verdict in verdicts if verdict is not None]
    if not asked:
        return {}
    shares = {
        f"judge/{status}": float(np.mean([verdict.status == status for verdict in asked]))
        for status in ("unparsable", "unreachable")
    }
    means: dict[str, float | None] = {}
    for name in ("correctness", "explanation"):
        known = [value for verdict in asked if (value := getattr(verdict, name)) is not None]
        means[f"judge/{name}"] = float(np.mean(known)) if known else None
    return shares | means


def has_spread(scores: list[Score]) -> bool:
    """Whether the group's completions earned different rewards, rounding aside."""
    totals = [score.total for score in scores]
    return max(totals) - min(totals) > ROUNDING


def rollout_metrics(groups: list[list[Rollout]], trained: int, version: int) -> dict[str, float]:
    """`trained` is how many of the groups were trained on; `version` that of the policy, in
    optimizer steps."""
    flat = [rollout for group in groups for rollout in group]
    lengths = [len(rollout.completion_token_ids) for rollout in flat]
    truncated = [rollout.finish_reason == "length" for rollout in flat]
    return {
        "completion_tokens": float(np.mean(lengths)),
        "completion_tokens/total": float(np.sum(lengths)),
        "completion_truncated": float(np.mean(truncated)),
        "groups/sampled": float(len(groups)),
        "groups/trained": float(trained),
        "staleness": float(np.mean([version - rollout.adapter_version for rollout in flat])),
    }


def update_metrics(
    stats: UpdateStats | None, mismatch: tuple[float, float] | None
) -> dict[str, Any]:
    """All None where the step had nothing to learn from. `mismatch` is None where the policy that
    sampled is the one that trains: it is then the drift."""
    names = ("loss", "grad_norm", "kl", "clipped", "entropy")
    if stats is None:
        return dict.fromkeys(
            (*names, "drift", "drift/max", "sampler_mismatch", "sampler_mismatch/max")
        )
    mean, largest = mismatch or (stats.drift, stats.drift_max)
    return {name: getattr(stats, name) for name in names} | {
        "drift": stats.drift,
        "drift/max": stats.drift_max,
        "sampler_mismatch": mean,
        "sampler_mismatch/max": largest,
    }
