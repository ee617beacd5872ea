"""Which option does the model find most likely, without any decoding? The margin tells how sure it
is.

Each option is scored as the whole reply `<answer>option</answer>` and its end-of-turn token after
the prompt: the sum of the tokens' log-likelihoods in nats, as in multiple-choice evaluation by
likelihood (Brown et al. 2020, section 2.4).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from ray.data import Dataset

from rarl.data.prepared import PreparedExample
from rarl.data.stream import unpack
from rarl.evaluation.summary import Column, means_of
from rarl.files import replacing
from rarl.replies.grading import is_yes_no
from rarl.replies.tags import target_text
from rarl.replies.words import same_words
from rarl.rollout.pool import SamplerPool
from rarl.rollout.sampler import ScoreRequest

END_OF_TURN = "<|im_end|>"
QUESTIONS_PER_ACTOR = 16


@dataclass(frozen=True)
class OptionScores:
    """Log-likelihoods (nats) of a question's options; `correct` is the position of the reference
    among them."""

    example_id: str
    image_id: str
    options: list[str]
    logprobs: list[float]
    correct: int

    @property
    def chosen_right(self) -> bool:
        return max(range(len(self.logprobs)), key=self.logprobs.__getitem__) == self.correct

    @property
    def margin(self) -> float:
        """Nats by which the reference leads the best other option; negative where it does not."""
        return self.logprobs[self.correct] - max(
            p for i, p in enumerate(self.logprobs) if i != self.correct
        )

    @property
    def probability(self) -> float:
        """Of the reference, among the options alone."""
        top = max(self.logprobs)
        return math.exp(self.logprobs[self.correct] - top) / sum(
            math.exp(p - top) for p in self.logprobs
        )


def options_of(prepared: PreparedExample) -> list[str] | None:
    """The options that a question can be scored by: its own, or yes and no. None for open
    questions."""
    example = prepared.example
    if example.options:
        return list(example.options)
    return ["yes", "no"] if is_yes_no(example.answer) else None


def score_options(
    stream: Dataset, pool: SamplerPool, use_adapter: bool, advance: Callable[[int], Any]
) -> list[OptionScores]:
    """One entry for each question of the stream that has options, in its order."""
    scores: list[OptionScores] = []
    for batch in stream.iter_batches(
        batch_size=QUESTIONS_PER_ACTOR * len(pool.actors), batch_format="pyarrow"
    ):
        prepared = unpack(batch)
        asked = [(one, options) for one in prepared if (options := options_of(one))]
        requests = [
            ScoreRequest(
                p.prompt.text,
                p.pixels,
                [target_text("answer", "", o) + END_OF_TURN for o in options],
            )
            for p, options in asked
        ]
        for (one, options), logprobs in zip(asked, pool.score(requests, use_adapter), strict=True):
            example = one.example
            correct = next(
                i for i, option in enumerate(options) if same_words(option, example.answer)
            )
            scores.append(OptionScores(example.id, example.image_id, options, logprobs, correct))
        advance(len(prepared))
    return scores


def save_option_scores(scores: Sequence[OptionScores], path: Path) -> None:
    rows = [vars(one) | {"margin": one.margin, "probability": one.probability} for one in scores]
    with replacing(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows), temporary)


def summarise_options(scores: Sequence[OptionScores]) -> dict[str, Any]:
    """`accuracy` by likelihood, `margin` (nats) and `probability` of the reference, each with n,
    mean and interval."""
    images = [one.image_id for one in scores]
    columns: dict[tuple[str, ...], Column] = {
        ("accuracy",): Column([float(one.chosen_right) for one in scores], images),
        ("margin",): Column([one.margin for one in scores], images),
        ("probability",): Column([one.probability for one in scores], images),
    }
    return {key[0]: mean for key, mean in means_of(columns).items()}
