"""Which option does the model find most likely, without any decoding? The margin tells how sure it
is.

Each option is scored as the whole reply `<answer>option</answer>` and its end-of-turn token after
the prompt: the sum of the tokens' log-likelihoods in nats, as in multiple-choice evaluation by
likelihood (Brown et al. 2020, section 2.4).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rarl.data.parquet import ParquetRows
from rarl.evaluation.measurements import (
    FINISHED,
    Exam,
    are_in_place,
    folder_of,
    lay_anew,
    part_path,
    parts_of,
)
from rarl.files import replacing, write_text
from rarl.intervals import fraction_intervals95, interval95
from rarl.replies.grading import is_correct, is_yes_no
from rarl.replies.tags import target_text
from rarl.replies.words import same_words
from rarl.rollout.pool import SamplerPool
from rarl.rollout.sampler import LikelihoodRequest
from rarl.schema import PreparedExample

END_OF_TURN = "<|im_end|>"
QUESTIONS_PER_ACTOR = 16
FOLDER = "options"  # within evaluation/


@dataclass(frozen=True)
class OptionsKey:
    """The key of such a measurement: "base" or "trained", and the data set."""

    model: str
    data: str


@dataclass(frozen=True)
class OptionScores:
    """Log-likelihoods (nats) of a question's options; `correct` is the position of the reference
    among them."""

    id: str
    image_id: str
    question: str
    answer: str
    options: list[str]
    logprobs: list[float]
    correct: int

    @property
    def chosen_right(self) -> bool:
        """Whether the reference is the most likely."""
        return self.logprobs.index(max(self.logprobs)) == self.correct

    @property
    def margin(self) -> float:
        """Nats by which the reference leads the best other option; negative if it does not."""
        others = self.logprobs[: self.correct] + self.logprobs[self.correct + 1 :]
        return self.logprobs[self.correct] - max(others)

    @property
    def probability(self) -> float:
        """The probability of the reference among the options alone."""
        top = max(self.logprobs)
        shares = [math.exp(one - top) for one in self.logprobs]
        return shares[self.correct] / sum(shares)


def options_of(answer: str, options: Sequence[str] | None) -> list[str]:
    """Returns the options that a question can be scored by: its own, or yes and no, or nothing if
    it is open."""
    return list(options or (["yes", "no"] if is_yes_no(answer) else []))


def stored_scores(folder: Path) -> list[OptionScores]:
    """Returns the scores on disk, in the order of the questions."""
    return [one for part in parts_of(folder) for one in scores_in(part)]


def scores_in(part: Path) -> list[OptionScores]:
    """Returns the scores of a file."""
    names = [one.name for one in fields(OptionScores)]
    return [OptionScores(**row) for row in pq.ParquetFile(part).read(columns=names).to_pylist()]


def write_scores(path: Path, scores: Sequence[OptionScores]) -> None:
    """Writes scores, whole or not at all, with what is computed of them as further columns."""
    told = [{"margin": one.margin, "probability": one.probability} for one in scores]
    rows = [vars(one) | more for one, more in zip(scores, told, strict=True)]
    with replacing(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows), temporary)


def read_scores(folder: Path, exam: Exam) -> dict[int, OptionScores]:
    """Returns the scores on disk by place, and lays files anew whose questions have other places by
    now, as `look_up` does. Raises UserError if the questions have changed."""
    stored = {part: scores_in(part) for part in parts_of(folder)}
    whole = [one for part in stored.values() for one in part]
    places = exam.places_of([(one.id, one.question, one.answer) for one in whole], folder)
    scores, ordered = dict(zip(places, whole, strict=True)), iter(places)
    if not are_in_place({path: [next(ordered) for _ in part] for path, part in stored.items()}):
        lay_anew(folder, scores, write_scores)
    return scores


def missing_options(key: OptionsKey, evaluation: Path, exam: Exam) -> list[int]:
    """Returns the places of the questions that have options, and no scores on disk yet."""
    scores = read_scores(folder_of(evaluation / FOLDER, key), exam)
    choices = ParquetRows(exam.preparer.data_path).column("options")
    return [
        place
        for place, (row, (_, _, answer)) in enumerate(zip(exam.rows, exam.questions, strict=True))
        if place not in scores and options_of(answer, choices[row])
    ]


def score_options(
    key: OptionsKey,
    evaluation: Path,
    exam: Exam,
    pool: SamplerPool | None,
    advance: Callable[[int], Any],
) -> list[OptionScores]:
    """Scores what is missing, writes it batch by batch, and returns the scores of all questions
    that have options, in order. The pool may be None if nothing is missing."""
    folder = folder_of(evaluation / FOLDER, key)
    scores, missing = read_scores(folder, exam), missing_options(key, evaluation, exam)
    advance(len(exam.rows) - len(missing))
    if missing:
        assert pool is not None, "scores are missing, and there is nobody to ask"
        (folder / FINISHED).unlink(missing_ok=True)
        for places, prepared in exam.batches(missing, QUESTIONS_PER_ACTOR * len(pool.actors)):
            new = score_batch(prepared, pool, key.model != "base")
            write_scores(part_path(folder, places[0]), new)
            scores |= zip(places, new, strict=True)
            advance(len(places))
    write_text(folder / FINISHED, "")
    return [scores[place] for place in sorted(scores)]


def score_batch(
    prepared: Sequence[PreparedExample], pool: SamplerPool, use_adapter: bool
) -> list[OptionScores]:
    """Returns the scores of questions that all have options."""
    requests, scores = [], []
    asked = [(one.example, options_of(one.example.answer, one.example.options)) for one in prepared]
    for one, (_, options) in zip(prepared, asked, strict=True):
        replies = [target_text("answer", "", option) + END_OF_TURN for option in options]
        requests.append(LikelihoodRequest(one.prompt.text, one.pixels, replies))
    scored = pool.score(requests, use_adapter).result()
    for (its, options), tokens in zip(asked, scored, strict=True):
        logprobs = [float(sum(one)) for one in tokens]
        is_right = same_words if its.options else partial(is_correct, options=None)
        right = [is_right(option, its.answer) for option in options].index(True)
        known = (its.id, its.image_id, its.question, its.answer)
        scores.append(OptionScores(*known, options, logprobs, right))
    return scores


def summarise_options(scores: Sequence[OptionScores]) -> dict[str, Any]:
    """Returns `accuracy` by likelihood, `margin` (nats) and `probability` of the reference, each
    with n, mean and interval."""
    images = [one.image_id for one in scores]
    columns = {
        "accuracy": [float(one.chosen_right) for one in scores],
        "probability": [one.probability for one in scores],
        "margin": [one.margin for one in scores],
    }
    fractions = [(columns[name], images) for name in ("accuracy", "probability")]
    intervals = [*fraction_intervals95(fractions), interval95(columns["margin"], images)]
    return {
        name: {"n": len(values), "mean": math.fsum(values) / len(values), "ci95": list(interval)}
        for (name, values), interval in zip(columns.items(), intervals, strict=True)
    }
