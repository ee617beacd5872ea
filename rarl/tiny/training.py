"""Supervised training of the tiny models' weights: lessons, batches and the two loops, over the
vision tower and over the language model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image
from transformers import Qwen2VLForConditionalGeneration, Qwen2VLProcessor

from rarl.prompts import as_turn
from rarl.tiny.phantoms import Facts

BATCH = 32  # of lessons
LEARNING_RATE = 1e-3  # at the peak
WARMUP_STEPS = 20
# Pictures, and the loss of what is read off each of them.
Seen = tuple[list[Image.Image], Callable[[torch.Tensor], torch.Tensor]]


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


def train_tower(
    model: Qwen2VLForConditionalGeneration,
    processor: Qwen2VLProcessor,
    reader: torch.nn.Linear,
    batches: Iterator[Seen],
    steps: int,
    learning_rate: float = LEARNING_RATE,
) -> Iterator[float]:
    """The vision tower: what `reader`, a linear layer that is then thrown away, reads off the mean
    of each picture's tokens, of which all have as many: the mean, so that each token tells where
    the lesion is, which the language model would take long to learn from the tokens' places. Yields
    the loss of every step.
    """
    tower = model.model.visual
    optimizer = torch.optim.AdamW([*tower.parameters(), *reader.parameters()], learning_rate)
    factor = partial(rate_factor, steps=steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    for _ in range(steps):
        pictures, loss_of = next(batches)
        pixels = processor.image_processor(images=pictures, return_tensors="pt")
        features = tower(pixels["pixel_values"], grid_thw=pixels["image_grid_thw"]).pooler_output
        loss = loss_of(reader(features.reshape(len(pictures), -1, features.shape[-1]).mean(1)))
        descend(loss, optimizer, schedule)
        yield loss.item()


def train_replies(
    model: Qwen2VLForConditionalGeneration,
    processor: Qwen2VLProcessor,
    stages: Sequence[tuple[Iterator[Lesson], int]],
    learning_rate: float = LEARNING_RATE,
) -> Iterator[float]:
    """The language model: so many steps on the lessons of each stage. Yields the loss of every
    step.

    The vision tower is frozen: the language model's first, blind gradients would undo what it knows
    of the side."""
    model.model.visual.requires_grad_(False)
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.01)
    factor = partial(rate_factor, steps=sum(count for _, count in stages))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    model.train()
    for lessons, count in stages:
        for _ in range(count):
            loss = model(**encode([next(lessons) for _ in range(BATCH)], processor)).loss
            descend(loss, optimizer, schedule)
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
