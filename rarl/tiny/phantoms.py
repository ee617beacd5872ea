"""Phantom radiographs: outlines of four body parts, noise, and now and then a lesion, with
questions about them.

Two domains, as of two hospitals. `seen` is trained on: bright structures on black, fine noise.
`unseen` is only measured: inverted contrast over a grey gradient, coarse noise, fainter lesions,
other wording. Every picture is a pure function of a numpy generator, so a data set is a pure
function of its seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray

from rarl.schema import Box

Domain = Literal["seen", "unseen"]
Topic = Literal["organ", "lesion", "side"]

SIZE = 112  # pixels: 8 x 8 patches of 14, merged 2 x 2 into 16 image tokens
ORGANS = ("chest", "brain", "abdomen", "knee")
SIDES = ("left", "right")
QUESTIONS: tuple[Topic, ...] = ("organ", "lesion", "side")

WORLD: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("world.yaml").read_text("utf-8"))
WORDINGS: dict[Domain, dict[Topic, list[str]]] = WORLD["wordings"]
SIGNS: dict[str, str] = WORLD["signs"]


@dataclass(frozen=True)
class Facts:
    """What a picture shows: the truth from which image, answers and rationales are made."""

    organ: str
    side: str | None  # half of the picture with the lesion; None without one


def draw_facts(rng: np.random.Generator, organs: Sequence[str] = ORGANS) -> Facts:
    """A picture's facts: each organ equally likely, a lesion in two of three, in either half."""
    organ = str(rng.choice(organs))
    return Facts(organ, str(rng.choice(SIDES)) if rng.random() < 2 / 3 else None)


def ellipse(centre: tuple[float, float], radii: tuple[float, float]) -> NDArray[np.float64]:
    """A (SIZE, SIZE) mask in [0, 1] with a soft edge of about one pixel; centre and radii are (x,
    y) in pixels."""
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    distance = np.sqrt(((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2)
    return np.clip((1 - distance) * min(radii) + 0.5, 0, 1)


def outline(organ: str, rng: np.random.Generator) -> NDArray[np.float64]:
    """The organ as grey values in [0, 1] on black, jittered in place and size."""
    cx, cy = SIZE / 2 + rng.uniform(-4, 4, 2)
    scale = rng.uniform(0.9, 1.08)

    def blob(dx: float, dy: float, rx: float, ry: float) -> NDArray[np.float64]:
        return ellipse((cx + dx * scale, cy + dy * scale), (rx * scale, ry * scale))

    if organ == "chest":
        body = 0.45 * blob(0, 0, 50, 48) - 0.3 * blob(-21, 0, 16, 36) - 0.3 * blob(21, 0, 16, 36)
        ribs = np.sum([blob(0, dy, 46, 1.6) for dy in range(-32, 33, 13)], axis=0)
        return np.clip(body + 0.12 * ribs, 0, 1)
    if organ == "brain":
        body = 0.6 * blob(0, 0, 44, 50) - 0.35 * blob(0, 0, 39, 45) - 0.2 * blob(0, 0, 1.8, 40)
        return np.clip(body, 0, 1)
    if organ == "abdomen":
        body = 0.2 * blob(0, 0, 52, 40) + 0.3 * blob(-28, 6, 9, 17) + 0.3 * blob(28, 6, 9, 17)
        return np.clip(body + 0.25 * blob(0, 18, 8, 6), 0, 1)
    body = 0.4 * blob(0, -33, 21, 28) + 0.4 * blob(0, 33, 21, 28) + 0.12 * blob(0, 0, 30, 52)
    return np.clip(body, 0, 1)


def draw_image(
    facts: Facts, domain: Domain, rng: np.random.Generator, contrast: float | None = None
) -> NDArray[np.uint8]:
    """Renders (SIZE, SIZE) uint8. `contrast` is the lesion's, in units of the full grey range; by
    default it is the domain's own."""
    return draw_boxed(facts, domain, rng, contrast)[0]


def draw_boxed(
    facts: Facts, domain: Domain, rng: np.random.Generator, contrast: float | None = None
) -> tuple[NDArray[np.uint8], tuple[Box, ...]]:
    """Returns what `draw_image` renders, and the box of its lesion, where there is one."""
    boxes: tuple[Box, ...] = ()
    contrast = WORLD["looks"][domain]["lesion_contrast"] if contrast is None else contrast
    picture = outline(facts.organ, rng)
    if facts.side is not None:
        x = SIZE / 2 + (-1 if facts.side == "left" else 1) * rng.uniform(14, 28)
        y = SIZE / 2 + rng.uniform(-28, 28)
        radii = rng.uniform(7, 11, 2)
        picture = picture + contrast * ellipse((x, y), (radii[0], radii[1]))
        across, down = radii.tolist()
        boxes = (Box("lesion", x - across, y - down, x + across, y + down),)
    return exposed(picture, domain, rng), boxes


def exposed(
    anatomy: NDArray[np.float64], domain: Domain, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Takes the picture of an anatomy, (SIZE, SIZE) grey values in [0, 1] on black, as the domain
    does: with its noise, and inverted where it inverts. Returns (SIZE, SIZE) uint8."""
    look = WORLD["looks"][domain]
    size = look["noise_grain"]
    grain = rng.normal(0, look["noise"], (SIZE // size, SIZE // size))
    picture = anatomy + np.kron(grain, np.ones((size, size)))
    picture = picture + look["gradient"] * np.linspace(0, 1, SIZE)[:, None]
    picture = 1 - picture if look["inverted"] else picture
    return (np.clip(picture, 0, 1) * 255).astype(np.uint8)


def questions_for(facts: Facts) -> tuple[Topic, ...]:
    """Where the lesion is, is asked only when there is one."""
    return QUESTIONS if facts.side is not None else ("organ", "lesion")


def options_for(question: Topic, rng: np.random.Generator) -> tuple[str, ...] | None:
    if question == "lesion":
        return None
    return tuple(str(o) for o in rng.permutation(ORGANS if question == "organ" else SIDES))


def answer_for(question: Topic, facts: Facts) -> str:
    if question == "organ":
        return facts.organ
    if question == "lesion":
        return "no" if facts.side is None else "yes"
    assert facts.side is not None, "where a lesion is can only be answered when there is one"
    return facts.side


def rationale_for(facts: Facts) -> str:
    """The evidence, from which every answer about the picture follows: what is shown, and what lies
    where."""
    spot = "No round spot." if facts.side is None else f"A round spot in the {facts.side} half."
    return f"{SIGNS[facts.organ]} {spot}"


def corrupt(question: Topic, facts: Facts, rng: np.random.Generator) -> Facts:
    """Facts drawn at random among those that make the question answerable: what an uncertain model
    might claim."""
    absent = question != "side" and rng.random() < 1 / 3
    return Facts(str(rng.choice(ORGANS)), None if absent else str(rng.choice(SIDES)))
