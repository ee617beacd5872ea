"""Controls: the same questions with an image that cannot help. What a model scores there, it knows
without looking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rarl.data.images import decode_image, png_bytes
from rarl.errors import UserError

# blank: a grey picture of the same size; shuffled: another question's picture; text: none at all
Control = Literal["blank", "shuffled", "text"]
GREY = 128


def blank_image(encoded: bytes) -> bytes:
    """Returns an evenly grey PNG of the same width and height. Raises BadImage."""
    return png_bytes(Image.new("RGB", decode_image(encoded).size, (GREY, GREY, GREY)))


def rows_with_other_images(image_ids: Sequence[str], seed: int = 0) -> NDArray[np.int64]:
    """Returns for each position that of a question about another image, shape (n,). Questions that
    share an image share the other one too, and each image is used for one other. Raises UserError
    if there is only one image."""
    positions: dict[str, int] = {}
    for position, image in enumerate(image_ids):
        positions.setdefault(image, position)
    if len(positions) < 2:
        raise UserError("the control 'shuffled' needs at least two images")
    order = np.random.default_rng(seed).permutation(sorted(positions))
    following = dict(zip(order, np.roll(order, -1), strict=True))
    return np.array([positions[following[image]] for image in image_ids], dtype=np.int64)
