"""The sampled completions of a step, as Parquet for anybody to read."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rarl.files import replacing
from rarl.schema import Example, Rollout, Score


def write_samples(
    folder: Path,
    step: int,
    examples: list[Example],
    rollouts: list[Rollout],
    scores: list[Score],
    advantages: list[float],
) -> None:
    """One file a step, one row a completion; the four sequences are aligned. A reward that is None is null."""
    columns = {
        "step": [step] * len(rollouts),
        "example_id": [e.id for e in examples],
        "image_id": [e.image_id for e in examples],
        "question": [e.question for e in examples],
        "answer": [e.answer for e in examples],
        "completion": [r.text for r in rollouts],
        "completion_tokens": [len(r.completion_token_ids) for r in rollouts],
        "finish_reason": [r.finish_reason for r in rollouts],
        "adapter_version": [r.adapter_version for r in rollouts],
        "advantage": advantages,
        "reward": [s.total for s in scores],
    }
    columns |= {
        f"reward/{name}": pa.array([s.rewards[name] for s in scores], pa.float64()) for name in scores[0].rewards
    }
    with replacing(folder / f"step_{step:06d}.parquet") as temporary:
        pq.write_table(pa.table(columns), temporary)
