"""Reports of phantom chests: what is seen is the answer, in words of the tiny world."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from rarl.data.images import png_bytes
from rarl.data.parquet import write_examples
from rarl.schema import Example
from rarl.tiny.dataset import phantom_example
from rarl.tiny.phantoms import Facts, draw_boxed, draw_facts

QUESTION = "Describe this image."


def report_of(facts: Facts) -> str:
    """Returns the report of a chest. "Round spot" is how the tiny world calls a nodule."""
    if facts.side is None:
        return "Two lungs. No round spot."
    return f"Two lungs. A round spot in the {facts.side} lung."


def draw_examples(count: int, seed: int, split: str) -> list[Example]:
    """Returns a report for each of `count` pictures, a pure function of the arguments."""
    rng = np.random.default_rng([seed, *f"reports/{split}".encode()])
    examples = []
    for number in range(count):
        facts = draw_facts(rng, ["chest"])
        picture, boxes = draw_boxed(facts, "seen", rng)
        name = f"reports-{split}-{number:05d}"
        examples.append(
            phantom_example(
                facts,
                "seen",
                png_bytes(Image.fromarray(picture)),
                name,
                boxes,
                id=name,
                question=QUESTION,
                answer=report_of(facts),
                answer_type="report",
                dataset="phantom-reports",
            )
        )
    return examples


# What `configs/recipes/tiny/radiology_report.yaml` names.


def write_train(path: Path, seed: int) -> None:
    write_examples(path, draw_examples(480, seed, "train"))


def write_test(path: Path, seed: int) -> None:
    write_examples(path, draw_examples(200, seed, "test"))
