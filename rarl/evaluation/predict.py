"""Greedy answers of a whole data set through the vLLM actors, graded."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from ray.data import Dataset

from rarl.data.prepare import require_room
from rarl.data.stream import unpack
from rarl.evaluation.prediction import Prediction, grade
from rarl.judge.candidate import candidate_of
from rarl.judge.judge import Judge
from rarl.rollout.pool import SamplerPool
from rarl.rollout.sampler import SampleRequest, SamplingSettings
from rarl.schema import Rollout, Verdict

REQUESTS_PER_ACTOR = 64  # in flight at a time; vLLM batches them


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
