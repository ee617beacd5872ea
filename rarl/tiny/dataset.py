"""Phantoms as Examples: the tiny world's data sets."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rarl.data.parquet import write_examples
from rarl.prepare.facts import FactQuestion, find_facts
from rarl.schema import AnswerType, Box, Example
from rarl.tiny.phantoms import (
    ORGANS,
    WORDINGS,
    Domain,
    Facts,
    Topic,
    answer_for,
    draw_boxed,
    draw_facts,
    options_for,
    questions_for,
    rationale_for,
)

MODALITY: dict[Domain, str] = {"seen": "phantom-xray", "unseen": "phantom-mr"}
ANSWER_TYPE: dict[Topic, AnswerType] = {"organ": "choice", "lesion": "closed", "side": "choice"}


def make_example(
    facts: Facts,
    domain: Domain,
    question: Topic,
    image: bytes,
    image_id: str,
    rng: np.random.Generator,
    boxes: tuple[Box, ...] | None = None,
) -> Example:
    """One question about one picture, in one of the domain's wordings, options in random order."""
    return phantom_example(
        facts,
        domain,
        image,
        image_id,
        boxes,
        id=f"{image_id}-{question}",
        question=str(rng.choice(WORDINGS[domain][question])),
        answer=answer_for(question, facts),
        answer_type=ANSWER_TYPE[question],
        options=options_for(question, rng),
        dataset=f"phantoms-{domain}",
    )


def phantom_example(
    facts: Facts,
    domain: Domain,
    image: bytes,
    image_id: str,
    boxes: tuple[Box, ...] | None,
    **asked: Any,
) -> Example:
    """Returns a question about one picture of a phantom; `asked` are the fields of the question and
    of its answer, with the id and the data set."""
    return Example(
        images=(image,),
        image_id=image_id,
        boxes=boxes,
        rationale=rationale_for(facts),
        modality=MODALITY[domain],
        organ=facts.organ,
        **asked,
    )


def draw_examples(
    domain: Domain, count: int, seed: int, split: str, organs: Sequence[str] = ORGANS
) -> list[Example]:
    """`count` questions about as many pictures as they need, a pure function of domain, seed, split
    and organs."""
    rng = np.random.default_rng([seed, *f"{domain}/{split}".encode()])
    examples: list[Example] = []
    picture = 0
    while len(examples) < count:
        facts = draw_facts(rng, organs)
        encoded = io.BytesIO()
        pixels, boxes = draw_boxed(facts, domain, rng)
        Image.fromarray(pixels).save(encoded, format="PNG")
        name = f"{domain}-{split}-{picture:05d}"
        for question in questions_for(facts):
            image = encoded.getvalue()
            examples.append(make_example(facts, domain, question, image, name, rng, boxes))
        picture += 1
    return examples[:count]


# What `configs/demo.yaml` names. The method is meant for a few hundred to a thousand questions.
TRAINED = 960


def write_train(path: Path, seed: int) -> None:
    write_examples(path, draw_examples("seen", TRAINED, seed, "train"))


def write_train_with_facts(path: Path, seed: int) -> None:
    """Writes the same questions with the sentences of their rationales as facts, beside those of
    other images, as `rarl prepare` puts them."""
    examples = draw_examples("seen", TRAINED, seed, "train")
    told = [
        FactQuestion(
            *(one.image_id, one.organ, one.question, one.answer),
            given=tuple(filter(None, (one.rationale or "").split(". "))),
        )
        for one in examples
    ]
    found = zip(examples, find_facts(told, siblings=False), strict=True)
    write_examples(
        path, (replace(one, facts=known.facts, other_facts=known.others) for one, known in found)
    )


def write_seen_test(path: Path, seed: int) -> None:
    write_examples(path, draw_examples("seen", 400, seed, "test"))


def write_unseen_test(path: Path, seed: int) -> None:
    write_examples(path, draw_examples("unseen", 400, seed, "test"))


# What `configs/federate/tiny.yaml` names: two sites that see two organs each. The options of a
# question are all four, so that a site's answers to the other's pictures can be right.
NORTH, SOUTH = ("chest", "brain"), ("abdomen", "knee")


def write_north_train(path: Path, seed: int) -> None:
    write_examples(path, draw_examples("seen", 240, seed, "north-train", NORTH))


def write_south_train(path: Path, seed: int) -> None:
    write_examples(path, draw_examples("seen", 240, seed, "south-train", SOUTH))


def write_north_test(path: Path, seed: int) -> None:
    write_examples(path, draw_examples("seen", 200, seed, "north-test", NORTH))


def write_south_test(path: Path, seed: int) -> None:
    write_examples(path, draw_examples("seen", 200, seed, "south-test", SOUTH))


def base_model() -> Path:
    """The base checkpoint that ships with the package."""
    return Path(__file__).parent / "base"
