"""Encoded image → RGB pixels at the exact size the model's image processor would choose.

The shrunk picture goes to trainer and sampler alike, so both see the same pixels and the same
number of image tokens, and neither resizes again: the processor's size rule leaves a picture alone
that already obeys it.
"""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rarl.errors import UserError

MAX_ENCODED_PIXELS = 100_000_000  # a decompression bomb, not a radiograph, above this
SMALLEST_SIDE = 8  # pixels
BLANK_RANGE = 2  # of 255: what encoding an even picture leaves


class BadImage(ValueError):
    """The bytes cannot be shown to the model; the message says why."""


def decode_image(encoded: bytes) -> Image.Image:
    """Decodes to RGB; 16-bit greys are scaled by their own range. Raises BadImage."""
    return as_rgb(load_image(encoded))


def load_image(encoded: bytes) -> Image.Image:
    """Decodes to the file's own mode. Raises BadImage."""
    try:
        image: Image.Image = Image.open(io.BytesIO(encoded))
        if image.width * image.height > MAX_ENCODED_PIXELS:
            size = f"{image.width}x{image.height}"
            raise BadImage(f"{size} pixels are more than {MAX_ENCODED_PIXELS}")
        image.load()
    except BadImage:
        raise
    # Pillow's decoders raise many kinds, among them SyntaxError and struct.error.
    except Exception as error:
        raise BadImage(f"cannot be decoded ({error})") from None
    return image


def as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, dtype=np.float64)
        low, high = values.min(), values.max()
        image = Image.fromarray(((values - low) / max(high - low, 1e-9) * 255).astype(np.uint8))
    return image.convert("RGB")


def png_bytes(image: Image.Image) -> bytes:
    """Returns the picture as a PNG file."""
    out = io.BytesIO()
    image.save(out, format="PNG")
    return out.getvalue()


def format_of(encoded: bytes) -> str:
    """Returns Pillow's name of the format, from the content. Raises BadImage."""
    try:
        return str(Image.open(io.BytesIO(encoded)).format)
    except Exception as error:
        raise BadImage(f"cannot be decoded ({error})") from None


def require_content(image: Image.Image) -> None:
    """Raises BadImage if an RGB picture is too small, or of one shade within BLANK_RANGE."""
    if min(image.size) < SMALLEST_SIDE:
        raise BadImage(f"is only {image.width}x{image.height} pixels")
    extremes: Any = image.getextrema()  # (lowest, highest) of each channel
    if all(high - low <= BLANK_RANGE for low, high in extremes):
        raise BadImage("is blank")


def fit_image(
    image: Image.Image, image_processor: Any, max_pixels: int | None
) -> NDArray[np.uint8]:
    """Resizes to the processor's grid; returns (height, width, 3) uint8. Raises BadImage."""
    # Imported here: workers that only decode start several seconds sooner without it.
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    lower, upper = pixel_bounds(image_processor, max_pixels)
    factor = image_processor.patch_size * image_processor.merge_size
    try:
        height, width = smart_resize(image.height, image.width, factor, lower, upper)
    except ValueError as error:
        raise BadImage(f"{image.width}x{image.height} pixels: {error}") from None
    # The rule oversteps its own bounds for long or small pictures.
    if not lower <= height * width <= upper:
        height, width = nearest_grid(image.height / image.width, factor, lower, upper)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)


def nearest_grid(ratio: float, factor: int, lower: int, upper: int) -> tuple[int, int]:
    """Returns (height, width) in multiples of `factor`, with an area within the bounds, whose
    height / width is nearest to `ratio`; of equally near ones the largest."""
    most = upper // factor**2
    cells = [(r, c) for r in range(1, most + 1) for c in range(1, most // r + 1)]
    large_enough = [(r, c) for r, c in cells if r * c * factor**2 >= lower]

    def distance(cell: tuple[int, int]) -> tuple[float, int]:
        return abs(math.log(cell[0] / cell[1] / ratio)), -cell[0] * cell[1]

    rows, columns = min(large_enough, key=distance)
    return rows * factor, columns * factor


def pixel_bounds(image_processor: Any, max_pixels: int | None) -> tuple[int, int]:
    """Returns the smallest and the largest area that the processor leaves alone, the latter lowered
    to `max_pixels`. Raises UserError if that is below the smallest."""
    lower = int(image_processor.size["shortest_edge"])
    upper = int(image_processor.size["longest_edge"])
    if max_pixels is not None and max_pixels < lower:
        raise UserError(
            f"data.max_pixels={max_pixels} is below the model's own minimum of {lower}: raise it"
        )
    return lower, min(upper, max_pixels or upper)
