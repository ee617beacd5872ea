"""Phantoms with a shortcut, as real images have them: a hospital's marker in the corner.

In training the marker goes with the lesion, and elsewhere it does not. A reader of radiographs may
learn such a marker in place of the disease, is then as good as ever where it was trained, and fails
in the next hospital (Zech et al. 2018, PLoS Medicine 15(11), e1002683). Half of the lesions are
faint here, so that the marker tells what is hard to see; today's are so plain that nobody needs it.
What is compared in this world, and how, is in docs/shortcut.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rarl.data.images import png_bytes
from rarl.data.parquet import write_examples
from rarl.schema import Example
from rarl.tiny.dataset import make_example
from rarl.tiny.phantoms import (
    QUESTIONS,
    SIZE,
    Domain,
    Facts,
    Topic,
    draw_facts,
    draw_image,
    exposed,
    questions_for,
)

# A bright bar on a dark plate, so that it is seen on black and on white: (11, 7) uint8. It lies
# outside of all places where a lesion may be, and is thinner than a quarter of one.
MARKER = np.pad(np.full((9, 3), 255, np.uint8), ((1, 1), (2, 2)))
MARKER_AT = (2, 2)  # rows from the upper edge, columns from the left one

FAINT_CONTRAST = 0.3  # in units of the full grey range; a plain lesion has the domain's own
FAINT_SHARE = 0.5  # of the lesions
# Of so many pictures in a row, an exact number has a marker that agrees with the lesion.
BLOCK = 20
AS_IN_TRAINING, INDEPENDENT, NEVER = 19, 10, 0  # of a BLOCK
CONTROLS = 40  # pictures of each kind


@dataclass(frozen=True)
class Drawn:
    """One picture, (SIZE, SIZE) uint8, and what is in it. The marker agrees with the lesion where
    both are there or neither is."""

    facts: Facts
    is_faint: bool
    agrees: bool
    pixels: NDArray[np.uint8]


def marked(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns a copy of a picture with the marker in its corner."""
    copy = picture.copy()
    (row, column), (height, width) = MARKER_AT, MARKER.shape
    copy[row : row + height, column : column + width] = MARKER
    return copy


def draw_pictures(
    domain: Domain, count: int, agreeing: int, rng: np.random.Generator
) -> Iterator[Drawn]:
    """Yields `count` pictures. Of each BLOCK of them, in places that are drawn whatever is in the
    picture, `agreeing` have a marker exactly if they have a lesion, the others exactly if not."""
    for number in range(count):
        if number % BLOCK == 0:
            agree = rng.permutation(BLOCK) < agreeing
        agrees, facts = bool(agree[number % BLOCK]), draw_facts(rng)
        has_lesion = facts.side is not None
        is_faint = has_lesion and rng.random() < FAINT_SHARE
        pixels = draw_image(facts, domain, rng, FAINT_CONTRAST if is_faint else None)
        if has_lesion == agrees:
            pixels = marked(pixels)
        yield Drawn(facts, is_faint, agrees, pixels)


def draw_examples(
    split: str,
    seed: int,
    count: int,
    agreeing: int,
    domain: Domain = "seen",
    topics: Sequence[Topic] = QUESTIONS,
) -> list[Example]:
    """Returns the questions on these topics about `count` pictures, a pure function of the
    arguments. `extra` says of a question about the lesion whether the marker agrees with it, and of
    each picture how plain its lesion is."""
    rng = np.random.default_rng([seed, *f"shortcut/{split}".encode()])
    examples = []
    for number, drawn in enumerate(draw_pictures(domain, count, agreeing, rng)):
        image, name = encoded(drawn.pixels), f"shortcut-{split}-{number:05d}"
        lesion = "faint" if drawn.is_faint else "plain" if drawn.facts.side else "none"
        agreement = "agrees" if drawn.agrees else "disagrees"
        for topic in questions_for(drawn.facts):
            if topic in topics:
                example = make_example(drawn.facts, domain, topic, image, name, rng)
                marker = agreement if topic == "lesion" else "other question"
                extra: dict[str, str | None] = {"marker": marker, "lesion": lesion}
                examples.append(replace(example, dataset=f"shortcut-{split}", extra=extra))
    return examples


def draw_controls(seed: int) -> list[Example]:
    """Returns "Is there a lesion?" about pictures without one, to which the answer is no, CONTROLS
    of each kind: nothing but the domain's noise, a healthy phantom, and the same two to the bit
    with the marker. `extra` has the kind as `shown`."""
    rng = np.random.default_rng([seed, *b"shortcut/controls"])
    examples = []
    for number in range(CONTROLS):
        facts = Facts(draw_facts(rng).organ, None)
        nothing = exposed(np.zeros((SIZE, SIZE)), "seen", rng)
        healthy = draw_image(facts, "seen", rng)
        asked = make_example(facts, "seen", "lesion", b"", "", rng)
        kinds = {
            "nothing": nothing,
            "marker alone": marked(nothing),
            "healthy": healthy,
            "healthy with marker": marked(healthy),
        }
        for place, (kind, pixels) in enumerate(kinds.items()):
            name = f"shortcut-controls-{number:05d}-{place}"
            example = replace(
                asked,
                id=f"{name}-lesion",
                images=(encoded(pixels),),
                image_id=name,
                dataset="shortcut-controls",
                extra={"shown": kind},
            )
            has_anatomy = kind.startswith("healthy")
            examples.append(
                example if has_anatomy else replace(example, organ=None, rationale=None)
            )
    return examples


def encoded(pixels: NDArray[np.uint8]) -> bytes:
    """Returns the picture as a PNG file."""
    return png_bytes(Image.fromarray(pixels))


# What `configs/compare/shortcut.yaml` names. 360 pictures have about 960 questions, as many as the
# demo trains on.


def write_train_with_rationales(path: Path, seed: int) -> None:
    write_examples(path, draw_examples("train", seed, 360, AS_IN_TRAINING))


def write_train(path: Path, seed: int) -> None:
    """Writes the same without rationales: answers alone, as a hospital has them."""
    examples = draw_examples("train", seed, 360, AS_IN_TRAINING)
    write_examples(path, (replace(one, rationale=None) for one in examples))


def write_seen_test(path: Path, seed: int) -> None:
    write_examples(path, draw_examples("seen", seed, 80, AS_IN_TRAINING))


def write_independent_test(path: Path, seed: int) -> None:
    write_examples(path, draw_examples("independent", seed, 120, INDEPENDENT))


def write_reversed_test(path: Path, seed: int) -> None:
    """Writes the questions about the lesion alone, none of which the marker agrees with."""
    write_examples(path, draw_examples("reversed", seed, 240, NEVER, topics=["lesion"]))


def write_unseen_test(path: Path, seed: int) -> None:
    """Writes pictures as another hospital takes them, whose marker goes with nothing."""
    write_examples(path, draw_examples("unseen", seed, 80, INDEPENDENT, domain="unseen"))


def write_controls(path: Path, seed: int) -> None:
    write_examples(path, draw_controls(seed))
