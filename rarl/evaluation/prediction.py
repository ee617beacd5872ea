"""One measured reply, and the files of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rarl.config import RewardConfig
from rarl.data.prepared import PreparedExample
from rarl.files import replacing
from rarl.replies.grading import is_correct
from rarl.replies.tags import parse_reply
from rarl.rewards.thinking import reasoning_reward
from rarl.rewards.total import ScoredReply, score_groups
from rarl.schema import Rollout, Verdict

REASONING = {"reasoning": RewardConfig(weight=1.0)}


@dataclass(frozen=True)
class Prediction:
    """One reply. `correct` is exact: the option, yes or no, or the reference's words. `reasoning`
    is the reward of that name, None where the prompt asks for no thinking or nothing is known to
    compare it with. The judge's part is None where none was asked, its scores also where it could
    not be reached. `seconds` is from the batch's start to this reply, since a batch is answered
    together."""

    example_id: str
    image_id: str
    answer_type: str
    question: str
    reference: str
    wording: str
    reply: str
    answer: str | None
    well_formed: bool
    correct: bool
    completion_tokens: int
    reasoning: float | None = None
    judge_status: str | None = None
    judge_correctness: float | None = None
    judge_explanation: float | None = None
    judge_reason: str | None = None
    options: list[str] | None = None
    rationale: str | None = None
    modality: str | None = None
    organ: str | None = None
    prompt: str = ""
    seconds: float | None = None
    sample: int = 0  # number of the reply, where several were drawn for a question


def grade(
    prepared: PreparedExample,
    rollout: Rollout,
    verdict: Verdict | None,
    seconds: float | None = None,
    sample: int = 0,
) -> Prediction:
    example, prompt = prepared.example, prepared.prompt
    reply = parse_reply(rollout.text, prompt.form)
    [score] = score_groups(
        [[ScoredReply(example, prompt, rollout.text)]], {"reasoning": reasoning_reward}, REASONING
    )
    return Prediction(
        example_id=example.id,
        image_id=example.image_id,
        answer_type=example.answer_type,
        question=example.question,
        reference=example.answer,
        wording=prompt.wording,
        reply=rollout.text,
        answer=reply.answer,
        well_formed=reply.well_formed,
        correct=is_correct(reply.answer, example.answer, example.options),
        completion_tokens=len(rollout.completion_token_ids),
        reasoning=score[0].rewards["reasoning"],
        judge_status=verdict.status if verdict else None,
        judge_correctness=verdict.correctness if verdict else None,
        judge_explanation=verdict.explanation if verdict else None,
        judge_reason=verdict.reason if verdict else None,
        options=list(example.options) if example.options else None,
        rationale=example.rationale,
        modality=example.modality,
        organ=example.organ,
        prompt=prompt.text,
        seconds=seconds,
        sample=sample,
    )


SCHEMA = pa.schema(
    [
        ("example_id", pa.string()),
        ("image_id", pa.string()),
        ("answer_type", pa.string()),
        ("question", pa.string()),
        ("reference", pa.string()),
        ("wording", pa.string()),
        ("reply", pa.string()),
        ("answer", pa.string()),
        ("well_formed", pa.bool_()),
        ("correct", pa.bool_()),
        ("completion_tokens", pa.int64()),
        ("reasoning", pa.float64()),
        ("judge_status", pa.string()),
        ("judge_correctness", pa.float64()),
        ("judge_explanation", pa.float64()),
        ("judge_reason", pa.string()),
        ("options", pa.list_(pa.string())),
        ("rationale", pa.string()),
        ("modality", pa.string()),
        ("organ", pa.string()),
        ("prompt", pa.string()),
        ("seconds", pa.float64()),
        ("sample", pa.int64()),
    ]
)


def save_predictions(predictions: Sequence[Prediction], path: Path) -> None:
    """One Parquet file, whole or not at all."""
    with replacing(path) as temporary:
        pq.write_table(
            pa.Table.from_pylist([asdict(p) for p in predictions], schema=SCHEMA), temporary
        )


def load_predictions(path: Path) -> list[Prediction]:
    return [Prediction(**row) for row in pq.read_table(path).to_pylist()]
