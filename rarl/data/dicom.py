"""DICOM → the 8-bit picture that a viewer would show first. Only pixels come out: no name, date or number of a patient.

The order is that of the standard (PS3.3, C.11): stored values, modality LUT or rescale, window (the first one, or a
VOI LUT), inversion for MONOCHROME1. Without a window, the frame's own range, padding left out.
"""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi, pixel_array

from rarl.data.images import MAX_ENCODED_PIXELS, BadImage

GREY, COLOUR = ("MONOCHROME1", "MONOCHROME2"), ("RGB", "PALETTE COLOR")


def is_dicom(data: bytes) -> bool:
    """By the mark after the preamble, whatever the file is called."""
    return data[128:132] == b"DICM"


def render(data: bytes, frame: int = 0) -> Image.Image:
    """One frame (from 0) of a DICOM file's bytes, in mode L or RGB. Raises BadImage, a ValueError, with the reason."""
    try:
        with warnings.catch_warnings():  # about values that bend the standard; they are read all the same
            warnings.simplefilter("ignore")
            return render_dataset(pydicom.dcmread(io.BytesIO(data)), frame)
    except BadImage:
        raise
    except InvalidDicomError:
        raise BadImage("is not a DICOM file: the mark DICM is missing") from None
    except Exception as error:  # pydicom and its decoders raise many kinds
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise BadImage(f"cannot be decoded as DICOM ({' '.join(lines[:2]) or type(error).__name__})") from None


def has_burned_in_text(data: bytes) -> bool:
    """True where the file itself says that text is part of the picture (Burned In Annotation). Raises BadImage."""
    try:
        dataset = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True, specific_tags=["BurnedInAnnotation"])
    except Exception as error:
        raise BadImage(f"cannot be decoded as DICOM ({error})") from None
    return str(dataset.get("BurnedInAnnotation", "")).upper() == "YES"


def render_dataset(dataset: Dataset, frame: int) -> Image.Image:
    require_picture(dataset, frame)
    stored = pixel_array(dataset, index=frame)  # YBR comes as RGB
    interpretation = str(dataset.PhotometricInterpretation)
    if interpretation == "PALETTE COLOR":
        return Image.fromarray(to_eight_bits(apply_color_lut(stored, dataset)))
    if stored.ndim == 3:
        return Image.fromarray(to_eight_bits(stored, int(dataset.BitsStored)))
    shown = window(apply_modality_lut(stored, dataset), stored, dataset)
    return Image.fromarray(255 - shown if interpretation == "MONOCHROME1" else shown)


def require_picture(dataset: Dataset, frame: int) -> None:
    """Raises BadImage where there is no picture, no such frame, or one too large to decode."""
    if "PixelData" not in dataset:
        raise BadImage(f"is a DICOM file without a picture (modality {dataset.get('Modality', 'not given')})")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if not 0 <= frame < frames:
        raise BadImage(f"has {frames} frames, so there is no frame {frame} (the first is 0)")
    interpretation = str(dataset.get("PhotometricInterpretation", "not given"))
    if interpretation not in (*GREY, *COLOUR) and not interpretation.startswith("YBR_"):
        raise BadImage(f"has the photometric interpretation {interpretation}, which cannot be shown")
    rows, columns = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
    if rows * columns > MAX_ENCODED_PIXELS:
        raise BadImage(f"{columns}x{rows} pixels are more than {MAX_ENCODED_PIXELS}")


def window(values: NDArray[Any], stored: NDArray[Any], dataset: Dataset) -> NDArray[np.uint8]:
    """Modality values → 0 to 255, by the file's first window or VOI LUT, else by the range of what is not padding."""
    if dataset.get("VOILUTSequence"):
        return to_range(apply_voi(values.astype(np.int64), dataset))
    center, width = first(dataset, "WindowCenter"), first(dataset, "WindowWidth")
    if center is None or width is None or width <= 0:
        padding = dataset.get("PixelPaddingValue")
        seen = values[stored != padding] if padding is not None and (stored != padding).any() else values
        return to_range(values, float(seen.min()), float(seen.max()))
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    if function == "SIGMOID":
        return round_to_bytes(255 / (1 + np.exp(-4 * (values.astype(np.float64) - center) / width)))
    if function == "LINEAR_EXACT":
        return to_range(values, center - width / 2, center + width / 2)
    # LINEAR, C.11.2.1.2: the window's values are whole numbers, hence the halves and the one.
    return to_range(values, center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2)


def first(dataset: Dataset, name: str) -> float | None:
    """The first value of an element that may have several, or none."""
    value = dataset.get(name)
    if isinstance(value, pydicom.multival.MultiValue):
        value = value[0] if value else None
    return None if value in (None, "") else float(value)


def to_range(values: NDArray[Any], low: float | None = None, high: float | None = None) -> NDArray[np.uint8]:
    """Linear from `low` to `high`, the values' own range by default, clipped."""
    exact = values.astype(np.float64)
    low, high = exact.min() if low is None else low, exact.max() if high is None else high
    if high <= low:
        return np.where(exact > low, 255, 0).astype(np.uint8)
    return round_to_bytes((exact - low) / (high - low) * 255)


def round_to_bytes(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.rint(np.clip(values, 0, 255)).astype(np.uint8)


def to_eight_bits(colours: NDArray[Any], bits: int | None = None) -> NDArray[np.uint8]:
    """Colours of up to 16 bits a channel, by their highest possible value."""
    bits = bits or colours.dtype.itemsize * 8
    return colours.astype(np.uint8) if bits == 8 else round_to_bytes(colours.astype(np.float64) / (2**bits - 1) * 255)
