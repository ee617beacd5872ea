"""DICOM pictures against renderings computed here from the raw bytes, over real files that come
with pydicom."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset

from rarl.data.images import BadImage
from rarl.prepare.dicom import render
from tests.pictures import real, saved


def stored(dataset: Any, dtype: str) -> NDArray[Any]:
    """The pixels as they lie in the file: none of pydicom's own decoding."""
    return np.frombuffer(dataset.PixelData, dtype)[: dataset.Rows * dataset.Columns].reshape(
        dataset.Rows, dataset.Columns
    )


def by_range(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Linear to 0…255, pixel by pixel, in plain Python floats."""
    shown = [min(255.0, max(0.0, (float(v) - low) / (high - low) * 255)) for v in values.ravel()]
    return np.array([round(v) for v in shown], np.uint8).reshape(values.shape)


def test_ct_is_rescaled_and_shown_by_its_own_range() -> None:
    """128x128, signed 16 bits, slope 1, intercept -1024, no window, padding -2000 (not in this
    picture)."""
    dataset = pydicom.dcmread(io.BytesIO(real("CT_small")))
    hounsfield = stored(dataset, "<i2").astype(float) * 1 - 1024
    picture = render(real("CT_small"))
    assert picture.mode == "L"
    assert (np.asarray(picture) == by_range(hounsfield, hounsfield.min(), hounsfield.max())).all()


def test_padding_does_not_count_for_the_range() -> None:
    dataset = pydicom.dcmread(io.BytesIO(real("CT_small")))
    pixels = stored(dataset, "<i2").copy()
    seen = pixels[5:]
    pixels[:5] = -2000
    dataset.PixelData = pixels.tobytes()
    expected = by_range(pixels, seen.min(), seen.max())
    assert (np.asarray(render(saved(dataset))) == expected).all()


def test_mr_is_windowed_as_the_standard_says() -> None:
    """64x64, signed 16 bits, centre 600, width 1600: PS3.3 C.11.2.1.2.1."""
    dataset = pydicom.dcmread(io.BytesIO(real("MR_small")))
    pixels = stored(dataset, "<i2")
    low, high = 600 - 0.5 - (1600 - 1) / 2, 600 - 0.5 + (1600 - 1) / 2
    assert (np.asarray(render(real("MR_small"))) == by_range(pixels, low, high)).all()
    assert (pixels > high).any(), "the window cuts something off in this picture"


@pytest.mark.parametrize(
    "name", ["MR_small_RLE", "MR_small_bigendian", "MR_small_implicit", "MR_small_jp2klossless"]
)
def test_other_encodings_of_the_same_picture_look_the_same(name: str) -> None:
    assert (np.asarray(render(real(name))) == np.asarray(render(real("MR_small")))).all()


@pytest.mark.parametrize("function", ["LINEAR_EXACT", "SIGMOID"])
def test_other_window_functions(function: str) -> None:
    dataset = pydicom.dcmread(io.BytesIO(real("MR_small")))
    dataset.VOILUTFunction = function
    pixels = stored(dataset, "<i2")
    if function == "LINEAR_EXACT":
        expected = by_range(pixels, 600 - 800, 600 + 800)
    else:
        bright = [255 / (1 + np.exp(-4 * (float(v) - 600) / 1600)) for v in pixels.ravel()]
        expected = np.rint(bright).astype(np.uint8).reshape(pixels.shape)
    assert (np.asarray(render(saved(dataset))) == expected).all()


def test_the_first_of_several_windows_counts() -> None:
    """examples_overlay: centres 450 and 200, widths 790 and 443; 12 of 16 bits."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(io.BytesIO(real("examples_overlay")))
    pixels = stored(dataset, "<u2")
    low, high = 450 - 0.5 - (790 - 1) / 2, 450 - 0.5 + (790 - 1) / 2
    assert (np.asarray(render(real("examples_overlay"))) == by_range(pixels, low, high)).all()


@pytest.mark.parametrize("written", ["US", "OW"])
@pytest.mark.parametrize("bits", [8, 12])
def test_a_voi_lut_is_scaled_by_its_own_bits(bits: int, written: str) -> None:
    """The table maps -5 to 20, -4 to 21 and so on, and is used up to 200 of its 255 or 4095."""
    dataset = pydicom.dcmread(io.BytesIO(real("MR_small")))
    entries = [20 + i % 180 for i in range(3000)]
    lut = Dataset()
    lut.add_new("LUTDescriptor", "SS", [len(entries), -5, bits])
    lut.add_new(
        "LUTData", written, entries if written == "US" else np.array(entries, "<u2").tobytes()
    )
    dataset.VOILUTSequence = [lut]
    places = np.clip(stored(dataset, "<i2").astype(int) + 5, 0, len(entries) - 1)
    expected = by_range(np.array(entries)[places], 0, 2**bits - 1)
    assert (np.asarray(render(saved(dataset))) == expected).all()


def group(**sequences: dict[str, Any]) -> Dataset:
    """A functional group: macro sequences of one item each."""
    found = Dataset()
    for name, values in sequences.items():
        item = Dataset()
        for key, value in values.items():
            setattr(item, key, value)
        setattr(found, name, [item])
    return found


def test_enhanced_files_are_shown_by_the_values_of_the_frame_then_by_shared_ones() -> None:
    """Two frames: the first has its own window, the second its own rescale."""
    dataset = pydicom.dcmread(io.BytesIO(real("MR_small")))
    pixels = stored(dataset, "<i2")
    dataset.PixelData, dataset.NumberOfFrames = pixels.tobytes() * 2, 2
    shared = (
        {"WindowCenter": 600, "WindowWidth": 1600},
        {"RescaleIntercept": -100, "RescaleSlope": 2},
    )
    dataset.SharedFunctionalGroupsSequence = [
        group(FrameVOILUTSequence=shared[0], PixelValueTransformationSequence=shared[1])
    ]
    dataset.PerFrameFunctionalGroupsSequence = [
        group(
            FrameVOILUTSequence={
                "WindowCenter": 900,
                "WindowWidth": 700,
                "VOILUTFunction": "LINEAR_EXACT",
            }
        ),
        group(PixelValueTransformationSequence={"RescaleIntercept": 50, "RescaleSlope": 1}),
    ]
    dataset.WindowCenter, dataset.WindowWidth = 1, 2  # of no frame
    first, second = (np.asarray(render(saved(dataset), frame)) for frame in (0, 1))
    assert (first == by_range(pixels.astype(float) * 2 - 100, 900 - 350, 900 + 350)).all()
    assert (
        second == by_range(pixels.astype(float) + 50, 600 - 0.5 - 1599 / 2, 600 - 0.5 + 1599 / 2)
    ).all()


def test_monochrome1_is_inverted() -> None:
    dataset = pydicom.dcmread(io.BytesIO(real("MR_small")))
    dataset.PhotometricInterpretation = "MONOCHROME1"
    assert (
        np.asarray(render(saved(dataset))) == 255 - np.asarray(render(real("MR_small"))).astype(int)
    ).all()


def test_rescale_with_a_slope_moves_the_window() -> None:
    dataset = pydicom.dcmread(io.BytesIO(real("MR_small")))
    dataset.RescaleSlope, dataset.RescaleIntercept = 2, -100
    values = stored(dataset, "<i2").astype(float) * 2 - 100
    low, high = 600 - 0.5 - (1600 - 1) / 2, 600 - 0.5 + (1600 - 1) / 2
    assert (np.asarray(render(saved(dataset))) == by_range(values, low, high)).all()


def test_colour_ultrasound_keeps_its_colours() -> None:
    """320x240 RGB, uncompressed: the bytes of the file are the picture."""
    dataset = pydicom.dcmread(io.BytesIO(real("examples_rgb_color")))
    assert dataset.Modality == "US"
    raw = np.frombuffer(dataset.PixelData, np.uint8)[: 240 * 320 * 3]
    expected = (
        raw.reshape(240, 320, 3)
        if dataset.PlanarConfiguration == 0
        else raw.reshape(3, 240, 320).transpose(1, 2, 0)
    )
    picture = render(real("examples_rgb_color"))
    assert picture.mode == "RGB"
    assert (np.asarray(picture) == expected).all()
    assert (expected[..., 0] != expected[..., 2]).any(), "there is colour in this picture"


def test_palette_ultrasound_is_looked_up() -> None:
    """800x350, 8 bits, a palette of 16-bit entries in three tables."""
    dataset = pydicom.dcmread(io.BytesIO(real("examples_palette")))
    index = np.frombuffer(dataset.PixelData, np.uint8)[: 350 * 800].reshape(350, 800)
    first = dataset.RedPaletteColorLookupTableDescriptor[1]
    tables = [
        np.frombuffer(dataset[f"{name}PaletteColorLookupTableData"].value, "<u2")
        for name in ("Red", "Green", "Blue")
    ]
    channels = [t[np.clip(index.astype(int) - first, 0, len(t) - 1)] for t in tables]
    expected = np.rint(np.stack(channels, axis=-1) / 65535 * 255).astype(np.uint8)
    assert (np.asarray(render(real("examples_palette"))) == expected).all()


def test_a_chosen_frame_of_a_compressed_colour_film() -> None:
    """30 JPEG frames in YBR: each is a JPEG of its own, which Pillow decodes here."""
    dataset = pydicom.dcmread(io.BytesIO(real("examples_ybr_color")))
    frames = list(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=30))
    for number in (0, 7, 29):
        expected = np.asarray(Image.open(io.BytesIO(frames[number])).convert("RGB")).astype(int)
        found = np.asarray(render(real("examples_ybr_color"), number)).astype(int)
        assert np.abs(found - expected).max() <= 3, number  # two roundings of the colour conversion
    assert (
        np.asarray(render(real("examples_ybr_color"), 0))
        != np.asarray(render(real("examples_ybr_color"), 29))
    ).any()


def test_sixteen_bit_colour_is_scaled_by_its_bits() -> None:
    picture = np.asarray(render(real("SC_rgb_rle_16bit")))
    eight = np.asarray(render(real("SC_rgb_rle")))
    assert picture.dtype == np.uint8
    assert np.abs(picture.astype(int) - eight.astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("data", "frame", "reason"),
    [
        (b"hello", 0, "is not a DICOM file"),
        (b"", 0, "is not a DICOM file"),
        ("MR_small", 1, "has 1 frames, so there is no frame 1"),
        ("MR_small", -1, "there is no frame -1"),
        ("test-SR", 0, "without a picture"),
        ("reportsi", 0, "without a picture"),
        ("MR_truncated", 0, "cannot be decoded as DICOM"),
        ("JPEG2000-embedded-sequence-delimiter", 0, "cannot be decoded as DICOM"),
    ],
)
def test_what_cannot_be_shown_says_why(data: bytes | str, frame: int, reason: str) -> None:
    with pytest.raises(BadImage, match=reason) as caught:
        render(real(data) if isinstance(data, str) else data, frame)
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)
