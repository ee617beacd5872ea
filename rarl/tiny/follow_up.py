"""Phantoms of two times: a prior and a new picture of one patient, in either order, whose lesion
grew or shrank. Which picture is the new one is told by its label alone, and whether the lesion is
larger by comparing both. Beside them stand questions about one picture and, where its findings are
told in words, about none.

The base model that ships with RARL has never compared two pictures. Here it is taught to, and then
made uncertain: most replies of the last stage claim what was drawn by lot.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import cross_entropy
from transformers import Qwen2VLForConditionalGeneration, Qwen2VLProcessor

from rarl.data.images import png_bytes
from rarl.data.parquet import write_examples
from rarl.prompts import question_text, read_families, rederive_text
from rarl.replies.tags import target_text
from rarl.schema import Example
from rarl.tiny import build
from rarl.tiny.dataset import draw_examples
from rarl.tiny.phantoms import ORGANS, SIDES, SIGNS, SIZE, WORLD, ellipse, exposed, outline
from rarl.tiny.taught import mixed_lessons, taught_base
from rarl.tiny.training import Lesson, Seen, train_replies, train_tower

LABELS = ("Prior", "New")
PLACES = ("first", "second")
SMALL, LARGE = (5.0, 7.0), (12.0, 15.0)  # radii of a lesion in pixels, of which one is drawn
TRAINED, MEASURED = 960, 400
VISION_STEPS, TRUE_STEPS, DOUBTING_STEPS = 80, 400, 90
VISION_BATCH = 48
RANDOM_SHARE = 0.95  # of the replies that claim what was drawn by lot, in the last stage
OTHER_SHARE = 0.3  # of the lessons that are the base's own


@dataclass(frozen=True)
class Course:
    """What became of a lesion, and which of the two pictures is shown first: all answers."""

    organ: str
    grew: bool
    new_first: bool

    @property
    def order(self) -> tuple[int, int]:
        """The times, 0 for the prior picture, in the order in which they are shown."""
        return (1, 0) if self.new_first else (0, 1)

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(LABELS[time] for time in self.order)

    @property
    def rationale(self) -> str:
        """What each picture is and shows, from which both answers follow."""
        sizes = ("small", "large") if self.grew else ("large", "small")
        first, second = (f"{LABELS[time].lower()}, {sizes[time]} spot" for time in self.order)
        return f"{SIGNS[self.organ]} First: {first}. Second: {second}."

    def questions(self) -> list[dict[str, Any]]:
        """Returns the fields of the two questions: is it larger, and which is the new one?"""
        larger = {"question": "Is the lesion larger in the new image?", "answer_type": "closed"}
        which = {"question": "Which of the two images is the new one?", "answer_type": "choice"}
        return [
            larger | {"answer": "yes" if self.grew else "no"},
            which | {"answer": PLACES[self.order.index(1)], "options": PLACES},
        ]


def draw_place(side: str, rng: np.random.Generator) -> tuple[float, float]:
    """Returns (x, y) of a lesion's middle."""
    x = SIZE / 2 + (-1 if side == "left" else 1) * rng.uniform(16, 26)
    return x, SIZE / 2 + rng.uniform(-24, 24)


