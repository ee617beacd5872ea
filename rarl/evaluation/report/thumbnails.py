"""Pictures small enough to travel inside the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence

from PIL import Image, ImageChops

from rarl.data.images import BadImage, decode_image
from rarl.data.parquet import ParquetRows

LARGEST_SIDE = 256  # pixels
TOTAL_BYTES = 7_000_000  # of all pictures before base64, which adds a third
MOST_BYTES = 48_000  # of one
QUALITIES = (85, 75, 60, 45, 30)


def byte_limit(pictures: int) -> int:
    """What one picture may take, so that all together stay within `TOTAL_BYTES`."""
    return min(MOST_BYTES, TOTAL_BYTES // max(1, pictures))


def thumbnail(encoded: bytes, limit: int) -> str | None:
    """A data URL of at most `limit` bytes before base64, or None where the picture cannot be
    decoded.

    JPEG or PNG, whichever is smaller: line drawings and phantoms want PNG. Quality falls first,
    then size.
    """
    try:
        image = decode_image(encoded)
    except BadImage:
        return None
    if is_grey(image):
        image = image.convert("L")
    side = LARGEST_SIDE
    while True:
        small = image.copy()
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        for kind, data in encodings(small):
            if len(data) <= limit or side <= 32:
                return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
        side = side * 3 // 4


def encodings(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    """From best to worst."""
    png, jpeg = (
        encode(image, "PNG", optimize=True),
        encode(image, "JPEG", quality=QUALITIES[0], optimize=True),
    )
    yield min((("png", png), ("jpeg", jpeg)), key=lambda one: len(one[1]))
    for quality in QUALITIES[1:]:
        yield "jpeg", encode(image, "JPEG", quality=quality, optimize=True)


def encode(image: Image.Image, kind: str, **options: int | bool) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def is_grey(image: Image.Image) -> bool:
    red, green, blue = image.split()
    return all(ImageChops.difference(red, other).getbbox() is None for other in (green, blue))


def read_images(rows: ParquetRows, wanted: Sequence[int]) -> Iterator[tuple[int, bytes]]:
    """Row number and encoded picture, one row group in memory at a time: photographs are large."""
    numbers = set(wanted)
    for (file, group), start, end in zip(rows.groups, rows.starts, rows.starts[1:], strict=False):
        here = [number for number in range(start, end) if number in numbers]
        if here:
            column = rows.files[file].read_row_group(group, columns=["image"])["image"]
            for number in here:
                yield number, column[number - start].as_py()
