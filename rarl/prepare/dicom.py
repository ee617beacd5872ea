"""DICOM → the 8-bit picture that a viewer would show first, and nothing but pixels. The order is
the standard's (PS3.3, C.11): stored values, modality LUT or rescale, window, inversion. `highdicom`
(0.28) refuses eight of pydicom's own files that are shown here, such as those in big endian."""

from __future__ import annotations

import io
import logging
import os
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset, read_preamble
from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGExtended12Bit

from rarl.data.images import MAX_ENCODED_PIXELS, BadImage

GREY, COLOUR = ("MONOCHROME1", "MONOCHROME2"), ("RGB", "PALETTE COLOR")
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # the SOP class, and the multi-frame ones below it
# Conversion types: scanned document or image, digitised film or video, a workstation's screen.
SCANNED = ("SD", "SI", "DF", "DV", "WSD")
MAX_INFLATED_BYTES = 256 << 20  # of a deflated file, which may pretend to any size
AT_ONCE = 1 << 20  # bytes, inflated to count them
# Of enhanced multi-frame files: the sequence in a frame's functional group, and what it stands for.
PER_FRAME = {
    "FrameVOILUTSequence": ("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
    "PixelValueTransformationSequence": ("RescaleIntercept", "RescaleSlope", "ModalityLUTSequence"),
}


def is_dicom(data: bytes) -> bool:
    """Returns whether it is DICOM by the mark after the preamble, whatever the file is called."""
    return data[128:132] == b"DICM"


@contextmanager
def careful_reading(data: bytes) -> Iterator[None]:
    """Reads in silence. Raises BadImage for whatever pydicom and its decoders raise."""
    try:
        with QUIET:
            require_size(data)
            yield
    except BadImage:
        raise
    except InvalidDicomError:
        raise BadImage("is not a DICOM file: the mark DICM is missing") from None
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines[:2]) or type(error).__name__
        raise BadImage(f"cannot be decoded as DICOM ({reason})") from None


def render(data: bytes, frame: int = 0) -> Image.Image:
    """Returns one frame (from 0) of a DICOM file's bytes, in mode L or RGB. Raises BadImage."""
    with careful_reading(data):
        return render_dataset(pydicom.dcmread(io.BytesIO(data)), frame)


def identifying(data: bytes) -> str | None:
    """Returns what the file says of a picture that may tell who the patient is, in words that fit
    "3 DICOM files …". Raises BadImage."""
    tags = ["BurnedInAnnotation", "RecognizableVisualFeatures", "ConversionType", "SOPClassUID"]
    with careful_reading(data):
        dataset = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True, specific_tags=tags)
        burned, face, conversion, kind = (str(dataset.get(tag, "")).strip() for tag in tags)
    if burned.upper() == "YES":
        return "say that text is burned into the picture, which may name the patient"
    if face.upper() == "YES":
        return "say that the patient can be recognised in the picture"
    if burned.upper() != "NO" and (kind.startswith(SECONDARY_CAPTURE) or conversion in SCANNED):
        return "are scans or screenshots, which may have the patient's name in the picture"
    return None


def people(data: bytes) -> dict[str, str]:
    """Returns what the file says of patient, study and site, as far as it does. Raises
    BadImage."""
    tags = {"patient": "PatientID", "study": "StudyInstanceUID", "site": "InstitutionName"}
    with careful_reading(data):
        dataset = pydicom.dcmread(
            io.BytesIO(data), stop_before_pixels=True, specific_tags=list(tags.values())
        )
        found = {name: str(dataset.get(tag) or "").strip() for name, tag in tags.items()}
    return {name: text for name, text in found.items() if text}


class Quiet:
    """While at least one thread is within, no warning, log line or C code's print on stderr about
    files that bend the standard is shown. These belong to the process: one for all threads."""

    def __init__(self) -> None:
        self.lock, self.threads, self.undo = threading.Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self.lock:
            self.threads += 1
            if self.threads > 1:
                return
            self.undo.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            logger = logging.getLogger("pydicom")
            self.undo.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.CRITICAL + 1)
            nowhere, stderr = os.open(os.devnull, os.O_WRONLY), os.dup(2)
            os.dup2(nowhere, 2)
            os.close(nowhere)
            self.undo.callback(os.close, stderr)
            self.undo.callback(os.dup2, stderr, 2)

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.threads -= 1
            if not self.threads:
                self.undo.close()


QUIET = Quiet()


def require_size(data: bytes) -> None:
    """Raises BadImage for a deflated file that is too large, since pydicom inflates at once."""
    file = io.BytesIO(data)
    read_preamble(file, force=False)
    meta = read_dataset(file, False, True, stop_when=lambda tag, *_: tag.group != 2)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    inflator, rest, size = zlib.decompressobj(-zlib.MAX_WBITS), file.read(), 0
    while rest and not inflator.eof:
        size += len(inflator.decompress(rest, AT_ONCE))
        rest = inflator.unconsumed_tail
        if size > MAX_INFLATED_BYTES:
            raise BadImage(f"is deflated DICOM of more than {MAX_INFLATED_BYTES >> 20} MiB")


def render_dataset(dataset: Dataset, frame: int) -> Image.Image:
    require_picture(dataset, frame)
    take_per_frame(dataset, frame)
    interpretation = str(dataset.PhotometricInterpretation)
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax == JPEGExtended12Bit and dataset.BitsStored > 8 and interpretation in GREY:
        stored = twelve_bit_jpeg(dataset, frame)
    else:
        stored = pixel_array(dataset, index=frame)  # YBR comes as RGB
    if interpretation == "PALETTE COLOR":
        colours = apply_color_lut(stored, dataset)
        return Image.fromarray(to_range(colours, 0, 2 ** (8 * colours.dtype.itemsize) - 1))
    if stored.ndim == 3:
        return Image.fromarray(to_range(stored, 0, 2 ** int(dataset.BitsStored) - 1))
    shown = window(apply_modality_lut(stored, dataset), stored, dataset)
    return Image.fromarray(255 - shown if interpretation == "MONOCHROME1" else shown)


