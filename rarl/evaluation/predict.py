"""The replies of a whole data set through the vLLM actors, graded. Every finished batch is on disk
at once, so a measurement that is killed goes on where it stopped."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.data import Dataset

from rarl.data.order import sampling_seed
from rarl.data.prepared import PreparedExample, require_room
from rarl.data.stream import unpack
from rarl.errors import UserError
from rarl.evaluation.prediction import Prediction, grade, load_predictions, save_predictions
from rarl.judge.candidate import candidate_of
from rarl.judge.judge import Judge
from rarl.prompts import without_image
from rarl.rollout.pool import SamplerPool
from rarl.rollout.sampler import SampleRequest, SamplingSettings
from rarl.schema import Rollout, Verdict
from rarl.system.placement import REQUESTS_PER_ACTOR


@dataclass(frozen=True)
class Asking:
    """How a measurement asks: of the adapter or of the base model, with these bounds; greedily, or
    `samples` replies for each question at `temperature`; with the image or, as a floor, without."""

    max_tokens: int
    max_model_length: int
    use_adapter: bool
    samples: int = 1
    temperature: float = 0.0
    seed: int = 0
    show_image: bool = True

    def request(self, prepared: PreparedExample, position: int) -> SampleRequest:
        """`position` is the example's place in the data set, of which the samples' seeds are a
        function."""
        require_room(prepared, self.max_tokens, self.max_model_length)
        prompt = prepared.prompt.text
        seed = sampling_seed(self.seed, 0, position, self.samples)
        if not self.show_image:
            return SampleRequest(prepared.example.id, without_image(prompt), None, seed)
        return SampleRequest(prepared.example.id, prompt, prepared.pixels, seed)


@dataclass(frozen=True)
class PartsOnDisk:
    """A measurement in the making: a folder beside the file that it will be, with one file for each
    finished batch."""

    path: Path

    @property
    def folder(self) -> Path:
        return self.path.with_suffix(".parts")

    def load(self) -> list[Prediction]:
        return [
            p for part in sorted(self.folder.glob("[0-9]*.parquet")) for p in load_predictions(part)
        ]

    def add(self, predictions: Sequence[Prediction], position: int) -> None:
        """`position` is the number of replies before these."""
        save_predictions(predictions, self.folder / f"{position:08d}.parquet")

    def finish(self, predictions: Sequence[Prediction]) -> None:
        save_predictions(predictions, self.path)
        shutil.rmtree(self.folder, ignore_errors=True)


def measure(
    stream: Dataset,
    pool: SamplerPool,
    asking: Asking,
    judge: Judge | None,
    path: Path,
    advance: Callable[[int], Any],
) -> list[Prediction]:
    """The predictions of an evaluation stream, in its order, written to `path`; `advance(n)` is
    called for every n questions done. Continues what an interrupted call left. Raises UserError
    when that is of other questions."""
    parts = PartsOnDisk(path)
    predictions = parts.load()
    advance(len(predictions) // asking.samples)
    for new in predict(stream, pool, asking, judge, predictions):
        parts.add(new, len(predictions))
        predictions += new
        advance(len(new) // asking.samples)
    parts.finish(predictions)
    return predictions


def predict(
    stream: Dataset,
    pool: SamplerPool,
    asking: Asking,
    judge: Judge | None,
    done: Sequence[Prediction] = (),
) -> Iterator[list[Prediction]]:
    """Batch by batch, `asking.samples` predictions for each row of the stream after those that are
    `done`. Each reply is judged while others are still being made."""
    first, position = done[:: asking.samples], 0
    for batch in stream.iter_batches(
        batch_size=REQUESTS_PER_ACTOR * len(pool.actors), batch_format="pyarrow"
    ):
        prepared = unpack(batch)
        for one, kept in zip(prepared, first[position:], strict=False):
            if one.example.id != kept.example_id:
                raise UserError(
                    f"an interrupted measurement holds question '{kept.example_id}' where the data now has "
                    f"'{one.example.id}': delete the folders evaluation/*.parts of the run directory to begin anew"
                )
        skipped = min(len(prepared), max(0, len(first) - position))
        if skipped < len(prepared):
            yield answer_batch(prepared[skipped:], position + skipped, pool, asking, judge)
        position += len(prepared)


def answer_batch(
    prepared: list[PreparedExample],
    position: int,
    pool: SamplerPool,
    asking: Asking,
    judge: Judge | None,
) -> list[Prediction]:
    """All samples of the first question, then of the second, and so on. `position` is the first
    one's place."""
    sampling = SamplingSettings(asking.samples, asking.temperature, asking.max_tokens)
    verdicts: list[list[Future[Verdict]]] = [[] for _ in prepared]
    seconds = [0.0] * len(prepared)
    started = time.monotonic()

    def take_in(index: int, group: list[Rollout]) -> None:
        seconds[index] = time.monotonic() - started
        if judge is not None:
            one = prepared[index]
            verdicts[index] = judge.submit(
                [candidate_of(one.example, one.prompt, reply.text) for reply in group]
            )

    requests = [asking.request(one, position + index) for index, one in enumerate(prepared)]
    groups = pool.submit(requests, sampling, asking.use_adapter, on_group=take_in).result()
    predictions = []
    for index, (one, group) in enumerate(zip(prepared, groups, strict=True)):
        for number, reply in enumerate(group):
            verdict = verdicts[index][number].result() if verdicts[index] else None
            predictions.append(grade(one, reply, verdict, seconds[index], number))
    return predictions
