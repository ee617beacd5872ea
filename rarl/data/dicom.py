"""A DICOM file's picture as a viewer shows it."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from pydicom import dcmread
from pydicom.pixels import apply_rescale, apply_voi_lut, convert_color_space


def render(data: bytes, frame: int = 0) -> Image.Image:
    """One frame in 8 bits: greys ("L") after rescaling and the file's own window, colours as "RGB". Raises ValueError
    with the reason."""
    try:
        dataset = dcmread(io.BytesIO(data))
        pixels = dataset.pixel_array
    except Exception as error:  # pydicom raises many kinds, by what is missing or broken
        raise ValueError(f"not a DICOM image that can be read ({error})") from None
    samples = int(dataset.get("SamplesPerPixel", 1))
    if pixels.ndim == (3 if samples == 1 else 4):
        if frame >= len(pixels):
            raise ValueError(f"frame {frame} of {len(pixels)}")
        pixels = pixels[frame]
    photometric = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
    if samples == 3:
        if photometric.startswith("YBR"):
            pixels = convert_color_space(pixels, photometric, "RGB")
        return Image.fromarray(np.asarray(pixels, dtype=np.uint8), "RGB")
    shown = np.asarray(apply_voi_lut(apply_rescale(pixels, dataset), dataset), dtype=np.float64)
    low, high = float(shown.min()), float(shown.max())
    shown = (shown - low) / max(high - low, 1e-9)
    if photometric == "MONOCHROME1":  # the smallest value is white
        shown = 1 - shown
    return Image.fromarray((shown * 255).round().astype(np.uint8), "L")
