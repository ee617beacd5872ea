"""The sampled completions of a step, as Parquet for anybody to read."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rarl.files import replacing
from rarl.rewards.total import ScoredReply
from rarl.schema import Rollout, Score


def write_samples(
    folder: Path,
    step: int,
    replies: list[ScoredReply],
    rollouts: list[Rollout],
    scores: list[Score],
    advantages: list[float],
) -> None:
    """One file a step, one row a completion; the four sequences are aligned. What could not be
    scored is null."""
    examples = [reply.example for reply in replies]
    columns = {
        "step": [step] * len(rollouts),
        "example_id": [e.id for e in examples],
        "image_id": [e.image_id for e in examples],
        "question": [e.question for e in examples],
        "answer": [e.answer for e in examples],
        "rationale": pa.array([e.rationale for e in examples], pa.string()),
        "wording": [reply.prompt.wording for reply in replies],
        "prompt": [reply.prompt.text for reply in replies],
        "completion": [r.text for r in rollouts],
        "completion_tokens": [len(r.completion_token_ids) for r in rollouts],
        "finish_reason": [r.finish_reason for r in rollouts],
        "adapter_version": [r.adapter_version for r in rollouts],
        "advantage": advantages,
        "reward": [s.total for s in scores],
    }
    columns |= {
        f"reward/{name}": pa.array([s.rewards[name] for s in scores], pa.float64())
        for name in scores[0].rewards
    }
    columns |= evidence_columns(replies)
    with replacing(folder / f"step_{step:06d}.parquet") as temporary:
        pq.write_table(pa.table(columns), temporary)


def evidence_columns(replies: list[ScoredReply]) -> dict[str, pa.Array]:
    """What the rewards were told beside the reply; null where nobody asked."""
    verdicts = [reply.verdict for reply in replies]
    columns = {"rederived": pa.array([reply.rederived for reply in replies], pa.string())}
    for name in ("status", "reason"):
        columns[f"judge/{name}"] = pa.array([v and getattr(v, name) for v in verdicts], pa.string())
    for name in ("correctness", "factuality", "completeness", "relevance"):
        columns[f"judge/{name}"] = pa.array(
            [v and getattr(v, name) for v in verdicts], pa.float64()
        )
    return columns
