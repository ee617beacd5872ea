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
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen2VLForConditionalGeneration, Qwen2VLProcessor

from rarl.files import replacing_folder
from rarl.tiny import training
from rarl.tiny.build import RANDOM_SHARE, draw_lessons
from rarl.tiny.dataset import base_model as shipped_base
from rarl.tiny.training import Lesson

THREADS = 1  # fixed, since sums depend on how many threads share them
CACHE = "RARL_CACHE"  # the variable that names another folder than the user's cache
# Trains a model, from a seed; yields the loss of every step.
Teaching = Callable[[Qwen2VLForConditionalGeneration, Qwen2VLProcessor, int], Iterator[float]]


def mixed_lessons(
    draw: Callable[[np.random.Generator], Lesson], seed: int, key: int, others: float
) -> Iterator[Lesson]:
    """Yields lessons without end, a pure function of the arguments: those that `draw` draws, and as
    the share `others` those of the base that ships with RARL, as uncertain as there."""
    rng = np.random.default_rng([seed, key])
    known = draw_lessons(seed, key, RANDOM_SHARE)
    while True:
        yield next(known) if rng.random() < others else draw(rng)


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
    that says what is taught, this one or that of the training has changed."""
    code = b"".join(Path(one).read_bytes() for one in (source, __file__, training.__file__))
    cache = Path(os.environ.get(CACHE) or Path.home() / ".cache" / "rarl")
    folder = cache / f"tiny-{name}-{hashlib.sha256(code).hexdigest()[:12]}"
    if not (folder / "config.json").is_file():
        sys.stderr.write(f"making the tiny base model of '{name}', once, in {folder} ...\n")
        with replacing_folder(folder) as temporary:
            build_base(teaching, 0, temporary)
    return folder
