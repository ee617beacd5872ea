"""Image files without what may name a patient beside their pixels: EXIF, comments, texts. JPEG and
PNG keep their coded pixels byte for byte. Other formats that say something become PNG, as does a
picture that EXIF tells to turn, so that it is what viewers show."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from PIL import Image

from rarl.data.images import as_rgb, load_image, orientation, png_bytes, upright

JPEG, PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
# Which colours a JPEG holds, the only application segments that decoders need.
KEPT_SEGMENTS = {0xE0: b"JFIF\0", 0xEE: b"Adobe"}
SEGMENTS = (*range(0xE0, 0xF0), 0xFE)
START_OF_SCAN, END = 0xDA, b"\xff\xd9"
MARKER_IN_SCAN = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
# Transparency, colour and size on paper, besides chunks whose names begin with a capital.
KEPT_CHUNKS = (b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"bKGD", b"pHYs")
# Of TIFF: how pixels are stored, and the resolution.
TIFF_TAGS = {*range(254, 260), 262, 266, 273, *range(277, 285), 296, 297, 317, 320}
TIFF_TAGS |= {*range(322, 326), 338, 339, 347, *range(529, 533)}
SPEAKING = ("exif", "xmp", "XML:com.adobe.xmp", "comment", "photoshop")  # of Pillow's `info`
DIRECT = ("L", "RGB", "RGBA", "I;16")  # modes that PNG holds as they are


def without_metadata(encoded: bytes) -> bytes:
    """Returns the same picture; the same bytes if nothing was to be taken away. Raises BadImage."""
    # Pillow's readers raise many kinds; what cannot be taken apart is encoded again.
    with suppress(Exception):
        kept = kept_bytes(encoded)
        if kept is not None:
            return kept
    shown = upright(load_image(encoded))
    shown = shown if shown.mode in DIRECT else as_rgb(shown)
    shown.info.clear()
    return png_bytes(shown)


def kept_bytes(encoded: bytes) -> bytes | None:
    """Returns what is kept of the file; None if it has to be encoded again."""
    image = Image.open(io.BytesIO(encoded))
    if orientation(image) != 1:
        return None
    if encoded.startswith(JPEG):
        return b"".join(jpeg_parts(encoded))
    if encoded.startswith(PNG):
        return b"".join(png_parts(encoded))
    return None if speaks(image) else encoded


def jpeg_parts(encoded: bytes) -> Iterator[bytes]:
    """Yields what is kept of a JPEG. Raises ValueError if its segments cannot be told apart."""
    yield JPEG
    at = len(JPEG)
    while True:
        while encoded[at : at + 2] == b"\xff\xff":  # markers may be padded
            at += 1
        if encoded[at : at + 2] == END:
            yield END
            return
        if len(encoded) < at + 4:
            return  # a file without an end, which decoders bear
        if encoded[at] != 0xFF:
            raise ValueError(f"no JPEG marker at byte {at}")
        kind = encoded[at + 1]
        stop = at + 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
        if kind == START_OF_SCAN:
            following = MARKER_IN_SCAN.search(encoded, stop)
            stop = following.start() if following else len(encoded)
        needed = kind in KEPT_SEGMENTS and encoded.startswith(KEPT_SEGMENTS[kind], at + 4)
        if needed or kind not in SEGMENTS:
            yield encoded[at:stop]
        at = stop


def png_parts(encoded: bytes) -> Iterator[bytes]:
    """Yields what is kept of a PNG, up to its end."""
    yield PNG
    at = len(PNG)
    while at < len(encoded):
        name = encoded[at + 4 : at + 8]
        stop = at + 12 + int.from_bytes(encoded[at : at + 4], "big")
        if name[:1].isupper() or name in KEPT_CHUNKS:
            yield encoded[at:stop]
        if name == b"IEND":
            return
        at = stop


def speaks(image: Any) -> bool:
    """Returns whether a file of another format holds more than pixels, or is of a kind unknown."""
    if image.format == "BMP":
        return False
    if image.format not in ("TIFF", "GIF", "WEBP"):
        return True
    tags = set(image.tag_v2) - TIFF_TAGS if image.format == "TIFF" else set()
    return bool(tags) or image.n_frames > 1 or any(image.info.get(name) for name in SPEAKING)
