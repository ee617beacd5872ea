"""Makes the tiny base model: well formatted, uncertain.

Supervised training from scratch on an endless stream of phantoms of both domains, in two stages. First every target is
true, so the model learns to see and how a reply is formed. Then most targets claim random facts, in the thinking and in
the answer alike, so it loses confidence in what it sees: it knows more than it says, which is what reinforcement
learning can bring out.
Same seed, same thread count, same processor: the same weights to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import Qwen2VLForConditionalGeneration, Qwen2VLProcessor

from rarl.prompts import render_prompt, target_text
from rarl.schema import Example
from rarl.tiny.dataset import make_example
from rarl.tiny.model import make_config, make_model, make_processor, train_tokenizer
from rarl.tiny.phantoms import (
    Domain,
    answer_for,
    corrupt,
    draw_facts,
    draw_image,
    questions_for,
    rationale_for,
)

TRUE_STEPS, DOUBTING_STEPS = 400, 100
STEPS = TRUE_STEPS + DOUBTING_STEPS
BATCH = 32
PEAK_LEARNING_RATE = 1.5e-3
WARMUP_STEPS = 20
RANDOM_SHARE = 0.85  # of the targets that claim random facts, in the second stage
UNSEEN_SHARE = 0.2  # of the pictures that come from the unseen domain
THREADS = 2  # fixed, since sums depend on how many threads share them


@dataclass(frozen=True)
class Lesson:
    """One training pair: what the model is shown and the reply it is to imitate."""

    example: Example
    picture: Image.Image
    reply: str


def draw_lessons(seed: int, stage: int, random_share: float) -> Iterator[Lesson]:
    """An endless stream, a pure function of its arguments."""
    rng = np.random.default_rng([seed, stage])
    while True:
        domain: Domain = "unseen" if rng.random() < UNSEEN_SHARE else "seen"
        facts = draw_facts(rng, domain)
        question = str(rng.choice(questions_for(facts)))
        picture = Image.fromarray(draw_image(facts, domain, rng)).convert("RGB")
        example = make_example(facts, domain, question, b"", "", rng)
        claimed = corrupt(question, facts, rng) if rng.random() < random_share else facts
        yield Lesson(example, picture, target_text(rationale_for(question, claimed), answer_for(question, claimed)))


def encode(lessons: list[Lesson], processor: Qwen2VLProcessor) -> dict[str, torch.Tensor]:
    """A padded batch with `labels` that are -100 outside the reply and its end-of-turn token."""
    prompts = [render_prompt(processor, lesson.example) for lesson in lessons]
    texts = [p + lesson.reply + "<|im_end|>" for p, lesson in zip(prompts, lessons, strict=True)]
    pictures = [lesson.picture for lesson in lessons]
    batch = processor(text=texts, images=pictures, padding=True, padding_side="right", return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    for row, lesson in enumerate(lessons):
        reply = len(processor.tokenizer(lesson.reply + "<|im_end|>").input_ids)
        end = int(batch["attention_mask"][row].sum())
        labels[row, : end - reply] = -100
    return {**batch, "labels": labels}


def learning_rate_factor(step: int) -> float:
    """Linear warm-up, then cosine to zero."""
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    return 0.5 * (1 + math.cos(math.pi * (step - WARMUP_STEPS) / (STEPS - WARMUP_STEPS)))


def build_base(seed: int, out: Path, progress: Callable[[int, float], Any] = lambda *_: None) -> None:
    """Trains the base from `seed` and saves model (float16) and processor into the folder `out`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        model, processor = train_base(seed, progress)
    finally:
        torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(out)
    processor.save_pretrained(out)


def train_base(
    seed: int, progress: Callable[[int, float], Any]
) -> tuple[Qwen2VLForConditionalGeneration, Qwen2VLProcessor]:
    processor = make_processor(train_tokenizer(tokenizer_corpus(seed)))
    model = make_model(make_config(processor.tokenizer), seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_factor)
    true, doubting = draw_lessons(seed, 1, 0.0), draw_lessons(seed, 2, RANDOM_SHARE)
    model.train()
    for step in range(STEPS):
        lessons = true if step < TRUE_STEPS else doubting
        batch = encode([next(lessons) for _ in range(BATCH)], processor)
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        progress(step + 1, float(loss.detach()))
    return model.eval(), processor


def tokenizer_corpus(seed: int) -> list[str]:
    """Prompts and replies of the tiny world, without the chat template's special tokens."""
    from rarl.prompts import question_text

    lessons = draw_lessons(seed, 0, 0.0)
    drawn = [next(lessons) for _ in range(400)]
    system = ["system\nYou are a helpful assistant.", "user\n", "assistant\n"]
    return system * 40 + [f"{question_text(d.example)}\n{d.reply}" for d in drawn]