def with_lesion(
    anatomy: NDArray[np.float64],
    place: tuple[float, float],
    size: tuple[float, float],
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """Returns a picture, (SIZE, SIZE), with noise of its own."""
    contrast = WORLD["looks"]["seen"]["lesion_contrast"]
    lesion = ellipse(place, tuple(rng.uniform(*size, 2)))
    return exposed(anatomy + contrast * lesion, "seen", rng)


def draw_pair(
    course: Course, rng: np.random.Generator, side: str
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Returns both pictures in the order in which they are shown, of one anatomy; the lesion is in
    the same place."""
    anatomy, place = outline(course.organ, rng), draw_place(side, rng)
    sizes = (SMALL, LARGE) if course.grew else (LARGE, SMALL)
    drawn = [with_lesion(anatomy, place, size, rng) for size in sizes]
    first, second = course.order
    return drawn[first], drawn[second]


def draw_follow_ups(count: int, seed: int, split: str, swapped: bool = False) -> list[Example]:
    """Returns as many questions, two about each pair, a pure function of the arguments. Half of the
    pairs are shown with the new picture first, half of the lesions grew. `swapped` are the same
    questions with both pictures, and their labels, in the other order."""
    rng = np.random.default_rng([seed, *f"follow-up/{split}".encode()])
    examples = []
    for number in range(-(-count // 2)):
        organ, side = str(rng.choice(ORGANS)), str(rng.choice(SIDES))
        course = Course(organ, bool(number % 2), bool(number // 2 % 2) is not swapped)
        name = f"follow-up-{split}-{number:05d}{'-swapped' if swapped else ''}"
        pictures = draw_pair(course, rng, side)
        shared: dict[str, Any] = {
            "images": tuple(png_bytes(Image.fromarray(one)) for one in pictures),
            "image_labels": course.labels,
            "image_id": name,
            "rationale": course.rationale,
            "organ": organ,
            "dataset": "follow-up",
            "split": split,
        }
        examples += [
            Example(id=f"{name}-{what}", **shared, **asked)
            for what, asked in zip(("larger", "new"), course.questions(), strict=True)
        ]
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


def write_swapped_test(path: Path, seed: int) -> None:
    """Writes half as many: the first of the other test."""
    write_examples(path, draw_follow_ups(MEASURED // 2, seed, "test", swapped=True))


def write_words_train(path: Path, seed: int) -> None:
    write_examples(path, draw_in_words(TRAINED, seed, "train"))


def write_words_test(path: Path, seed: int) -> None:
    write_examples(path, draw_in_words(MEASURED, seed, "test"))


def write_mixed_train(path: Path, seed: int) -> None:
    write_examples(path, mixed(TRAINED, seed, "train"))


# The base that has learnt to compare.


def draw_course(rng: np.random.Generator) -> Course:
    grew, new_first = rng.random(2) < 0.5
    return Course(str(rng.choice(ORGANS)), bool(grew), bool(new_first))


def draw_follow_up_lessons(seed: int, stage: int, random_share: float) -> Iterator[Lesson]:
    """Returns lessons without end, a pure function of the arguments. `random_share` of the replies
    claim a course by lot, in thinking and answer alike; some lessons are the base's own."""
    families, names = read_families(), list(build.FAMILIES)

    def draw(rng: np.random.Generator) -> Lesson:
        course = draw_course(rng)
        pictures = draw_pair(course, rng, str(rng.choice(SIDES)))
        claimed = course
        if rng.random() < random_share:
            claimed = replace(draw_course(rng), organ=course.organ)
        number = int(rng.integers(2))
        asked, told = course.questions()[number], claimed.questions()[number]
        example = Example(id="", images=(), image_id="", **asked)
        if rng.random() < build.TEXT_SHARE:
            # Read from the reasoning, without the pictures.
            prompt = rederive_text(example, claimed.rationale)
            return Lesson(None, prompt, (), target_text("answer", "", told["answer"]))
        family = families[names[rng.choice(len(names), p=list(build.FAMILIES.values()))]]
        prompt = question_text(example, family, str(rng.choice(family.wordings)))
        reply = target_text(family.form, claimed.rationale, told["answer"])
        shown = tuple(Image.fromarray(one).convert("RGB") for one in pictures)
        return Lesson(None, prompt, shown, reply, course.labels)

    return mixed_lessons(draw, seed, 3000 + stage, OTHER_SHARE)


def drawn_sizes(seed: int) -> Iterator[Seen]:
    """Yields pictures, and the loss of what they show: the organ, the lesion's side, and its
    size."""
    rng = np.random.default_rng([seed, 4000])
    while True:
        truth = np.stack([rng.integers(n, size=VISION_BATCH) for n in (len(ORGANS), 2, 2)], 1)
        pictures = []
        for organ, side, size in truth:
            anatomy, place = outline(ORGANS[organ], rng), draw_place(SIDES[side], rng)
            drawn = with_lesion(anatomy, place, (SMALL, LARGE)[size], rng)
            pictures.append(Image.fromarray(drawn).convert("RGB"))
        targets = torch.from_numpy(truth)

        def loss_of(read: torch.Tensor, targets: torch.Tensor = targets) -> torch.Tensor:
            parts = read.split([len(ORGANS), 2, 2], 1)
            losses = [cross_entropy(part, targets[:, place]) for place, part in enumerate(parts)]
            return torch.stack(losses).sum()

        yield pictures, loss_of


def teach(
    model: Qwen2VLForConditionalGeneration, processor: Qwen2VLProcessor, seed: int
) -> Iterator[float]:
    """The vision tower how large lesions are, then the language model true replies, then doubtful
    ones. Yields the loss of every step."""
    torch.manual_seed(seed)
    reader = torch.nn.Linear(model.config.text_config.hidden_size, len(ORGANS) + 4)
    yield from train_tower(model, processor, reader, drawn_sizes(seed), VISION_STEPS)
    true = draw_follow_up_lessons(seed, 1, 0.0)
    doubtful = draw_follow_up_lessons(seed, 2, RANDOM_SHARE)
    yield from train_replies(model, processor, [(true, TRUE_STEPS), (doubtful, DOUBTING_STEPS)])


def base_model() -> Path:
    """Returns the base that compares two pictures."""
    return taught_base("follow-up", __file__, teach)
