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
GAP = 8  # pixels between images that stand side by side
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


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """Returns one picture of all, scaled to the height of the lowest."""
    height = min(picture.height for picture in pictures)
    scaled = [p.resize((max(1, round(p.width * height / p.height)), height)) for p in pictures]
    whole = Image.new("RGB", (sum(p.width for p in scaled) + GAP * (len(scaled) - 1), height))
    left = 0
    for picture in scaled:
        whole.paste(picture, (left, 0))
        left += picture.width + GAP
    return whole


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


def fit_images(
    images: Sequence[Image.Image], image_processor: Any, max_pixels: int | None
) -> tuple[NDArray[np.uint8], ...]:
    """Resizes the images of one question to the processor's grid, `max_pixels` for all of them
    together. Raises BadImage."""
    bound = pixels_of_each([(i.height, i.width) for i in images], image_processor, max_pixels)
    return tuple(fit_image(image, image_processor, bound) for image in images)


def pixels_of_each(
    sizes: Sequence[tuple[int, int]], image_processor: Any, max_pixels: int | None
) -> int | None:
    """Returns the area that no image of a question may exceed, so that those of (height, width)
    `sizes` have `max_pixels` together: small ones keep theirs, and what they leave is parted evenly
    among the larger ones. None has less than the processor's own minimum, even if all together then
    have more. Raises BadImage."""
    if max_pixels is None or len(sizes) < 2:
        return max_pixels
    areas = [math.prod(fitted_size(*size, image_processor, max_pixels)) for size in sizes]
    left = max_pixels
    for number, area in enumerate(sorted(areas)):
        even = left // (len(areas) - number)
        if area > even:
            return max(even, int(image_processor.size["shortest_edge"]))
        left -= area
    return max_pixels


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


def rows_with_other_images(
    image_ids: Sequence[str], counts: Sequence[int] | None = None, seed: int = 0
) -> NDArray[np.int64]:
    """Returns for each position that of a question about other images, of as many where `counts`
    says how many each has, shape (n,); questions that share theirs share the others too. Raises
    UserError if there is only one image, or only one question of so many images."""
    alike: dict[int, dict[str, int]] = {}  # number of images → images → position
    numbers = list(counts) if counts is not None else [1] * len(image_ids)
    for position, (image, number) in enumerate(zip(image_ids, numbers, strict=True)):
        alike.setdefault(number, {}).setdefault(image, position)
    following: dict[tuple[int, str], int] = {}
    for number, positions in alike.items():
        if number and len(positions) < 2:
            many = "two images" if number == 1 else f"two questions of {number} images"
            raise UserError(f"the control 'shuffled' needs at least {many}")
        order = np.random.default_rng(seed).permutation(sorted(positions))
        following |= {
            (number, str(one)): positions[other]
            for one, other in zip(order, np.roll(order, -1), strict=True)
        }
    return np.array(
        [following[key] for key in zip(numbers, image_ids, strict=True)], dtype=np.int64
    )
