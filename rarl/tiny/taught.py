"""Base models of the tiny worlds that the one that ships with RARL has never seen: it is taught
another kind of question, by supervised training of all its weights, and then made uncertain as it
was itself.

Each is made when it is first asked for, in some minutes on one core, and kept in the user's cache.
Same code, same thread count, same processor: the same weights to the bit.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from transformers import Qwen2VLForConditionalGeneration, Qwen2VLProcessor

from rarl.files import replacing_folder
from rarl.tiny.build import Lesson, descend, encode, rate_factor
from rarl.tiny.dataset import base_model as shipped_base
from rarl.tiny.model import IMAGE_TOKENS

BATCH = 32
LEARNING_RATE = 1e-3  # at the peak
THREADS = 1  # fixed, since sums depend on how many threads share them
CACHE = "RARL_CACHE"  # the variable that names another folder than the user's cache
# Trains a model, from a seed; yields the loss of every step.
Teaching = Callable[[Qwen2VLForConditionalGeneration, Qwen2VLProcessor, int], Iterator[float]]
# Pictures, and the loss of what is read off each of them.
Seen = tuple[list[Image.Image], Callable[[torch.Tensor], torch.Tensor]]


def train_tower(
    model: Qwen2VLForConditionalGeneration,
    processor: Qwen2VLProcessor,
    reader: torch.nn.Linear,
    batches: Iterator[Seen],
    steps: int,
) -> Iterator[float]:
    """The vision tower: what `reader`, a linear layer that is then thrown away, reads off the mean
    of each picture's tokens. Yields the loss of every step."""
    tower = model.model.visual
    optimizer = torch.optim.AdamW([*tower.parameters(), *reader.parameters()], LEARNING_RATE)
    factor = partial(rate_factor, steps=steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    for _ in range(steps):
        pictures, loss_of = next(batches)
        pixels = processor.image_processor(images=pictures, return_tensors="pt")
        features = tower(pixels["pixel_values"], grid_thw=pixels["image_grid_thw"]).pooler_output
        loss = loss_of(reader(features.reshape(len(pictures), IMAGE_TOKENS, -1).mean(1)))
        descend(loss, optimizer, schedule)
        yield loss.item()


def train_replies(
    model: Qwen2VLForConditionalGeneration,
    processor: Qwen2VLProcessor,
    stages: Sequence[tuple[Iterator[Lesson], int]],
) -> Iterator[float]:
    """The language model, the vision tower frozen: so many steps on the lessons of each stage.
    Yields the loss of every step."""
    model.model.visual.requires_grad_(False)
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.01)
    factor = partial(rate_factor, steps=sum(count for _, count in stages))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    model.train()
    for lessons, count in stages:
        for _ in range(count):
            loss = model(**encode([next(lessons) for _ in range(BATCH)], processor)).loss
            descend(loss, optimizer, schedule)
            yield loss.item()


def build_base(teaching: Teaching, seed: int, out: Path) -> None:
    """Teaches the base that ships with RARL, from `seed`, and saves model (float16) and processor
    into the folder `out`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        own = shipped_base()
        model = Qwen2VLForConditionalGeneration.from_pretrained(own, dtype=torch.float32)
        processor = Qwen2VLProcessor.from_pretrained(own)
        for _ in teaching(model, processor, seed):
            pass
    finally:
        torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(out)
    processor.save_pretrained(out)


def taught_base(name: str, source: str, teaching: Teaching) -> Path:
    """Returns the base that was taught so, from the cache. It is made anew where `source`, the file
    that says what is taught, or this one has changed."""
    code = Path(source).read_bytes() + Path(__file__).read_bytes()
    cache = Path(os.environ.get(CACHE) or Path.home() / ".cache" / "rarl")
    folder = cache / f"tiny-{name}-{hashlib.sha256(code).hexdigest()[:12]}"
    if not (folder / "config.json").is_file():
        sys.stderr.write(f"making the tiny base model of '{name}', once, in {folder} ...\n")
        with replacing_folder(folder) as temporary:
            build_base(teaching, 0, temporary)
    return folder
