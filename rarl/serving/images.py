"""Images as a request brings them → pixels that are safe to hand on.

Nothing is fetched, and nothing that a client sent reaches the engine: size, type and dimensions are
checked on the bytes, one decoder is tried, and the engine gets a fresh PNG of the pixels at the
size that the model was trained on. What a request may have, all its images have together.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rarl.data.images import BadImage, decode_image, fit_images, fitted_size, size_of
from rarl.errors import UserError
from rarl.prepare.dicom import QUIET, render
from rarl.serving.requests import NamedImage, Refusal
from rarl.serving.settings import Limits

Kind = Literal["png", "jpeg", "tiff", "dicom"]
MEDIA_TYPES: dict[str, Kind] = {
    "image/png": "png",
    "image/jpeg": "jpeg",
    "image/jpg": "jpeg",
    "image/tiff": "tiff",
    "application/dicom": "dicom",
}
DATA_URL = re.compile(r"data:(?P<type>[a-z0-9.+/-]{1,40});base64,", re.IGNORECASE)
PNG_HEAD, PNG_CHUNKS = b"\x89PNG\r\n\x1a\n", 20_000
JPEG_HEAD, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
TIFF_HEADS = (b"II*\0", b"MM\0*")
# How pixels may be packed in a TIFF, by Pillow's names: what scanners and viewers write. libtiff
# has a dozen more, which are seldom asked for and seldom tested.
TIFF_PACKED = {"raw", "packbits", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "jpeg"}
TIFF_PACKED |= {"tiff_ccitt", "group3", "group4"}
TILE_WIDTH, TILE_LENGTH = 322, 323
TIFF_DIRECTORIES = (34665, 34853, 40965)  # beside the picture's own: EXIF, GPS, interoperability
MOST_TAGS = 500  # of one directory; each costs time, and a file may have room for 65,535
# This syntax is compressed as a whole: its size is known only when it is too late.
DEFLATED_DICOM = b"1.2.840.10008.1.2.1.99"


@dataclass
class Room:
    """What the images of a request that were read have taken of what all may have together."""

    limits: Limits
    bytes: int = 0
    pixels: int = 0

    def require_bytes(self, count: int, param: str) -> None:
        """Raises Refusal for a file that is one too many."""
        if self.bytes + count > self.limits.image_bytes:
            raise Refusal("image_too_large", param, most=self.limits.image_bytes)

    def require_area(self, width: int, height: int, param: str) -> None:
        """Raises Refusal. Called with what the file's head says, before its pixels are unpacked."""
        if self.pixels + width * height > self.limits.image_pixels:
            raise self.too_many_pixels(f"{width}x{height} pixels are", param)

    def too_many_pixels(self, what: str, param: str) -> Refusal:
        return Refusal("image_too_many_pixels", param, what=what, most=self.limits.image_pixels)


def read_images(
    named: Sequence[NamedImage], limits: Limits, bare: bool = False
) -> list[Image.Image]:
    """Returns the images of data: URLs, or with `bare` of base64 alone, in RGB. Slow for large
    images: call it in a thread. Raises Refusal, which names the image."""
    room, files, images = Room(limits), [], []
    for one in named:
        files.append(read_bytes(one, room, bare))
        room.bytes += len(files[-1][0])
    for one, (data, kind) in zip(named, files, strict=True):
        images.append(decode(data, kind, room, one.param))
        room.pixels += images[-1].width * images[-1].height
    return images


