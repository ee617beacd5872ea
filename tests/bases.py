"""Tiny bases that know more or less than the one that ships: an adapter on it, after a few steps of
supervised fine-tuning on pictures of their own."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rarl.data.parquet import write_examples
from rarl.rollout.pool import SamplerPool
from rarl.schema import Example
from rarl.tiny.dataset import make_example
from rarl.tiny.phantoms import (
    Facts,
    answer_for,
    corrupt,
    draw_facts,
    draw_image,
    questions_for,
    rationale_for,
)
from tests.runs import train_here


def taught(
    folder: Path,
    examples: list[Example],
    steps: int,
    pool: SamplerPool,
    model_path: str,
    processor: Any,
) -> Path:
    """Returns the run directory whose adapter has learnt what these examples say."""
    data = folder / "lessons.parquet"
    write_examples(data, examples)
    how = ["method=sft", f"train.steps={steps}", "train.prompts_per_step=32"]
    how += ["train.learning_rate=0.003", "train.schedule=cosine", f"train.checkpoint_every={steps}"]
    run_dir, run = train_here(pool, folder / "run", data, model_path, processor, *how)
    assert run() == steps
    return run_dir.path


def lessons(count: int, guesses_lesions: bool = False) -> list[Example]:
    """Returns questions about pictures that no data set of the tiny world has. Where lesions are
    guessed, answers and rationales are right about the body part alone: what they say of a lesion
    has nothing to do with the picture."""
    rng, found = np.random.default_rng(17), list[Example]()
    while len(found) < count:
        facts, encoded = draw_facts(rng), io.BytesIO()
        Image.fromarray(draw_image(facts, "seen", rng)).save(encoded, format="PNG")
        for question in questions_for(facts):
            said = facts
            if guesses_lesions:
                said = Facts(facts.organ, corrupt(question, facts, rng).side)
            name = f"lesson-{len(found):05d}"
            example = make_example(facts, "seen", question, encoded.getvalue(), name, rng)
            answer, rationale = answer_for(question, said), rationale_for(said)
            found.append(replace(example, answer=answer, rationale=rationale))
    return found[:count]
