"""Phantoms that take a second look: 448 pixels wide, with a dark lesion of 4 pixels' radius, solid
or hollow, in the middle of a bright shadow. Shown whole, at a quarter of its size, the picture
tells where the lesion is, and not which of the two: both take away the same sum of light. A detail
of the file tells it.

The base model that ships with RARL has never seen such a picture. Here it is taught to name the
place and to read the detail, and then made uncertain of the place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss
from transformers import Qwen2VLForConditionalGeneration, Qwen2VLProcessor

from rarl.data.images import png_bytes
from rarl.data.parquet import write_examples
from rarl.look import detail_around
from rarl.prompts import LOOK, LOOK_LABELS, question_text, read_families
from rarl.replies.boxes import STYLES, write_boxes
from rarl.replies.tags import target_text
from rarl.schema import Box, Example, Frame
from rarl.tiny.phantoms import ORGANS, SIDES, SIGNS, SIZE, ellipse, outline
from rarl.tiny.taught import mixed_lessons, taught_base
from rarl.tiny.training import Lesson, Seen, train_replies, train_tower

TIMES = 4  # that a picture is as wide as it is shown
WIDTH = TIMES * SIZE  # pixels
RADIUS, HOLE = 4.0, 2.4  # of a lesion, and of the middle of a hollow one
SHADOW, SHADOWS = 0.55, (7.0, 11.0)  # brightness, and radii in the picture as it is shown
DARK = 0.4  # of a solid lesion; the ring of a hollow one is as much darker as it is smaller
NOISE, BRIGHTEST = 0.05, 1.2
AROUND = 11.2  # pixels on each side of a lesion's middle that are in its box: 25 thousandths
AWRY = 14  # pixels that a look may be beside a lesion's middle, and show it
ROOM = 6  # pixels around a lesion's middle that it may reach
LEAST = 56  # pixels: the side of the smallest detail, as the tiny processor takes it
FRAME = Frame("qwen2_vl", WIDTH, WIDTH, SIZE, SIZE)
QUESTION = "Is the lesion hollow?"
TRAINED, MEASURED = 480, 200
KIND_STEPS, PLACE_STEPS, VISION_STEPS = 120, 160, 210
TRUE_STEPS, DOUBTING_STEPS = 520, 25
VISION_BATCH = 48
RANDOM_SHARE = 0.4  # of the looks that name a random place, in the last stage
OTHER_SHARE = 0.1  # of the lessons that are the base's own
LOOK_SHARE, CLOSE_SHARE = 0.65, 0.85  # of the others: where to look; with a detail beside the whole
ASTRAY_SHARE = 0.25  # of the details that show another place than the lesion's
PROMPTS = ("plain", "reason", "none")  # families that the base is asked with


@dataclass(frozen=True)
class Tiny:
    """What a picture shows: the truth from which image, answer and rationale are made."""

    organ: str
    side: str
    hollow: bool

    @property
    def answer(self) -> str:
        return "yes" if self.hollow else "no"

    @property
    def rationale(self) -> str:
        return f"{SIGNS[self.organ]} A {'hollow' if self.hollow else 'solid'} spot."


def draw_tiny(rng: np.random.Generator) -> Tiny:
    return Tiny(str(rng.choice(ORGANS)), str(rng.choice(SIDES)), bool(rng.random() < 0.5))


def draw_lesion(picture: NDArray[np.float64], x: float, y: float, hollow: bool) -> None:
    """Takes away the light of a lesion with this middle, in place."""
    left, top = round(x) - ROOM, round(y) - ROOM
    down, across = np.mgrid[top : top + 2 * ROOM, left : left + 2 * ROOM]
    distance = np.hypot(across - x, down - y)
    disc, hole = (np.clip(radius - distance + 0.5, 0, 1) for radius in (RADIUS, HOLE))
    dark = disc - hole if hollow else disc
    place = np.s_[top : top + 2 * ROOM, left : left + 2 * ROOM]
    picture[place] -= DARK * disc.sum() / dark.sum() * dark


def draw_shadow(
    facts: Tiny, rng: np.random.Generator
) -> tuple[NDArray[np.float64], tuple[float, float]]:
    """Returns the picture without its lesion, at the size at which it is shown, with the middle of
    the shadow, (x, y)."""
    x = SIZE / 2 + (-1 if facts.side == "left" else 1) * rng.uniform(14, 28)
    y = SIZE / 2 + rng.uniform(-28, 28)
    across, down = rng.uniform(*SHADOWS, 2)
    anatomy = np.clip(outline(facts.organ, rng), 0, 0.6)
    return anatomy + SHADOW * ellipse((x, y), (across, down)), (x, y)


def draw_picture(facts: Tiny, rng: np.random.Generator) -> tuple[Image.Image, Box]:
    """Returns a picture that is WIDTH pixels wide and high, and the box of its lesion."""
    anatomy, (x, y) = draw_shadow(facts, rng)
    picture = anatomy.repeat(TIMES, 0).repeat(TIMES, 1)
    picture += NOISE * rng.standard_normal((WIDTH, WIDTH), np.float32)
    # A pixel of the picture that is shown is four wide.
    x, y = (TIMES * (one + 0.5) - 0.5 for one in (x, y))
    draw_lesion(picture, x, y, facts.hollow)
    box = Box("lesion", x - AROUND, y - AROUND, x + AROUND, y + AROUND)
    return developed(picture), box


def developed(picture: NDArray[np.float64]) -> Image.Image:
    """Returns grey values as an RGB image."""
    return Image.fromarray((np.clip(picture / BRIGHTEST, 0, 1) * 255).astype(np.uint8)).convert(
        "RGB"
    )


def draw_examples(count: int, seed: int, split: str) -> list[Example]:
    """Returns a question for each of `count` pictures, a pure function of the arguments."""
    rng = np.random.default_rng([seed, *f"second-look/{split}".encode()])
    examples = []
    for number in range(count):
        facts = draw_tiny(rng)
        picture, box = draw_picture(facts, rng)
        name = f"second-look-{split}-{number:05d}"
        examples.append(
            Example(
                id=name,
                images=(png_bytes(picture),),
                image_id=name,
                question=QUESTION,
                answer=facts.answer,
                answer_type="closed",
                rationale=facts.rationale,
                organ=facts.organ,
                dataset="second-look",
                split=split,
                boxes=(box,),
            )
        )
    return examples


# What `configs/recipes/tiny/second_look.yaml` names.


def write_train(path: Path, seed: int) -> None:
    write_examples(path, draw_examples(TRAINED, seed, "train"))


def write_test(path: Path, seed: int) -> None:
    write_examples(path, draw_examples(MEASURED, seed, "test"))


# The base that looks twice.


def shown(picture: Image.Image) -> Image.Image:
    """Returns a picture at the size at which all are shown."""
    return picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC)


def close(picture: Image.Image, box: Box) -> Image.Image:
    """Returns the detail as it is shown, as large as the whole."""
    detail = detail_around(box.corners, WIDTH, WIDTH, LEAST)
    assert detail is not None, "the box is in the picture"
    return shown(picture.crop(detail))


def on_grid(box: Box) -> Box:
    """Returns the box moved to the next tens of thousandths: few numbers are learnt sooner."""
    step = WIDTH / 100
    x, y = (step * round(one / step) for one in (box.x1, box.y1))
    return Box(box.label, x, y, x + 2 * AROUND, y + 2 * AROUND)


def aside(box: Box, rng: np.random.Generator, most: float) -> Box:
    """Returns the box moved by up to `most` pixels each way, as an uncertain look names it."""
    dx, dy = rng.uniform(-most, most, 2)
    return Box(box.label, box.x1 + dx, box.y1 + dy, box.x2 + dx, box.y2 + dy)


def draw_look_lessons(seed: int, stage: int, random_share: float) -> Iterator[Lesson]:
    """Returns lessons without end, a pure function of the arguments. `random_share` of the looks
    name a random place. Without the lesion in sight, replies claim either kind. Some lessons are
    the base's own."""
    families = read_families()

    def draw(rng: np.random.Generator) -> Lesson:
        facts = draw_tiny(rng)
        picture, box = draw_picture(facts, rng)
        asked = Example("", (b"",), "", QUESTION, facts.answer, "closed")
        if rng.random() < LOOK_SHARE:
            named = box
            if rng.random() < random_share:
                _, named = draw_picture(draw_tiny(rng), rng)
            family = families[LOOK]
            prompt = question_text(asked, family, family.wordings[0], STYLES[FRAME.family].asked)
            reply = target_text("look", "", write_boxes([on_grid(named)], FRAME))
            return Lesson(None, prompt, (shown(picture),), reply)
        family = families[str(rng.choice(PROMPTS))]
        prompt = question_text(asked, family, str(rng.choice(family.wordings)))
        pictures: tuple[Image.Image, ...] = (shown(picture),)
        labels: tuple[str, ...] = ("",)
        sees = False
        if rng.random() < CLOSE_SHARE:
            sees = rng.random() >= ASTRAY_SHARE
            spot = aside(box, rng, AWRY)
            if not sees:
                astray = Tiny(facts.organ, SIDES[facts.side == "left"], facts.hollow)
                _, spot = draw_picture(astray, rng)
            pictures, labels = (shown(picture), close(picture, spot)), LOOK_LABELS
        claimed = facts if sees else Tiny(facts.organ, facts.side, bool(rng.random() < 0.5))
        reply = target_text(family.form, claimed.rationale, claimed.answer)
        return Lesson(None, prompt, pictures, reply, labels)

    return mixed_lessons(draw, seed, 5000 + stage, OTHER_SHARE)