def twelve_bit_jpeg(dataset: Dataset, frame: int) -> NDArray[np.uint16]:
    """Decodes grey JPEG of 12 bits with GDCM; returns (rows, columns). pydicom's own way to GDCM
    refuses it, and its other decoders do not know it."""
    import gdcm

    count = int(dataset.get("NumberOfFrames") or 1)
    fragment, fragments = gdcm.Fragment(), gdcm.SequenceOfFragments.New()
    fragment.SetByteStringValue(get_frame(dataset.PixelData, frame, number_of_frames=count))
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    grey = gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2)
    syntax = gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGExtendedProcess2_4)
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((dataset.Columns, dataset.Rows, 1))
    image.SetDataElement(element)
    image.SetPhotometricInterpretation(grey)
    image.SetTransferSyntax(syntax)
    image.SetPixelFormat(gdcm.PixelFormat(1, 16, 12, 11, 0))
    buffer = image.GetBuffer()
    if buffer is None:
        raise BadImage("cannot be decoded as DICOM (damaged JPEG of 12 bits)")
    # GDCM gives its bytes as a text.
    decoded = np.frombuffer(buffer.encode("utf-8", "surrogateescape"), "<u2")
    return decoded.reshape(dataset.Rows, dataset.Columns)


def require_picture(dataset: Dataset, frame: int) -> None:
    """Raises BadImage if there is no picture, no such frame, or one too large to decode."""
    if "PixelData" not in dataset:
        modality = dataset.get("Modality", "not given")
        raise BadImage(f"is a DICOM file without a picture (modality {modality})")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if not 0 <= frame < frames:
        raise BadImage(f"has {frames} frames, so there is no frame {frame} (the first is 0)")
    interpretation = str(dataset.get("PhotometricInterpretation", "not given"))
    if interpretation not in (*GREY, *COLOUR) and not interpretation.startswith("YBR_"):
        kind = f"photometric interpretation {interpretation}"
        raise BadImage(f"has the {kind}, which cannot be shown")
    rows, columns = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
    if rows * columns > MAX_ENCODED_PIXELS:
        raise BadImage(f"{columns}x{rows} pixels are more than {MAX_ENCODED_PIXELS}")


def take_per_frame(dataset: Dataset, frame: int) -> None:
    """Sets window and rescale of an enhanced file's frame where an ordinary file has them."""
    own = list(dataset.get("PerFrameFunctionalGroupsSequence") or ())[frame : frame + 1]
    shared = list(dataset.get("SharedFunctionalGroupsSequence") or ())[:1]
    for sequence, names in PER_FRAME.items():
        found = [group[sequence][0] for group in (*own, *shared) if group.get(sequence)]
        if found:
            for name in names:
                dataset.pop(name, None)
            dataset.update(found[0])


def window(values: NDArray[Any], stored: NDArray[Any], dataset: Dataset) -> NDArray[np.uint8]:
    """Maps values to 0 to 255 by the first window or VOI LUT, else by the range without padding."""
    if dataset.get("VOILUTSequence"):
        return look_up(values, dataset)
    center, width = first(dataset, "WindowCenter"), first(dataset, "WindowWidth")
    if center is None or width is None or width <= 0:
        padding = dataset.get("PixelPaddingValue")
        inside = stored != padding if padding is not None else np.ones(stored.shape, bool)
        seen = values[inside] if inside.any() else values
        return to_range(values, float(seen.min()), float(seen.max()))
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    if function == "SIGMOID":
        exact = values.astype(np.float64)
        return to_range(1 / (1 + np.exp(-4 * (exact - center) / width)), 0, 1)
    if function != "LINEAR_EXACT":  # C.11.2.1.2: the window's values are whole numbers
        center, width = center - 0.5, width - 1
    return to_range(values, center - width / 2, center + width / 2)


def look_up(values: NDArray[Any], dataset: Dataset) -> NDArray[np.uint8]:
    """Maps by the first VOI LUT, scaled by the bits of its entries."""
    lut = dataset.VOILUTSequence[0]
    count, first_mapped, bits = (int(number) for number in lut.LUTDescriptor)
    table = lut.LUTData
    # If the entries have 8 bits, pydicom takes 8 for places too.
    if isinstance(table, bytes):
        wide = len(table) >= 2 * (count % 65536 or 65536)
        order = "<" if dataset.original_encoding[1] else ">"
        table = np.frombuffer(table, f"{order}u2" if wide else np.uint8)
    places = np.clip(values.astype(np.int64) - first_mapped, 0, len(table) - 1)
    return to_range(np.asarray(table)[places], 0, 2**bits - 1)


def first(dataset: Dataset, name: str) -> float | None:
    """Returns the first value of an element that may have several, or none."""
    value = dataset.get(name)
    if isinstance(value, pydicom.multival.MultiValue):
        value = value[0] if value else None
    return None if value in (None, "") else float(value)


def to_range(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Maps linearly from `low` to `high`, clipped."""
    exact = values.astype(np.float64)
    if high <= low:
        return np.where(exact > low, 255, 0).astype(np.uint8)
    return np.rint(np.clip((exact - low) / (high - low) * 255, 0, 255)).astype(np.uint8)
