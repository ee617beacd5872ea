"""`judge`: what the judge thought of the reply."""

from __future__ import annotations

from rarl.rewards import per_reply
from rarl.schema import Verdict

MAX_CORRECTNESS = 3


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


def score_verdict(verdict: Verdict | None, weight: float) -> float | None:
    """Returns what `judge` pays for a verdict, with `weight` for the correctness grade."""
    if verdict is None or verdict.status == "unreachable":
        return None
    if verdict.status == "unparsable":
        return 0.0
    graded = None if verdict.correctness is None else verdict.correctness / MAX_CORRECTNESS
    if graded is None or verdict.explanation is None:
        return verdict.explanation if graded is None else graded
    return weight * graded + (1 - weight) * verdict.explanation