def read_bytes(image: NamedImage, room: Room, bare: bool = False) -> tuple[bytes, Kind]:
    text, param = image.text, image.param
    match = DATA_URL.match(text)
    if match is None and (not bare or ":" in text[:64]):
        raise Refusal("unsupported_image_url", param)
    declared = MEDIA_TYPES.get(match["type"].lower()) if match else None
    if match is not None and declared is None:
        raise Refusal("image_type", param)
    start = match.end() if match else 0
    room.require_bytes((len(text) - start) * 3 // 4 - 2, param)  # its end may be padding
    try:
        data = base64.b64decode(text[start:].encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise Refusal("invalid_image", param, reason="not valid base64") from None
    kind = kind_of(data)
    if kind is None:
        raise Refusal("image_content", param)
    if declared is not None and kind != declared:
        reason = f"said to be {declared}, but the content is {kind}"
        raise Refusal("invalid_image", param, reason=reason)
    return data, kind


def kind_of(data: bytes) -> Kind | None:
    if data.startswith(PNG_HEAD):
        return "png"
    if data.startswith(JPEG_HEAD):
        return "jpeg"
    if data.startswith(TIFF_HEADS):
        return "tiff"
    return "dicom" if data[128:132] == b"DICM" else None


def decode(data: bytes, kind: Kind, room: Room, param: str) -> Image.Image:
    reason = "it cannot be read; is the file complete?"
    try:
        if kind == "dicom":
            return decode_dicom(data, room, param)
        if not ends_where_it_should(data, kind):
            reason = "there is something else behind the end of the image"
            raise Refusal("invalid_image", param, reason=reason)
        if kind == "tiff":
            require_few_tags(data, data[4:8], param)
        quiet = QUIET if kind == "tiff" else nullcontext()  # libtiff writes to standard error
        with quiet, Image.open(io.BytesIO(data), formats=[kind.upper()]) as head:
            room.require_area(head.width, head.height, param)
            if kind == "tiff":
                require_usual_tiff(head, data, room, param)
            return decode_image(data, kind.upper())
    except Refusal:
        raise
    except BadImage:
        reason = "it cannot be decoded; is the file complete?"
    except Image.DecompressionBombError:  # Pillow's own bound, far above ours
        raise room.too_many_pixels("what its head promises is", param) from None
    # Decoders raise many kinds for broken files, and their words may hold the file's content.
    except Exception:
        pass
    raise Refusal("invalid_image", param, reason=reason)


def decode_dicom(data: bytes, room: Room, param: str) -> Image.Image:
    """Returns the first frame. Raises Refusal, or whatever the reader raises."""
    from pydicom import dcmread

    reason = "this DICOM image cannot be shown; its transfer syntax may need another decoder"
    if DEFLATED_DICOM in data:
        reason = "DICOM that is deflated as a whole is not accepted; use another transfer syntax"
        raise Refusal("invalid_image", param, reason=reason)
    head = dcmread(io.BytesIO(data), stop_before_pixels=True)
    if "Rows" not in head or "Columns" not in head:
        raise Refusal("invalid_image", param, reason="this DICOM file holds no image")
    room.require_area(int(head.Columns), int(head.Rows), param)
    try:
        return render(data).convert("RGB")
    except (UserError, ValueError):
        raise Refusal("invalid_image", param, reason=reason) from None


def require_few_tags(data: bytes, place: bytes | int, param: str) -> None:
    """Raises Refusal for a TIFF with a directory, at `place`, of more tags than a picture needs."""
    order: Literal["little", "big"] = "little" if data.startswith(b"II") else "big"
    start = int.from_bytes(place, order) if isinstance(place, bytes) else place
    if int.from_bytes(data[start : start + 2], order) > MOST_TAGS:
        raise Refusal("invalid_image", param, reason=f"this TIFF has more than {MOST_TAGS} tags")


def require_usual_tiff(head: Any, data: bytes, room: Room, param: str) -> None:
    """Raises Refusal for a TIFF that is packed in a way that nobody uses, or whose tiles, which are
    unpacked one at a time, are larger than a picture may be."""
    for tag in TIFF_DIRECTORIES:
        if tag in head.tag_v2:
            require_few_tags(data, int(head.tag_v2[tag]), param)
    if head.info.get("compression", "raw") not in TIFF_PACKED:
        reason = (
            "this TIFF is packed in a way that is not accepted; save it with LZW, or not packed"
        )
        raise Refusal("invalid_image", param, reason=reason)
    width, length = (int(head.tag_v2.get(side, 1)) for side in (TILE_WIDTH, TILE_LENGTH))
    room.require_area(width, length, param)


def ends_where_it_should(data: bytes, kind: Kind) -> bool:
    """Returns False for a file that is something else as well: bytes behind the image's own end,
    but for zeros. A TIFF has no end: its parts may lie anywhere."""
    if kind == "tiff":
        return True
    if kind == "jpeg":
        return JPEG_END in data and not data[data.rindex(JPEG_END) + 2 :].strip(b"\0")
    position = len(PNG_HEAD)
    for _ in range(PNG_CHUNKS):
        length, name = data[position : position + 4], data[position + 4 : position + 8]
        position += 12 + int.from_bytes(length, "big")
        if name == b"IEND" or position >= len(data):
            break
    return not data[position:].strip(b"\0")


def data_urls(
    named: Sequence[NamedImage],
    images: Sequence[Image.Image],
    image_processor: Any,
    max_pixels: int | None,
) -> list[str]:
    """Returns the very pixels that training would use, as PNGs, of the images that were read of
    `named` ones. Raises Refusal for an impossible shape."""
    for one, image in zip(named, images, strict=True):
        try:
            fitted_size(image.height, image.width, image_processor, max_pixels)
        except BadImage as error:
            raise Refusal("invalid_image", one.param, reason=error) from None
    fitted = fit_images(images, image_processor, max_pixels)
    return [png_url(pixels) for pixels in fitted]


def png_url(pixels: NDArray[np.uint8]) -> str:
    """Returns pixels (height, width, 3) as a PNG in a data: URL."""
    return "data:image/png;base64," + base64.b64encode(png(Image.fromarray(pixels))).decode()


def shown_size(url: str) -> tuple[int, int]:
    """Returns (width, height) of the image of a data: URL."""
    height, width = size_of(base64.b64decode(url.partition(",")[2]))
    return width, height


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
