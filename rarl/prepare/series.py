"""A DICOM series → some of its slices or frames as images in order. A series is a folder of DICOM
files, or one file of several frames. Its order is that of the slices' positions along the normal of
their plane, then of the instance numbers; of frames that have no position, their own. Where only
some slices have a position, it is that of the instance numbers."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from rarl.data.images import BadImage
from rarl.errors import UserError
from rarl.prepare.dicom import careful_reading, is_dicom
from rarl.prepare.files import Fault, Files, ImageFile
from rarl.schema import MOST_IMAGES

TAGS = (
    *("SeriesInstanceUID", "InstanceNumber", "NumberOfFrames", "SliceLocation"),
    *("ImagePositionPatient", "ImageOrientationPatient"),
    *("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"),
)


@dataclass(frozen=True)
class Slice:
    """One image of a series. `position` is in mm along the normal, None where nothing tells."""

    image: ImageFile
    position: float | None
    instance: int


def series_images(
    files: Files, named: str, slices: str
) -> tuple[tuple[ImageFile, ...], tuple[str, ...]]:
    """Returns as many images as `slices` asks for of the series that a folder or a file holds, and
    their labels, which tell their places: the middle ones of equal parts of the series, or all of
    one that has no more. Raises Fault."""
    found = read_series(files, named)
    if slices == "all":
        if len(found) > MOST_IMAGES:
            raise Fault(
                f"series '{named}' has {len(found)} images, and --slices all takes at most "
                f"{MOST_IMAGES}; say how many, as in --slices 8"
            )
        chosen = list(range(len(found)))
    else:
        chosen = evenly(len(found), int(slices))
    kind = "slice" if all(one.position is not None for one in found) else "frame"
    labels = tuple(f"{kind} {place + 1} of {len(found)}" for place in chosen)
    return tuple(found[place].image for place in chosen), labels


def require_slices(slices: str | None) -> None:
    """Raises UserError for what is neither a number of images that a question may have nor all."""
    if slices not in (None, "all") and not (
        str(slices).isdecimal() and 1 <= int(str(slices)) <= MOST_IMAGES
    ):
        raise UserError(f"--slices {slices}: expected a number from 1 to {MOST_IMAGES}, or all")


def evenly(total: int, wanted: int) -> list[int]:
    """Returns the middle places of `wanted` equal parts of `total`, or all places."""
    count = min(total, wanted)
    return [int((part + 0.5) * total / count) for part in range(count)]


def read_series(files: Files, named: str) -> list[Slice]:
    """Returns all images of a series in its order. Raises Fault."""
    folder = PurePosixPath(named.strip().replace("\\", "/")).as_posix()
    inside = files.by_folder.get(folder, [])
    images = [files.image(name) for name in inside] if inside else [files.image(named)]
    found, series = [], set[str]()
    for image in images:
        data = image.read()
        if not is_dicom(data):
            continue
        dataset = read_head(data, image.name)
        series.add(str(dataset.get("SeriesInstanceUID") or ""))
        found += slices_of(dataset, image)
    if not found:
        raise Fault(f"series '{named}' holds no DICOM file")
    if len(series) > 1:
        raise Fault(f"'{named}' holds {len(series)} DICOM series; give each a folder of its own")
    return in_order(found, named)


def in_order(found: list[Slice], named: str) -> list[Slice]:
    """Returns a series in its order. Where only some images have a position, the instance numbers
    tell it alone. Raises Fault where some have neither."""
    placed = [one.position is not None for one in found]
    if any(placed) and not all(placed):
        # Frames of one file share its instance number.
        places = {(one.instance, one.image.frame) for one in found}
        if not all(one.instance for one in found) or len(places) < len(found):
            raise Fault(
                f"series '{named}' has a position in {sum(placed)} of {len(found)} images, and "
                "not all have an instance number of their own; give all one or the other"
            )
        return sorted(found, key=lambda one: (one.instance, one.image.frame))
    return sorted(found, key=lambda one: (one.position or 0.0, one.instance, one.image.frame))


def read_head(data: bytes, name: str) -> Dataset:
    """Raises Fault."""
    try:
        with careful_reading(data):
            return pydicom.dcmread(
                io.BytesIO(data), stop_before_pixels=True, specific_tags=list(TAGS)
            )
    except BadImage as error:
        raise Fault(f"image '{name}' {error}") from None


def slices_of(dataset: Dataset, image: ImageFile) -> list[Slice]:
    """Returns the image of an ordinary file, or the frames of one that has several."""
    instance = int(dataset.get("InstanceNumber") or 0)
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames == 1:
        return [Slice(image, position_of([dataset]), instance)]
    own = list(dataset.get("PerFrameFunctionalGroupsSequence") or ())
    shared = list(dataset.get("SharedFunctionalGroupsSequence") or ())[:1]
    slices = []
    for frame in range(frames):
        groups = [*own[frame : frame + 1], *shared]
        sequences = ("PlanePositionSequence", "PlaneOrientationSequence")
        parts = [group[name][0] for name in sequences for group in groups if group.get(name)]
        slices.append(Slice(replace(image, frame=frame), position_of(parts), instance))
    return slices


def position_of(parts: list[Any]) -> float | None:
    """Returns where a slice lies along the normal of its plane, by the first of the parts of a file
    that tells each, or by its slice location."""

    def first(name: str) -> Any:
        return next((value for part in parts if (value := part.get(name)) is not None), None)

    place, orientation = first("ImagePositionPatient"), first("ImageOrientationPatient")
    if place is not None and orientation is not None:
        axes = np.array(orientation, float).reshape(2, 3)
        return round(float(np.cross(*axes) @ np.array(place, float)), 3)
    location = first("SliceLocation")
    return None if location is None else float(location)
