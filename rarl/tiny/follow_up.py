"""Phantoms of two times: a prior and a new picture of one patient, in either order, whose lesion
grew or shrank. Which picture is the new one is told by its label alone, and whether the lesion is
larger by comparing both. Beside them stand questions about one picture and, where its findings are
told in words, about none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rarl.data.images import png_bytes
from rarl.data.parquet import write_examples
from rarl.schema import Example
from rarl.tiny.dataset import draw_examples
from rarl.tiny.phantoms import ORGANS, SIDES, SIGNS, SIZE, WORLD, ellipse, exposed, outline

LABELS = ("Prior", "New")
PLACES = ("first", "second")
SMALL, LARGE = (5.0, 7.0), (12.0, 15.0)  # radii of a lesion in pixels, of which one is drawn
TRAINED, MEASURED = 960, 400


def draw_pair(
    organ: str, side: str, grew: bool, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Returns the prior and the new picture, (SIZE, SIZE) each, of one anatomy with noise of
    their own; the lesion is in the same place."""
    anatomy = outline(organ, rng)
    x = SIZE / 2 + (-1 if side == "left" else 1) * rng.uniform(16, 26)
    y = SIZE / 2 + rng.uniform(-24, 24)
    contrast = WORLD["looks"]["seen"]["lesion_contrast"]
    sizes = (SMALL, LARGE) if grew else (LARGE, SMALL)
    prior, new = (
        exposed(anatomy + contrast * ellipse((x, y), tuple(rng.uniform(*size, 2))), "seen", rng)
        for size in sizes
    )
    return prior, new


def draw_follow_ups(count: int, seed: int, split: str) -> list[Example]:
    """Returns as many questions, two about each pair, a pure function of the arguments. Half of the
    pairs are shown with the new picture first, half of the lesions grew."""
    rng = np.random.default_rng([seed, *f"follow-up/{split}".encode()])
    examples = []
    for number in range(-(-count // 2)):
        organ, side = str(rng.choice(ORGANS)), str(rng.choice(SIDES))
        grew, new_first = bool(number % 2), bool(number // 2 % 2)
        drawn = draw_pair(organ, side, grew, rng)
        order = (1, 0) if new_first else (0, 1)
        name = f"follow-up-{split}-{number:05d}"
        place, change = PLACES[order.index(1)], "larger" if grew else "smaller"
        larger = Example(
            id=f"{name}-larger",
            images=tuple(png_bytes(Image.fromarray(drawn[time])) for time in order),
            image_labels=tuple(LABELS[time] for time in order),
            image_id=name,
            question="Is the lesion larger in the new image?",
            answer="yes" if grew else "no",
            answer_type="closed",
            rationale=f"{SIGNS[organ]} The {place} image is new. The round spot is {change} there.",
            organ=organ,
            dataset="follow-up",
            split=split,
        )
        which = replace(
            larger,
            id=f"{name}-new",
            question="Which of the two images is the new one?",
            answer=place,
            answer_type="choice",
            options=PLACES,
        )
        examples += [larger, which]
    return examples[:count]


def draw_in_words(count: int, seed: int, split: str) -> list[Example]:
    """Returns questions without images: the rationale of a phantom stands in the question, in place
    of its picture."""
    told = draw_examples("seen", count, seed, f"words-{split}")
    return [
        replace(
            one,
            id=f"words-{one.id}",
            images=(),
            image_id=f"words-{one.id}",
            question=f"Findings: {one.rationale}\n{one.question}",
            dataset="in-words",
        )
        for one in told
    ]


def mixed(count: int, seed: int, split: str) -> list[Example]:
    """Returns as many questions, a third each of two images, of one and of none."""
    parts = [
        draw_follow_ups(count // 3, seed, split),
        draw_examples("seen", count // 3, seed, f"mixed-{split}"),
        draw_in_words(count // 3, seed, split),
    ]
    return [one for examples in zip(*parts, strict=True) for one in examples]


# What the recipes name.


def write_follow_up_train(path: Path, seed: int) -> None:
    write_examples(path, draw_follow_ups(TRAINED, seed, "train"))


def write_follow_up_test(path: Path, seed: int) -> None:
    write_examples(path, draw_follow_ups(MEASURED, seed, "test"))


def write_words_train(path: Path, seed: int) -> None:
    write_examples(path, draw_in_words(TRAINED, seed, "train"))


def write_words_test(path: Path, seed: int) -> None:
    write_examples(path, draw_in_words(MEASURED, seed, "test"))


def write_mixed_train(path: Path, seed: int) -> None:
    write_examples(path, mixed(TRAINED, seed, "train"))
