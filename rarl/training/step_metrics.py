"""The numbers of one step, by the names that `metrics.jsonl` uses."""

from __future__ import annotations

from typing import Any

import numpy as np

from rarl.grpo.update import UpdateStats
from rarl.schema import Rollout, Score


def reward_metrics(scores: list[list[Score]]) -> dict[str, float | None]:
    """Means over the completions that could be scored, and the share of groups from which nothing can be learnt."""
    flat = [score for group in scores for score in group]
    metrics: dict[str, float | None] = {"reward/mean": float(np.mean([s.total for s in flat]))}
    for name in flat[0].rewards:
        values = [v for s in flat if (v := s.rewards[name]) is not None]
        metrics[f"reward/{name}"] = float(np.mean(values)) if values else None
    metrics["groups_without_spread"] = float(np.mean([not has_spread(group) for group in scores]))
    return metrics


def has_spread(scores: list[Score]) -> bool:
    """Whether the group's completions earned different rewards."""
    return len({score.total for score in scores}) > 1


def rollout_metrics(groups: list[list[Rollout]], trained: int, version: int) -> dict[str, float]:
    """`trained` is how many of the groups were trained on; `version` that of the policy, in optimizer steps."""
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


def update_metrics(stats: UpdateStats | None, mismatch: tuple[float, float] | None) -> dict[str, Any]:
    """All None where the step had nothing to learn from. `mismatch` is None where the policy that sampled is the one
    that trains: it is then the drift."""
    names = ("loss", "grad_norm", "kl", "clipped", "entropy")
    if stats is None:
        return dict.fromkeys((*names, "drift", "drift/max", "sampler_mismatch", "sampler_mismatch/max"))
    mean, largest = mismatch or (stats.drift, stats.drift_max)
    return {name: getattr(stats, name) for name in names} | {
        "drift": stats.drift,
        "drift/max": stats.drift_max,
        "sampler_mismatch": mean,
        "sampler_mismatch/max": largest,
    }
