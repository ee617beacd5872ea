"""`judge`: what the judge thought of the reply."""

from __future__ import annotations

from rarl.judge.judge import score_verdict
from rarl.rewards import per_reply
from rarl.schema import Verdict


@per_reply
def judge_reward(text: str, *, verdict: Verdict | None, correctness: float = 0.5) -> float | None:
    """Pays `correctness` × the correctness grade over 3 + (1 − `correctness`) × the mean of
    factuality, completeness and relevance. RARL (arXiv 2506.06600) has correctness and explanation;
    the three parts are ours, after MedR-Bench, which scores efficiency, factuality and completeness
    per step.

    0 for a verdict that could not be parsed, so that confusing the judge never pays; None where it
    was not reached.
    """
    return score_verdict(verdict, correctness)
