"""Makes the tiny base model: well formatted, uncertain.

Supervised training from scratch on an endless stream of phantoms of both domains, in three stages.
First the vision tower alone, with a throw-away classifier, since it learns far faster from labels
than from words. Then the language model on true replies. Then most replies claim random facts, in
the thinking and in the answer alike, so the model loses confidence in what it sees: it knows more
than it says, which is what reinforcement learning can bring out. Same seed, same thread count, same
processor: the same weights to the bit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import cross_entropy
from transformers import Qwen2VLForConditionalGeneration, Qwen2VLProcessor

from rarl.files import write_text
from rarl.prompts import as_turn, question_text, read_families, rederive_text
from rarl.replies.tags import target_text
from rarl.tiny.dataset import make_example
from rarl.tiny.model import IMAGE_TOKENS, make_config, make_model, make_processor, train_tokenizer
from rarl.tiny.phantoms import (
    ORGANS,
    SIDES,
    WORLD,
    Domain,
    Facts,
    answer_for,
    corrupt,
    draw_facts,
    draw_image,
    questions_for,
    rationale_for,
)

VISION_STEPS, TRUE_STEPS, DOUBTING_STEPS = 300, 400, 150
STEPS = VISION_STEPS + TRUE_STEPS + DOUBTING_STEPS
VISION_BATCH, BATCH = 48, 32
VISION_LEARNING_RATE, LEARNING_RATE = 1e-3, 1.5e-3  # at the peak
WARMUP_STEPS = 20
RANDOM_SHARE = 0.95  # of the replies that claim random facts, in the last stage
TEXT_SHARE = 0.2
# where the lesion is, is the hardest to learn, so it is asked this many times as often
SIDE_WEIGHT = 3
FAMILIES: dict[str, float] = WORLD["families"]
UNSEEN_SHARE = 0.4  # of the pictures that come from the unseen domain
THREADS = 2  # fixed, since sums depend on how many threads share them


@dataclass(frozen=True)
class Lesson:
    """One training pair: what the model is shown and the reply it is to imitate. Where the `prompt`
    holds the reasoning itself, there is no picture. `facts` are of the only one, `labels` of
    several."""

    facts: Facts | None
    prompt: str
    pictures: tuple[Image.Image, ...]
    reply: str
    labels: tuple[str, ...] = ("",)


def draw_lessons(
    seed: int, stage: int, random_share: float, text_share: float = TEXT_SHARE
) -> Iterator[Lesson]:
    """An endless stream, a pure function of its arguments. `random_share` of the replies claim
    random facts; in `text_share` of the lessons the answer is to be read from reasoning, not from a
    picture."""
    rng = np.random.default_rng([seed, stage])
    families = read_families()
    names = list(FAMILIES)
    while True:
        domain: Domain = "unseen" if rng.random() < UNSEEN_SHARE else "seen"
        facts = draw_facts(rng)
        questions = [
            q for q in questions_for(facts) for _ in range(SIDE_WEIGHT if q == "side" else 1)
        ]
        question = questions[rng.integers(len(questions))]
        example = make_example(facts, domain, question, b"", "", rng)
        claimed = corrupt(question, facts, rng) if rng.random() < random_share else facts
        thinking, answer = rationale_for(claimed), answer_for(question, claimed)
        if rng.random() < text_share:
            yield Lesson(
                facts, rederive_text(example, thinking), (), target_text("answer", "", answer)
            )
            continue
        family = families[names[rng.choice(len(names), p=list(FAMILIES.values()))]]
        prompt = question_text(example, family, family.wordings[rng.integers(len(family.wordings))])
        picture = Image.fromarray(draw_image(facts, domain, rng)).convert("RGB")
        yield Lesson(facts, prompt, (picture,), target_text(family.form, thinking, answer))


def build_base(seed: int, out: Path, progress: Callable[[int], Any] = lambda _: None) -> None:
    """Trains the base from `seed` and saves model (float16), processor and the losses on the way
    into the folder `out`.

    `progress` is called with the number of steps just done, `STEPS` in all.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        model, processor = untrained(seed)
        losses = list(train_vision(model, processor, seed, progress))
        losses += train_replies(model, processor, seed, progress)
    finally:
        torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(out)
    processor.save_pretrained(out)
    write_text(out / "losses.json", json.dumps([round(loss, 5) for loss in losses]) + "\n")


def untrained(seed: int) -> tuple[Qwen2VLForConditionalGeneration, Qwen2VLProcessor]:
    processor = make_processor(train_tokenizer(tokenizer_corpus(seed)))
    return make_model(make_config(processor.tokenizer), seed), processor


