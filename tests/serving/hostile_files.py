"""Images that nobody honest sends."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)

MARKER = "Xq7-a-patients-secret"  # must be in no log


def encoded(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def picture(kind: str = "PNG", size: tuple[int, int] = (40, 30), mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, kind)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def bomb(width: int, height: int) -> bytes:
    """A small PNG that says it is a large one, and would be."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + chunk(b"IDAT", zlib.compress(b"\0" * 10_000_000, 9))
        + chunk(b"IEND", b"")
    )


def text_bomb() -> bytes:
    """A picture with a compressed text of 200 MB beside it."""
    good = picture()
    text = chunk(b"zTXt", b"k\0\0" + zlib.compress(b"\0" * 200_000_000, 9))
    return good[:33] + text + good[33:]


def dicom(rows: int = 8, columns: int = 8, deflated: bool = False, pixels: bool = True) -> bytes:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian if deflated else ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.PatientName = MARKER
    if pixels:
        data.Rows, data.Columns, data.SamplesPerPixel = rows, columns, 1
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation, data.PhotometricInterpretation = (
            15,
            0,
            "MONOCHROME2",
        )
        data.PixelData = np.arange(64, dtype=np.uint16).tobytes()
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def tiff(pixels: bytes = bytes(1200), **changed: tuple[int, int, int]) -> bytes:
    """Grey, 40 by 30, in one strip. `changed` has tags as (type, count, value); type 4 is a number
    of 32 bits."""
    tags = {
        "width": (4, 1, 40),
        "height": (4, 1, 30),
        "bits": (3, 1, 8),
        "packed": (3, 1, 1),
        "grey": (3, 1, 1),
        "strips": (4, 1, 8),
        "samples": (3, 1, 1),
        "rows": (4, 1, 30),
        "bytes": (4, 1, len(pixels)),
        **changed,
    }
    entries = sorted((TIFF_TAGS.get(name) or int(name[1:]), *tag) for name, tag in tags.items())
    directory = b"".join(struct.pack("<HHLL", *entry) for entry in entries)
    size = struct.pack("<H", len(entries))
    return b"II*\0" + struct.pack("<L", 8 + len(pixels)) + pixels + size + directory + bytes(4)


TIFF_TAGS = {"width": 256, "height": 257, "bits": 258, "packed": 259, "grey": 262, "strips": 273}
TIFF_TAGS |= {"samples": 277, "rows": 278, "bytes": 279, "tile_width": 322, "tile_length": 323}
TIFF_TAGS |= {"tiles": 324, "tile_bytes": 325, "numbers": 339, "exif": 34665}


def tiffs() -> Iterator[tuple[str, int, bytes]]:
    """(what is wrong, status, file)"""
    many = {f"_{tag}": (1, 10**6, 8) for tag in range(1000, 61000)}
    entries = b"".join(struct.pack("<HHLL", tag, 1, 10**6, 8) for tag in range(1000, 61000))
    tile = {"tiles": (4, 1, 8), "tile_bytes": (4, 1, 1200), "packed": (3, 1, 5)}
    yield "of 4 gigapixels", 413, tiff(width=(4, 1, 65000), height=(4, 1, 65000))
    yield "of 49 megapixels", 413, tiff(width=(4, 1, 7000), height=(4, 1, 7000))
    yield (
        "whose tiles have a terapixel",
        413,
        tiff(bytes(1200), tile_width=(4, 1, 2**20), tile_length=(4, 1, 2**20), **tile),
    )
    yield "of 60,000 tags that share a megabyte", 400, tiff(bytes(10**6), **many)
    yield (
        "with as many tags of EXIF",
        400,
        tiff(struct.pack("<H", 60_000) + entries, exif=(4, 1, 8)),
    )
    yield "with a strip outside", 400, tiff(strips=(4, 1, 2**31))
    yield "whose strip is cut", 400, tiff(bytes(5), bytes=(4, 1, 2**31), packed=(3, 1, 5))
    yield "packed as nobody does", 400, tiff(packed=(3, 1, 6))
    yield "of no width", 400, tiff(width=(4, 1, 0))
    yield "whose width is a text", 400, tiff(width=(2, 4, 0x30343034))
    yield "of 60,000 samples", 400, tiff(samples=(3, 1, 60_000))
    nan = struct.pack("<f", float("nan")) * 1200
    yield "of what are no numbers", 400, tiff(nan, bits=(3, 1, 32), numbers=(3, 1, 3))
    yield "that is a head alone", 400, b"II*\0\x08\0\0\0"
    yield "that is a PNG", 400, picture()
