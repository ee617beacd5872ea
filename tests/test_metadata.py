"""What image files say beside their pixels does not get into prepared data; the pixels do,
unchanged."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from rarl.data.images import BadImage, decode_image
from rarl.prepare.convert import prepare_dataset
from rarl.prepare.metadata import without_metadata
from tests.pictures import picture, read, write_folder

NAME = "Doe^John"


def shades(mode: str) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 4), dtype=np.uint8)
    if mode == "I;16":
        return Image.fromarray(noise[..., 0].astype(np.uint16) * 200)
    return Image.fromarray(noise[..., :3]).convert(mode)


def speaking(kind: str, mode: str = "RGB", orientation: int = 1, **how: Any) -> bytes:
    """A file that names a patient in every way that its format has."""
    image = shades(mode)
    exif = image.getexif()
    exif[0x010E], exif[0x0112] = NAME, orientation
    if kind == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_text("Patient", NAME)
        text.add_text("Patient", NAME, zip=True)
        text.add_itxt("Patient", NAME)
        text.add(b"tIME", bytes([7, 208, 1, 1, 0, 0, 0]))
        text.add(b"prVt", NAME.encode())
        how["pnginfo"] = text
    if kind in ("JPEG", "GIF"):
        how["comment"] = NAME.encode()
    if kind in ("JPEG", "WEBP"):
        how["xmp"] = f"<x>{NAME}</x>".encode()
    out = io.BytesIO()
    image.save(out, kind, exif=exif, **how)
    return out.getvalue()


FILES = {
    "JPEG": speaking("JPEG"),
    "grey JPEG": speaking("JPEG", "L"),
    "CMYK JPEG": speaking("JPEG", "CMYK"),
    "progressive JPEG": speaking("JPEG", progressive=True),
    "JPEG with more behind its end": speaking("JPEG") + NAME.encode() + speaking("JPEG"),
    "JPEG with padded markers": speaking("JPEG").replace(b"\xff\xdb", b"\xff\xff\xff\xdb", 1),
    "JPEG with rubbish between segments": speaking("JPEG").replace(b"\xff\xdb", b"\0\xff\xdb", 1),
    "PNG": speaking("PNG"),
    "PNG with a palette": speaking("PNG", "P"),
    "PNG of 16 bits": speaking("PNG", "I;16"),
    "PNG with more behind its end": speaking("PNG", "RGBA") + NAME.encode(),
    "TIFF": speaking("TIFF"),
    "TIFF of 16 bits": speaking("TIFF", "I;16"),
    "TIFF in CMYK": speaking("TIFF", "CMYK"),
    "WebP": speaking("WEBP"),
    "GIF": speaking("GIF", "P"),
}


@pytest.mark.parametrize("name", FILES)
def test_the_patient_goes_and_every_pixel_stays(name: str) -> None:
    encoded = FILES[name]
    assert NAME.encode() in encoded
    kept = without_metadata(encoded)
    assert NAME.encode() not in kept
    assert b"tIME" not in kept
    assert not Image.open(io.BytesIO(kept)).getexif()
    assert (np.asarray(decode_image(kept)) == np.asarray(decode_image(encoded))).all()
    assert without_metadata(kept) == kept


@pytest.mark.parametrize(
    "name", ["JPEG", "progressive JPEG", "CMYK JPEG", "PNG", "PNG with a palette"]
)
def test_jpeg_and_png_are_not_encoded_again(name: str) -> None:
    kept = without_metadata(FILES[name])
    kind = Image.open(io.BytesIO(FILES[name])).format
    assert Image.open(io.BytesIO(kept)).format == kind
    assert len(kept) < len(FILES[name])
    at = FILES[name].index(b"\xff\xda" if kind == "JPEG" else b"IDAT")
    if name != "progressive JPEG":  # which has several scans
        assert FILES[name][at : at + 1000] in kept


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "GIF", "WEBP"])
def test_a_file_that_says_nothing_stays_as_it_is(kind: str) -> None:
    assert without_metadata(picture(0, kind)) == picture(0, kind)


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_picture_that_is_to_be_turned_is_turned(kind: str, orientation: int) -> None:
    encoded = speaking(kind, orientation=orientation)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded)))
    kept = without_metadata(encoded)
    assert (np.asarray(decode_image(kept)) == np.asarray(upright)).all()
    assert NAME.encode() not in kept


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(BadImage, match="cannot be decoded"):
        without_metadata(b"not a picture")


def test_prepared_data_names_nobody(tmp_path: Path) -> None:
    files = [*FILES.values()][::3]
    rows = [
        {"image": f"{i}.jpg", "question": f"What is in {i}?", "answer": "a mass"}
        for i in range(len(files))
    ]
    folder = write_folder(tmp_path / "mine", rows, images=0)
    for number, encoded in enumerate(files):
        (folder / f"{number}.jpg").write_bytes(encoded)
    report = prepare_dataset("folder", folder, tmp_path / "out")
    assert (
        f"{len(files)} image files held more than pixels (EXIF, comments, texts), which was taken "
        "away" in report
    )
    assert len(read(tmp_path / "out" / "train.parquet")) == len(files)
    assert NAME.encode() not in (tmp_path / "out" / "train.parquet").read_bytes()
