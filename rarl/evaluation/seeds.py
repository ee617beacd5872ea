"""What several seeds have in common: the same questions, or each its own data under the same
ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rarl.evaluation.prediction import Prediction


def question_of(prediction: Prediction) -> tuple[str, str, str]:
    return prediction.example_id, prediction.question, prediction.reference


def asked(replies: Sequence[Prediction]) -> list[tuple[str, str, str]]:
    return [question_of(p) for p in replies]


def same_questions(seeds: Sequence[Sequence[Prediction]]) -> bool:
    """Do all seeds measure on the same questions, or does each draw its own?"""
    questions = [asked(predictions) for predictions in seeds]
    return all(one == questions[0] for one in questions)


def images_of(by_seed: Mapping[int, Sequence[Prediction]]) -> list[str]:
    """The unit of the bootstrap for each reply, in the order of the mapping. Where each seed has
    made its own data, equal ids are other images."""
    shared = same_questions(list(by_seed.values()))
    return [
        p.image_id if shared else f"{seed}/{p.image_id}"
        for seed, one in by_seed.items()
        for p in one
    ]