def drawn_kinds(seed: int) -> Iterator[Seen]:
    """Yields details of an even field, and the loss of which kind of lesion is in them."""
    rng = np.random.default_rng([seed, 7000])
    while True:
        kinds = rng.random(VISION_BATCH) < 0.5
        details = []
        for hollow in kinds:
            field = np.full((LEAST, LEAST), rng.uniform(SHADOW, BRIGHTEST))
            field += NOISE * rng.standard_normal((LEAST, LEAST))
            x, y = (LEAST - 1) / 2 + rng.uniform(-AWRY, AWRY, 2)
            draw_lesion(field, x, y, bool(hollow))
            details.append(shown(developed(field)))
        yield details, partial(kind_loss, kinds=torch.from_numpy(kinds).float())


def drawn_shadows(seed: int) -> Iterator[Seen]:
    """Yields pictures without lesions, and the loss of where their shadows are."""
    rng = np.random.default_rng([seed, 8000])
    while True:
        drawn = [draw_shadow(draw_tiny(rng), rng) for _ in range(VISION_BATCH)]
        middles = torch.tensor([place for _, place in drawn]) / SIZE * 10 - 5
        pictures = [developed(anatomy) for anatomy, _ in drawn]
        yield pictures, partial(place_loss, middles=middles)


def drawn_both(seed: int) -> Iterator[Seen]:
    """Yields whole pictures, and the loss of where their lesions are, and by turns details, and the
    loss of which kind is in them."""
    rng = np.random.default_rng([seed, 6000])
    while True:
        wholes, details, kinds, places = [], [], [], []
        for _ in range(VISION_BATCH):
            facts = draw_tiny(rng)
            picture, box = draw_picture(facts, rng)
            wholes.append(shown(picture))
            details.append(close(picture, aside(box, rng, AWRY)))
            kinds.append(float(facts.hollow))
            places.append(((box.x1 + box.x2) / 2, (box.y1 + box.y2) / 2))
        middles, told = torch.tensor(places) / WIDTH * 10 - 5, torch.tensor(kinds)
        yield wholes, partial(place_loss, middles=middles)
        yield details, partial(kind_loss, kinds=told)


