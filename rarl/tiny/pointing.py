"""Phantoms to point at: the box of the lesion is the answer.

The base model that ships with RARL has never seen a box. Here it is taught, by supervised training
of all its weights, to point at lesions, and then made uncertain as the base itself was: most
replies of the last stage point at a random place. It is made when it is first asked for, in some
minutes on one core, and kept in the user's cache. Same code, same thread count, same processor: the
same weights to the bit.
"""

from __future__ import annotations

import hashlib
import os
import sys
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
from rarl.files import replacing_folder
from rarl.prompts import question_text, read_families
from rarl.replies.boxes import STYLES, boxes_text, write_boxes
from rarl.replies.tags import target_text
from rarl.schema import Box, Example, Frame
from rarl.tiny import build, dataset
from rarl.tiny.build import Lesson, descend, draw_lessons, encode, rate_factor
from rarl.tiny.model import IMAGE_TOKENS
from rarl.tiny.phantoms import SIDES, SIZE, Domain, Facts, draw_boxed, draw_facts, rationale_for

QUESTIONS: dict[Domain, str] = {
    "seen": "Point at the lesion.",
    "unseen": "Mark the lesion in this scan.",
}
FRAME = Frame("qwen2_vl", SIZE, SIZE, SIZE, SIZE)
VISION_STEPS, TRUE_STEPS, DOUBTING_STEPS = 200, 320, 90
VISION_BATCH, BATCH = 48, 32
VISION_LEARNING_RATE, LEARNING_RATE = 1e-3, 1e-3
RANDOM_SHARE = 0.95  # of the replies that point at a random place, in the last stage
OTHER_SHARE = 0.25  # of the lessons that are the base's own
THREADS = 1  # fixed, since sums depend on how many threads share them
CACHE = "RARL_CACHE"  # the variable that names another folder than the user's cache
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
    """Yields lessons without end, a pure function of the arguments. `random_share` of the replies
    point at a random place and say so; some lessons are the base's own, as uncertain as there."""
    rng = np.random.default_rng([seed, 1000 + stage])
    others = draw_lessons(seed, 1000 + stage, build.RANDOM_SHARE)
    families = read_families()
    while True:
        if rng.random() < OTHER_SHARE:
            yield next(others)
            continue
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
        yield Lesson(facts, prompt, Image.fromarray(picture).convert("RGB"), reply)


def train_places(
    model: Qwen2VLForConditionalGeneration, processor: Qwen2VLProcessor, seed: int
) -> Iterator[float]:
    """The vision tower: corners of the lesion's box, read off the mean of the image tokens by a
    linear layer that is then thrown away. Yields the loss of every step."""
    rng = np.random.default_rng([seed, 2000])
    tower = model.model.visual
    torch.manual_seed(seed)
    reader = torch.nn.Linear(model.config.text_config.hidden_size, 4)
    optimizer = torch.optim.AdamW([*tower.parameters(), *reader.parameters()], VISION_LEARNING_RATE)
    factor = partial(rate_factor, steps=VISION_STEPS)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    for _ in range(VISION_STEPS):
        drawn = [
            draw_lesion("unseen" if rng.random() < build.UNSEEN_SHARE else "seen", rng)
            for _ in range(VISION_BATCH)
        ]
        pictures = [Image.fromarray(picture).convert("RGB") for _, picture, _ in drawn]
        pixels = processor.image_processor(images=pictures, return_tensors="pt")
        features = tower(pixels["pixel_values"], grid_thw=pixels["image_grid_thw"]).pooler_output
        pooled = features.reshape(len(drawn), IMAGE_TOKENS, -1).mean(1)
        corners = [one.corners for _, _, (one,) in drawn]
        loss = mse_loss(reader(pooled), torch.tensor(corners) / SIZE * 10 - 5)
        descend(loss, optimizer, schedule)
        yield loss.item()


def train_replies(
    model: Qwen2VLForConditionalGeneration, processor: Qwen2VLProcessor, seed: int
) -> Iterator[float]:
    """The language model, the vision tower frozen: true replies, then doubtful ones. Yields the
    loss of every step."""
    steps = TRUE_STEPS + DOUBTING_STEPS
    model.model.visual.requires_grad_(False)
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(rate_factor, steps=steps))
    true = draw_pointing_lessons(seed, 1, 0.0)
    doubtful = draw_pointing_lessons(seed, 2, RANDOM_SHARE)
    model.train()
    for step in range(steps):
        lessons = true if step < TRUE_STEPS else doubtful
        loss = model(**encode([next(lessons) for _ in range(BATCH)], processor)).loss
        descend(loss, optimizer, schedule)
        yield loss.item()


def build_base(seed: int, out: Path) -> None:
    """Trains the base from `seed` and saves model (float16) and processor into the folder `out`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        own = dataset.base_model()
        model = Qwen2VLForConditionalGeneration.from_pretrained(own, dtype=torch.float32)
        processor = Qwen2VLProcessor.from_pretrained(own)
        for _ in train_places(model, processor, seed):
            pass
        for _ in train_replies(model, processor, seed):
            pass
    finally:
        torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(out)
    processor.save_pretrained(out)


def base_model() -> Path:
    """Returns the base that points, from the cache. It is made anew where this file has changed."""
    version = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    cache = Path(os.environ.get(CACHE) or Path.home() / ".cache" / "rarl")
    folder = cache / f"tiny-pointing-{version}"
    if not (folder / "config.json").is_file():
        sys.stderr.write(f"making the base model that points, once, in {folder} ...\n")
        with replacing_folder(folder) as temporary:
            build_base(0, temporary)
    return folder
