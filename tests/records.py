"""Samples with known grades and exams for them, for the tests of measurements and of what is made
from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rarl.data.stream import PreparerSettings
from rarl.evaluation.measurements import (
    FINISHED,
    Exam,
    Measurement,
    folder_of,
    part_path,
    read_finished,
    write_part,
)
from rarl.evaluation.metrics import GRADE_SETTINGS, GRADES
from rarl.prompts import plain_prompt
from rarl.rewards.total import score_groups
from rarl.rollout.sampler import SamplingSettings
from rarl.samples import Sample
from rarl.schema import Example, Prompt, ReplyForm, Rollout, Score, Verdict

KEY = Measurement("base", "d", "plain")


def example(index: int = 0, **changes: Any) -> Example:
    """A closed question about an image of its own."""
    values: dict[str, Any] = {
        "id": str(index),
        "images": (),
        "image_id": f"image-{index}",
        "question": "q",
        "answer": "yes",
        "answer_type": "closed",
    }
    return Example(**values | changes)


def reply_to(
    asked: Example,
    answer: str | None,
    grades: dict[str, Any] | None = None,
    wording: str = "plain/0",
    text: str | None = None,
    tokens: int = 5,
    verdict: Verdict | None = None,
    number: int = 0,
) -> Sample:
    """A reply with this answer (None: one without tags); grades that are not given are its own."""
    if text is None:
        text = "no tags" if answer is None else f"<think>Seen.</think><answer>{answer}</answer>"
    form: ReplyForm = "answer" if wording.startswith("none") else "think"
    rollout = Rollout(text, list(range(tokens)), "stop", 0)
    sample = Sample(asked, Prompt("p", wording, form), rollout, number, verdict=verdict)
    given = {name: None if one is None else float(one) for name, one in (grades or {}).items()}
    score_groups(
        [[sample]], {n: one for n, one in GRADES.items() if n not in given}, GRADE_SETTINGS
    )
    sample.score = Score(0.0, {**sample.rewards, **given})
    return sample


def graded(index: int, correct: bool, kind: str = "closed", image: str | None = None) -> Sample:
    """A reply of which nothing matters but whether it is right."""
    asked = example(index, answer_type=kind, image_id=image or f"image-{index}")
    return reply_to(asked, "yes", {"correct": correct, "reasoning": None})


def rights(samples: Sequence[Sample]) -> list[float]:
    """Which replies are exactly right."""
    return [one.rewards["correct"] or 0.0 for one in samples]


def write_measurement(evaluation: Path, key: Measurement, samples: Sequence[Sample]) -> None:
    """A whole measurement on disk."""
    folder = folder_of(evaluation, key)
    write_part(part_path(folder, 0), samples)
    (folder / FINISHED).write_text("")


def read_measurement(evaluation: Path, key: Measurement) -> list[Sample]:
    """What a measurement holds."""
    samples = read_finished(evaluation, key)
    assert samples is not None, key
    return samples


def spoil(
    evaluation: Path, key: Measurement, change: Callable[[Sample], Sample], places: Iterable[int]
) -> None:
    """Other replies at some places of a measurement."""
    samples = read_measurement(evaluation, key)
    for place in places:
        samples[place] = change(samples[place])
    write_measurement(evaluation, key, samples)


def numbered(samples: Sequence[Sample], count: int) -> list[Sample]:
    """Each reply `count` times, as if so many were drawn."""
    return [replace(one, number=number) for one in samples for number in range(count)]


def exam(dataset: Path, model_path: str, rows: Any, samples: int = 1, **changes: Any) -> Exam:
    """What is measured on these rows of the data, with the plain prompt."""
    temperature = 1.0 if samples > 1 else 0.0
    preparer = PreparerSettings(str(dataset), model_path, plain_prompt())
    return Exam(preparer, np.asarray(rows), SamplingSettings(samples, temperature, 48), **changes)


def answers(samples: list[Sample]) -> list[str]:
    """The texts of the replies."""
    return [one.rollout.text for one in samples]
