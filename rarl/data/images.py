"""Encoded image → RGB pixels at the exact size the model's image processor would choose, so that
trainer and sampler see the same pixels and neither resizes again. And the controls: the same
questions with an image that cannot help; what a model scores there, it knows without looking."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rarl.errors import UserError
from rarl.patches import PatchRule

MAX_ENCODED_PIXELS = 100_000_000  # a decompression bomb, not a radiograph, above this
SMALLEST_SIDE = 8  # pixels
BLANK_RANGE = 2  # of 255: what encoding an even picture leaves
GREY = 128
ORIENTATION = 0x0112  # of EXIF
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# blank: a grey picture of the same size; shuffled: another question's picture; text: none at all
Control = Literal["blank", "shuffled", "text"]


class BadImage(ValueError):
    """The bytes cannot be shown to the model; the message says why."""


def decode_image(encoded: bytes, format: str | None = None) -> Image.Image:
    """Decodes to upright RGB; 16-bit greys are scaled by their own range. Raises BadImage, also for
    a file of another format than the one that is given by Pillow's name."""
    return as_rgb(upright(load_image(encoded, format)))


def load_image(encoded: bytes, format: str | None = None) -> Image.Image:
    """Decodes to the file's own mode. Raises BadImage."""
    try:
        image: Image.Image = Image.open(io.BytesIO(encoded), formats=[format] if format else None)
        size = f"{image.width}x{image.height}"
        if image.width * image.height > MAX_ENCODED_PIXELS:
            raise BadImage(f"{size} pixels are more than {MAX_ENCODED_PIXELS}")
        image.load()
    except BadImage:
        raise
    # Pillow's decoders raise many kinds, among them SyntaxError and struct.error.
    except Exception as error:
        raise BadImage(f"cannot be decoded ({error})") from None
    return image


def orientation(image: Image.Image) -> int:
    """Returns how EXIF tells viewers to turn the picture; 1, as it is, also where that cannot be
    read."""
    try:
        told = int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # of broken EXIF
        return 1
    return told if told in TURNS else 1


def upright(image: Image.Image) -> Image.Image:
    """Returns the picture as viewers show it."""
    told = orientation(image)
    return image.transpose(TURNS[told]) if told != 1 else image


def as_rgb(image: Image.Image) -> Image.Image:
    """Raises BadImage for pixels that are infinite, or no numbers, as TIFF may hold them."""
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, dtype=np.float64)
        if not np.isfinite(values).all():
            raise BadImage("has pixels that are not finite numbers")
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


def size_of(encoded: bytes) -> tuple[int, int]:
    """Returns (height, width) without decoding the pixels. Raises BadImage."""
    try:
        width, height = Image.open(io.BytesIO(encoded)).size
    except Exception as error:
        raise BadImage(f"cannot be decoded ({error})") from None
    return height, width


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
    height, width = fitted_size(image.height, image.width, image_processor, max_pixels)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)


def fitted_size(
    height: int, width: int, image_processor: Any, max_pixels: int | None
) -> tuple[int, int]:
    """Returns (height, width) on the processor's grid, for an image of this size. Raises
    BadImage."""
    # Imported here: workers that only decode start several seconds sooner without it.
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    lower, upper = pixel_bounds(image_processor, max_pixels)
    factor = image_processor.patch_size * image_processor.merge_size
    try:
        rows, columns = smart_resize(height, width, factor, lower, upper)
    except ValueError as error:
        raise BadImage(f"{width}x{height} pixels: {error}") from None
    # The rule oversteps its own bounds for long or small pictures.
    if not lower <= rows * columns <= upper:
        return nearest_grid(height / width, factor, lower, upper)
    return rows, columns


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


def patch_rule(image_processor: Any) -> PatchRule:
    """Returns the rule by which the processor makes patches. Like the processor, it normalises in
    one step, in float32, by mean and deviation in units of the pixels."""
    unit = np.float32(1 / image_processor.rescale_factor)
    mean, std = (
        tuple((np.array(each, dtype=np.float32) * unit).tolist())
        for each in (image_processor.image_mean, image_processor.image_std)
    )
    sizes = (
        image_processor.patch_size,
        image_processor.temporal_patch_size,
        image_processor.merge_size,
    )
    return PatchRule(*sizes, mean, std)


def pixel_bounds(image_processor: Any, max_pixels: int | None) -> tuple[int, int]:
    """Returns the smallest and the largest area that the processor leaves alone, the latter at most
    `max_pixels`. Raises UserError if that is below the smallest."""
    lower = int(image_processor.size["shortest_edge"])
    upper = int(image_processor.size["longest_edge"])
    if max_pixels is not None and max_pixels < lower:
        below = f"data.max_pixels={max_pixels} is below the model's own minimum of {lower}"
        raise UserError(f"{below}: raise it")
    return lower, min(upper, max_pixels or upper)


def blank_image(encoded: bytes) -> bytes:
    """Returns an evenly grey PNG of the same width and height. Raises BadImage."""
    return png_bytes(Image.new("RGB", decode_image(encoded).size, (GREY, GREY, GREY)))


def rows_with_other_images(image_ids: Sequence[str], seed: int = 0) -> NDArray[np.int64]:
    """Returns for each position that of a question about another image, shape (n,); questions that
    share an image share the other one too. Raises UserError if there is only one image."""
    positions: dict[str, int] = {}
    for position, image in enumerate(image_ids):
        positions.setdefault(image, position)
    if len(positions) < 2:
        raise UserError("the control 'shuffled' needs at least two images")
    order = np.random.default_rng(seed).permutation(sorted(positions))
    following = dict(zip(order, np.roll(order, -1), strict=True))
    return np.array([positions[following[image]] for image in image_ids], dtype=np.int64)
