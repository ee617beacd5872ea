"""Encoded image → RGB pixels at the exact size the model's image processor would choose.

The shrunk picture goes to trainer and sampler alike, so both see the same pixels and the same number of image tokens,
and neither resizes again: the processor's size rule leaves a picture alone that already obeys it.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from rarl.errors import UserError

MAX_ENCODED_PIXELS = 100_000_000  # a decompression bomb, not a radiograph, above this


class BadImage(ValueError):
    """The bytes cannot be shown to the model; the message says why."""


def decode_image(encoded: bytes) -> Image.Image:
    """Decodes to RGB. 16-bit greys are scaled to 8 bits by their own range, as viewers do. Raises BadImage."""
    try:
        image = Image.open(io.BytesIO(encoded))
        if image.width * image.height > MAX_ENCODED_PIXELS:
            raise BadImage(f"{image.width}x{image.height} pixels are more than {MAX_ENCODED_PIXELS}")
        image.load()
    except BadImage:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds, among them SyntaxError and struct.error
        raise BadImage(f"cannot be decoded ({error})") from None
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, dtype=np.float64)
        low, high = values.min(), values.max()
        image = Image.fromarray(((values - low) / max(high - low, 1e-9) * 255).astype(np.uint8))
    return image.convert("RGB")


def fit_image(image: Image.Image, image_processor: Any, max_pixels: int | None) -> NDArray[np.uint8]:
    """Resizes to the processor's grid within its bounds and `max_pixels`; (height, width, 3) uint8. Raises BadImage."""
    lower, upper = pixel_bounds(image_processor, max_pixels)
    factor = image_processor.patch_size * image_processor.merge_size
    width, height = 0, 0
    fitted = image.size
    try:
        while fitted != (width, height):  # one pass of the rule overshoots the bound for very long pictures
            width, height = fitted
            rows, columns = smart_resize(height, width, factor, lower, upper)
            fitted = (columns, rows)
    except ValueError as error:
        raise BadImage(f"{image.width}x{image.height} pixels: {error}") from None
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)


def pixel_bounds(image_processor: Any, max_pixels: int | None) -> tuple[int, int]:
    """Smallest and largest area that the processor leaves alone, the latter lowered to `max_pixels`."""
    lower, upper = int(image_processor.size["shortest_edge"]), int(image_processor.size["longest_edge"])
    if max_pixels is not None and max_pixels < lower:
        raise UserError(f"data.max_pixels={max_pixels} is below the model's own minimum of {lower}: raise it")
    return lower, min(upper, max_pixels or upper)