def tokenizer_corpus(seed: int) -> list[str]:
    """Prompts and replies of the tiny world, without the chat template's special tokens."""
    lessons = draw_lessons(seed, 0, 0.0)
    drawn = [next(lessons) for _ in range(400)]
    system = ["system\nYou are a helpful assistant.", "user\n", "assistant\n"]
    return system * 40 + [f"{d.prompt}\n{d.reply}" for d in drawn]


def train_vision(
    model: Qwen2VLForConditionalGeneration,
    processor: Qwen2VLProcessor,
    seed: int,
    progress: Callable[[int], Any],
) -> Iterator[float]:
    """Organ and side of the lesion, read off the mean of the image tokens by a linear layer that is
    then thrown away: the mean, so that each token tells where the lesion is, which the language
    model would take long to learn from the tokens' places. Yields the loss of every step."""
    lessons = draw_lessons(seed, 1, 0.0, text_share=0.0)
    tower = model.model.visual
    classifier = torch.nn.Linear(model.config.text_config.hidden_size, len(ORGANS) + len(SIDES) + 1)
    trained = [*tower.parameters(), *classifier.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=VISION_LEARNING_RATE)
    factor = partial(rate_factor, steps=VISION_STEPS)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    for _ in range(VISION_STEPS):
        batch = [next(lessons) for _ in range(VISION_BATCH)]
        pictures = [lesson.pictures[0] for lesson in batch]
        pixels = processor.image_processor(images=pictures, return_tensors="pt")
        features = tower(pixels["pixel_values"], grid_thw=pixels["image_grid_thw"]).pooler_output
        pooled = features.reshape(len(batch), IMAGE_TOKENS, -1).mean(1)
        organ_logits, side_logits = classifier(pooled).split([len(ORGANS), len(SIDES) + 1], 1)
        shown = [lesson.facts for lesson in batch if lesson.facts is not None]
        organs = torch.tensor([ORGANS.index(facts.organ) for facts in shown])
        sides = torch.tensor([(None, *SIDES).index(facts.side) for facts in shown])
        loss = cross_entropy(organ_logits, organs) + cross_entropy(side_logits, sides)
        descend(loss, optimizer, schedule)
        progress(1)
        yield loss.item()


def train_replies(
    model: Qwen2VLForConditionalGeneration,
    processor: Qwen2VLProcessor,
    seed: int,
    progress: Callable[[int], Any],
) -> Iterator[float]:
    """The language model: true replies first, then doubtful ones. Yields the loss of every step.

    The vision tower is frozen: the language model's first, blind gradients would undo what it knows
    of the side."""
    steps = TRUE_STEPS + DOUBTING_STEPS
    model.model.visual.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(rate_factor, steps=steps))
    true, doubtful = draw_lessons(seed, 2, 0.0), draw_lessons(seed, 3, RANDOM_SHARE)
    model.train()
    for step in range(steps):
        lessons = true if step < TRUE_STEPS else doubtful
        batch = encode([next(lessons) for _ in range(BATCH)], processor)
        loss = model(**batch).loss
        descend(loss, optimizer, schedule)
        progress(1)
        yield loss.item()


def encode(lessons: list[Lesson], processor: Qwen2VLProcessor) -> dict[str, torch.Tensor]:
    """A padded batch with `labels` that are -100 outside the reply and its end-of-turn token."""
    prompts = [
        as_turn(processor, lesson.prompt, lesson.labels if lesson.pictures else ())
        for lesson in lessons
    ]
    texts = [p + lesson.reply + "<|im_end|>" for p, lesson in zip(prompts, lessons, strict=True)]
    pictures = [picture for lesson in lessons for picture in lesson.pictures]
    batch = processor(
        text=texts, images=pictures, padding=True, padding_side="right", return_tensors="pt"
    )
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    for row, lesson in enumerate(lessons):
        reply = len(processor.tokenizer(lesson.reply + "<|im_end|>").input_ids)
        end = int(batch["attention_mask"][row].sum())
        labels[row, : end - reply] = -100
    return {**batch, "labels": labels}


def rate_factor(step: int, steps: int) -> float:
    """Linear warm-up, then cosine to a twentieth."""
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    return 0.05 + 0.475 * (1 + math.cos(math.pi * (step - WARMUP_STEPS) / (steps - WARMUP_STEPS)))


def descend(loss: torch.Tensor, optimizer: torch.optim.Optimizer, schedule: Any) -> None:
    """One step along the gradient, whose norm is bounded."""
    loss.backward()
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    schedule.step()
