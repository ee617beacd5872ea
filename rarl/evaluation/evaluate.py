"""Greedy answers of a whole data set through the vLLM actors, graded."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from ray.data import Dataset

from rarl.config import RewardConfig
from rarl.data.prepare import PreparedExample, require_room
from rarl.data.stream import unpack
from rarl.evaluation.intervals import interval95
from rarl.files import replacing
from rarl.judge.candidate import candidate_of
from rarl.judge.judge import Judge
from rarl.replies.grading import is_correct
from rarl.replies.tags import parse_reply
from rarl.rewards.reasoning import reasoning_reward
from rarl.rewards.total import ScoredReply, score_groups
from rarl.rollout.pool import SamplerPool
from rarl.rollout.sampler import SampleRequest, SamplingSettings
from rarl.schema import Rollout, Verdict

REQUESTS_PER_ACTOR = 64  # in flight at a time; vLLM batches them
REASONING = {"reasoning": RewardConfig(weight=1.0)}


@dataclass(frozen=True)
class Prediction:
    """One reply. `correct` is exact: the option, yes or no, or the reference's words. `reasoning` is the reward of that
    name, None where the prompt asks for no thinking or nothing is known to compare it with. The judge's part is None
    where none was asked, its scores also where it could not be reached."""

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


def grade(prepared: PreparedExample, rollout: Rollout, verdict: Verdict | None) -> Prediction:
    example, prompt = prepared.example, prepared.prompt
    reply = parse_reply(rollout.text, prompt.form)
    [score] = score_groups([[ScoredReply(example, prompt, rollout.text)]], {"reasoning": reasoning_reward}, REASONING)
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
    )


@dataclass(frozen=True)
class Asking:
    """How a measurement asks: greedily, with these bounds, of the adapter or of the base model."""

    max_tokens: int
    max_model_length: int
    use_adapter: bool


def predict(
    stream: Dataset, pool: SamplerPool, asking: Asking, judge: Judge | None, advance: Callable[[int], Any]
) -> list[Prediction]:
    """One prediction per row of an evaluation stream, in its order; `advance(n)` is called for every n done. Each
    reply is judged while others are still being made."""
    greedy = SamplingSettings(group_size=1, temperature=0.0, max_tokens=asking.max_tokens)
    predictions: list[Prediction] = []
    for batch in stream.iter_batches(batch_size=REQUESTS_PER_ACTOR * len(pool.actors), batch_format="pyarrow"):
        prepared = unpack(batch)
        for one in prepared:
            require_room(one, asking.max_tokens, asking.max_model_length)
        requests = [SampleRequest(p.example.id, p.prompt.text, p.pixels) for p in prepared]
        verdicts: list[Future[Verdict] | None] = [None] * len(prepared)

        def ask_judge(index: int, group: list[Rollout], prepared: Any = prepared, verdicts: Any = verdicts) -> None:
            if judge is not None:
                one = prepared[index]
                [verdicts[index]] = judge.submit([candidate_of(one.example, one.prompt, group[0].text)])

        groups = pool.submit(requests, greedy, asking.use_adapter, on_group=ask_judge).result()
        for one, group, verdict in zip(prepared, groups, verdicts, strict=True):
            predictions.append(grade(one, group[0], verdict.result() if verdict else None))
        advance(len(prepared))
    return predictions


def save_predictions(predictions: list[Prediction], path: Path) -> None:
    with replacing(path) as temporary:
        pq.write_table(pa.Table.from_pylist([asdict(p) for p in predictions]), temporary)


def load_predictions(path: Path) -> list[Prediction]:
    return [Prediction(**row) for row in pq.read_table(path).to_pylist()]


def summarise(predictions: list[Prediction]) -> dict[str, Any]:
    """`n`, `accuracy` and its `ci95` as fractions, the share of well-formed replies, the same by answer type, and the
    reasoning score and the judge's, where there are any."""
    by_type = {}
    for kind in sorted({p.answer_type for p in predictions}):
        own = [p for p in predictions if p.answer_type == kind]
        by_type[kind] = accuracy_of(own)
    well_formed = sum(p.well_formed for p in predictions) / len(predictions)
    summary = accuracy_of(predictions) | {"well_formed": well_formed, "by_type": by_type}
    summary["reasoning"] = mean_of(predictions, [p.reasoning for p in predictions])
    if any(p.judge_status for p in predictions):
        summary["judge"] = {
            "correctness": mean_of(predictions, [p.judge_correctness for p in predictions]),
            "explanation": mean_of(predictions, [p.judge_explanation for p in predictions]),
            "unparsable": sum(p.judge_status == "unparsable" for p in predictions),
            "unreachable": sum(p.judge_status == "unreachable" for p in predictions),
        }
    return summary


def accuracy_of(predictions: list[Prediction]) -> dict[str, Any]:
    correct = [float(p.correct) for p in predictions]
    interval = interval95(correct, [p.image_id for p in predictions])
    return {"n": len(correct), "accuracy": sum(correct) / len(correct), "ci95": list(interval)}


def mean_of(predictions: list[Prediction], values: list[float | None]) -> dict[str, Any] | None:
    """Mean and interval over what could be scored; None where nothing could."""
    known = [(value, p.image_id) for value, p in zip(values, predictions, strict=True) if value is not None]
    if not known:
        return None
    numbers, images = zip(*known, strict=True)
    return {"n": len(known), "mean": sum(numbers) / len(numbers), "ci95": list(interval95(numbers, images))}


def difference(before: list[Prediction], after: list[Prediction]) -> dict[str, Any]:
    """Paired by question, in percentage points: of the accuracy, and of the reasoning score where both have it."""
    if [p.example_id for p in before] != [p.example_id for p in after]:
        raise ValueError("the two evaluations are not of the same questions in the same order")
    change: list[float | None] = [100.0 * (b.correct - a.correct) for a, b in zip(before, after, strict=True)]
    reasons = [
        None if a.reasoning is None or b.reasoning is None else 100.0 * (b.reasoning - a.reasoning)
        for a, b in zip(before, after, strict=True)
    ]
    return points(before, change) | {
        "reasoning": points(before, reasons) if any(r is not None for r in reasons) else None
    }


def points(predictions: list[Prediction], change: list[float | None]) -> dict[str, Any]:
    summary = mean_of(predictions, change)
    assert summary is not None
    return {"points": summary["mean"], "ci95": summary["ci95"]}
