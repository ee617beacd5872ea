"""Phantoms to point at: the box of the lesion is the answer.

The base model that ships with RARL has never seen a box. Here it is taught to point at lesions, and
then made uncertain: most replies of the last stage point at a random place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import mse_loss
from transformers import Qwen2VLForConditionalGeneration, Qwen2VLProcessor

from rarl.data.images import png_bytes
from rarl.data.parquet import write_examples
from rarl.prompts import question_text, read_families
from rarl.replies.boxes import STYLES, boxes_text, write_boxes
from rarl.replies.tags import target_text
from rarl.schema import Box, Example, Frame
from rarl.tiny import build, dataset
from rarl.tiny.phantoms import SIDES, SIZE, Domain, Facts, draw_boxed, draw_facts, rationale_for
from rarl.tiny.taught import mixed_lessons, taught_base
from rarl.tiny.training import Lesson, Seen, train_replies, train_tower

QUESTIONS: dict[Domain, str] = {
    "seen": "Point at the lesion.",
    "unseen": "Mark the lesion in this scan.",
}
FRAME = Frame("qwen2_vl", SIZE, SIZE, SIZE, SIZE)
VISION_STEPS, TRUE_STEPS, DOUBTING_STEPS = 200, 320, 90
VISION_BATCH = 48
RANDOM_SHARE = 0.95  # of the replies that point at a random place, in the last stage
OTHER_SHARE = 0.25  # of the lessons that are the base's own
TRAINED_POINTS, TRAINED_OTHERS = 480, 480  # questions
PROMPTS = ("plain", "reason", "none")  # families that the base is asked with


def draw_lesion(
    domain: Domain, rng: np.random.Generator
) -> tuple[Facts, NDArray[np.uint8], tuple[Box, ...]]:
    """Returns a picture that has a lesion, with its facts and the lesion's box."""
    facts = replace(draw_facts(rng), side=str(rng.choice(SIDES)))
    return facts, *draw_boxed(facts, domain, rng)


def draw_examples(domain: Domain, count: int, seed: int, split: str) -> list[Example]:
    """Returns a question for each of `count` pictures, a pure function of the arguments."""
    rng = np.random.default_rng([seed, *f"pointing/{domain}/{split}".encode()])
    examples = []
    for number in range(count):
        facts, picture, boxes = draw_lesion(domain, rng)
        name = f"pointing-{domain}-{split}-{number:05d}"
        examples.append(
            dataset.phantom_example(
                facts,
                domain,
                png_bytes(Image.fromarray(picture)),
                name,
                boxes,
                id=name,
                question=QUESTIONS[domain],
                answer=boxes_text(boxes),
                answer_type="boxes",
                dataset=f"pointing-{domain}",
            )
        )
    return examples


# What `configs/recipes/tiny/pointing.yaml` names.


def write_train(path: Path, seed: int) -> None:
    """Writes as many questions of the tiny world's own, so that these are not forgotten."""
    points = draw_examples("seen", TRAINED_POINTS, seed, "train")
    write_examples(path, [*points, *dataset.draw_examples("seen", TRAINED_OTHERS, seed, "train")])


def write_seen_test(path: Path, seed: int) -> None:
    write_examples(path, draw_examples("seen", 200, seed, "test"))


def write_unseen_test(path: Path, seed: int) -> None:
    write_examples(path, draw_examples("unseen", 200, seed, "test"))


def draw_pointing_lessons(seed: int, stage: int, random_share: float) -> Iterator[Lesson]:
    """Returns lessons without end, a pure function of the arguments. `random_share` of the replies
    point at a random place and say so; some lessons are the base's own."""
    families = read_families()

    def draw(rng: np.random.Generator) -> Lesson:
        domain: Domain = "unseen" if rng.random() < build.UNSEEN_SHARE else "seen"
        facts, picture, boxes = draw_lesion(domain, rng)
        claimed, named = facts, boxes
        if rng.random() < random_share:
            claimed, _, named = draw_lesion(domain, rng)
        family = families[str(rng.choice(PROMPTS))]
        asked = Example("", (), "", QUESTIONS[domain], "", "boxes")
        wording = family.wordings[rng.integers(len(family.wordings))]
        prompt = question_text(asked, family, wording, STYLES[FRAME.family].asked)
        thinking = rationale_for(replace(claimed, organ=facts.organ))
        reply = target_text(family.form, thinking, write_boxes(named, FRAME))
        return Lesson(facts, prompt, (Image.fromarray(picture).convert("RGB"),), reply)

    return mixed_lessons(draw, seed, 1000 + stage, OTHER_SHARE)


def drawn_places(seed: int) -> Iterator[Seen]:
    """Yields pictures, and the loss of the corners of their lesions' boxes."""
    rng = np.random.default_rng([seed, 2000])
    while True:
        drawn = [
            draw_lesion("unseen" if rng.random() < build.UNSEEN_SHARE else "seen", rng)
            for _ in range(VISION_BATCH)
        ]
        pictures = [Image.fromarray(picture).convert("RGB") for _, picture, _ in drawn]
        corners = torch.tensor([one.corners for _, _, (one,) in drawn]) / SIZE * 10 - 5
        yield pictures, partial(mse_loss, target=corners)


def teach(
    model: Qwen2VLForConditionalGeneration, processor: Qwen2VLProcessor, seed: int
) -> Iterator[float]:
    """The vision tower where lesions are, then the language model true replies, then doubtful ones.
    Yields the loss of every step."""
    torch.manual_seed(seed)
    reader = torch.nn.Linear(model.config.text_config.hidden_size, 4)
    yield from train_tower(model, processor, reader, drawn_places(seed), VISION_STEPS)
    true = draw_pointing_lessons(seed, 1, 0.0)
    doubtful = draw_pointing_lessons(seed, 2, RANDOM_SHARE)
    stages = [(true, TRUE_STEPS), (doubtful, DOUBTING_STEPS)]
    yield from train_replies(model, processor, stages)


def base_model() -> Path:
    """Returns the base that points."""
    return taught_base("pointing", __file__, teach)
