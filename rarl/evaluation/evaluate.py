"""Greedy answers of a whole data set through the vLLM actors, graded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from ray.data import Dataset

from rarl.data.prepare import require_room
from rarl.data.stream import unpack
from rarl.evaluation.intervals import interval95
from rarl.files import replacing
from rarl.rewards.accuracy import is_correct
from rarl.rewards.parsing import parse_reply
from rarl.rollout.pool import SamplerPool
from rarl.rollout.sampler import SampleRequest, SamplingSettings
from rarl.schema import Example, Rollout

REQUESTS_PER_ACTOR = 64  # in flight at a time; vLLM batches them


@dataclass(frozen=True)
class Prediction:
    """One reply. `correct` is exact: the option, yes or no, or the reference's words."""

    example_id: str
    image_id: str
    answer_type: str
    question: str
    reference: str
    reply: str
    answer: str | None
    well_formed: bool
    correct: bool
    completion_tokens: int


def grade(example: Example, rollout: Rollout) -> Prediction:
    reply = parse_reply(rollout.text)
    return Prediction(
        example_id=example.id,
        image_id=example.image_id,
        answer_type=example.answer_type,
        question=example.question,
        reference=example.answer,
        reply=rollout.text,
        answer=reply.answer,
        well_formed=reply.well_formed,
        correct=is_correct(reply.answer, example.answer, example.options),
        completion_tokens=len(rollout.completion_token_ids),
    )


def predict(
    stream: Dataset,
    pool: SamplerPool,
    max_tokens: int,
    max_model_length: int,
    use_adapter: bool,
    advance: Callable[[int], Any],
) -> list[Prediction]:
    """One prediction per row of an evaluation stream, in its order; `advance(n)` is called for every n done."""
    greedy = SamplingSettings(group_size=1, temperature=0.0, max_tokens=max_tokens)
    predictions: list[Prediction] = []
    for batch in stream.iter_batches(batch_size=REQUESTS_PER_ACTOR * len(pool.actors), batch_format="pyarrow"):
        prepared = unpack(batch)
        for one in prepared:
            require_room(one, max_tokens, max_model_length)
        requests = [SampleRequest(p.example.id, p.prompt, p.pixels) for p in prepared]
        groups = pool.generate(requests, greedy, use_adapter)
        predictions += [grade(p.example, group[0]) for p, group in zip(prepared, groups, strict=True)]
        advance(len(prepared))
    return predictions


def save_predictions(predictions: list[Prediction], path: Path) -> None:
    with replacing(path) as temporary:
        pq.write_table(pa.Table.from_pylist([asdict(p) for p in predictions]), temporary)


def load_predictions(path: Path) -> list[Prediction]:
    return [Prediction(**row) for row in pq.read_table(path).to_pylist()]


def summarise(predictions: list[Prediction]) -> dict[str, Any]:
    """`n`, `accuracy` and its `ci95` as fractions, the share of well-formed replies, and the same by answer type."""
    by_type = {}
    for kind in sorted({p.answer_type for p in predictions}):
        own = [p for p in predictions if p.answer_type == kind]
        by_type[kind] = accuracy_of(own)
    well_formed = sum(p.well_formed for p in predictions) / len(predictions)
    return accuracy_of(predictions) | {"well_formed": well_formed, "by_type": by_type}


def accuracy_of(predictions: list[Prediction]) -> dict[str, Any]:
    correct = [float(p.correct) for p in predictions]
    interval = interval95(correct, [p.image_id for p in predictions])
    return {"n": len(correct), "accuracy": sum(correct) / len(correct), "ci95": list(interval)}


def difference(before: list[Prediction], after: list[Prediction]) -> dict[str, Any]:
    """Paired by question, in percentage points."""
    if [p.example_id for p in before] != [p.example_id for p in after]:
        raise ValueError("the two evaluations are not of the same questions in the same order")
    change = [100.0 * (b.correct - a.correct) for a, b in zip(before, after, strict=True)]
    interval = interval95(change, [p.image_id for p in before])
    return {"points": sum(change) / len(change), "ci95": list(interval)}