def place_loss(read: torch.Tensor, middles: torch.Tensor) -> torch.Tensor:
    return mse_loss(read[:, :2], middles)


def kind_loss(read: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
    return binary_cross_entropy_with_logits(read[:, 2], kinds)


def teach(
    model: Qwen2VLForConditionalGeneration, processor: Qwen2VLProcessor, seed: int
) -> Iterator[float]:
    """The vision tower which kind a lesion is where there is nothing else, where shadows are, and
    both; then the language model true replies, then doubtful looks. Yields the loss of every
    step."""
    torch.manual_seed(seed)
    reader = torch.nn.Linear(model.config.text_config.hidden_size, 3)
    yield from train_tower(model, processor, reader, drawn_kinds(seed), KIND_STEPS)
    yield from train_tower(model, processor, reader, drawn_shadows(seed), PLACE_STEPS)
    yield from train_tower(model, processor, reader, drawn_both(seed), VISION_STEPS)
    true = draw_look_lessons(seed, 1, 0.0)
    doubtful = draw_look_lessons(seed, 2, RANDOM_SHARE)
    yield from train_replies(model, processor, [(true, TRUE_STEPS), (doubtful, DOUBTING_STEPS)])


def base_model() -> Path:
    """Returns the base that looks twice."""
    return taught_base("second-look", __file__, teach)
