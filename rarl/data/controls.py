"""Controls: the same questions with an image that cannot help. What a model scores there, it knows
without looking."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rarl.data.images import decode_image
from rarl.errors import UserError

# blank: a grey picture of the same size; shuffled: another question's picture; text: no picture at
# all
Control = Literal["blank", "shuffled", "text"]
GREY = 128


def blank_image(encoded: bytes) -> bytes:
    """An evenly grey PNG of the same width and height. Raises BadImage."""
    size = decode_image(encoded).size
    file = io.BytesIO()
    Image.new("RGB", size, (GREY, GREY, GREY)).save(file, format="PNG")
    return file.getvalue()


def rows_with_other_images(image_ids: Sequence[str], seed: int = 0) -> NDArray[np.int64]:
    """For each position the position of a question about another image: questions that share an
    image share the other one too, and each image is used for one other. Raises UserError where
    there is only one image."""
    positions: dict[str, int] = {}
    for position, image in enumerate(image_ids):
        positions.setdefault(image, position)
    if len(positions) < 2:
        raise UserError("the control 'shuffled' needs at least two images")
    order = np.random.default_rng(seed).permutation(sorted(positions))
    following = dict(zip(order, np.roll(order, -1), strict=True))
    return np.array([positions[following[image]] for image in image_ids], dtype=np.int64)
