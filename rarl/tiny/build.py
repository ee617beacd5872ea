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
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import cross_entropy
from transformers import Qwen2VLForConditionalGeneration, Qwen2VLProcessor

from rarl.files import write_text
from rarl.prompts import question_text, read_families, rederive_text
from rarl.replies.tags import target_text
from rarl.tiny import training
from rarl.tiny.dataset import make_example
from rarl.tiny.model import make_config, make_model, make_processor, train_tokenizer
from rarl.tiny.phantoms import (
    ORGANS,
    SIDES,
    WORLD,
    Domain,
    answer_for,
    corrupt,
    draw_facts,
    draw_image,
    questions_for,
    rationale_for,
)
from rarl.tiny.training import Lesson, Seen, train_tower

VISION_STEPS, TRUE_STEPS, DOUBTING_STEPS = 300, 400, 150
STEPS = VISION_STEPS + TRUE_STEPS + DOUBTING_STEPS
VISION_BATCH = 48
LEARNING_RATE = 1.5e-3  # of the language model, at the peak
RANDOM_SHARE = 0.95  # of the replies that claim random facts, in the last stage
TEXT_SHARE = 0.2
# where the lesion is, is the hardest to learn, so it is asked this many times as often
SIDE_WEIGHT = 3
FAMILIES: dict[str, float] = WORLD["families"]
UNSEEN_SHARE = 0.4  # of the pictures that come from the unseen domain
THREADS = 2  # fixed, since sums depend on how many threads share them


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
        stages = (train_vision(model, processor, seed), train_replies(model, processor, seed))
        losses = []
        for loss in chain(*stages):
            losses.append(loss)
            progress(1)
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
    model: Qwen2VLForConditionalGeneration, processor: Qwen2VLProcessor, seed: int
) -> Iterator[float]:
    """The vision tower: organ and side of the lesion. Yields the loss of every step."""
    classifier = torch.nn.Linear(model.config.text_config.hidden_size, len(ORGANS) + len(SIDES) + 1)
    seen = drawn_findings(seed)
    yield from train_tower(model, processor, classifier, seen, VISION_STEPS)


def drawn_findings(seed: int) -> Iterator[Seen]:
    """Yields pictures, and the loss of the organ and the side that they show."""
    lessons = draw_lessons(seed, 1, 0.0, text_share=0.0)
    while True:
        batch = [next(lessons) for _ in range(VISION_BATCH)]
        shown = [lesson.facts for lesson in batch if lesson.facts is not None]
        organs = torch.tensor([ORGANS.index(facts.organ) for facts in shown])
        sides = torch.tensor([(None, *SIDES).index(facts.side) for facts in shown])
        pictures = [lesson.pictures[0] for lesson in batch]
        yield pictures, partial(loss_of_findings, organs=organs, sides=sides)


def loss_of_findings(read: torch.Tensor, organs: torch.Tensor, sides: torch.Tensor) -> torch.Tensor:
    organ_logits, side_logits = read.split([len(ORGANS), len(SIDES) + 1], 1)
    return cross_entropy(organ_logits, organs) + cross_entropy(side_logits, sides)


def train_replies(
    model: Qwen2VLForConditionalGeneration, processor: Qwen2VLProcessor, seed: int
) -> Iterator[float]:
    """The language model: true replies first, then doubtful ones. Yields the loss of every step."""
    true, doubtful = draw_lessons(seed, 2, 0.0), draw_lessons(seed, 3, RANDOM_SHARE)
    stages = [(true, TRUE_STEPS), (doubtful, DOUBTING_STEPS)]
    yield from training.train_replies(model, processor, stages, LEARNING_RATE)
