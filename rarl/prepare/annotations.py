"""DICOM annotations → boxes: the bounds of what structured reports, presentation states and
segmentations mark in an image, with the finding that they name. Coordinates of all three are pixels
from the image's upper left corner (PS3.3, C.10.5 and C.18.6), as a box's are.

Not read: points, which have no area; places in the coordinates of the patient (SCOORD3D, RT
structure sets, surfaces) or of a screen; label maps; marks that do not say what they mark. A row
about an image with such a mark is a fault, since its other boxes would not be all.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels import pixel_array
from pydicom.uid import UID

from rarl.data.images import BadImage
from rarl.prepare.dicom import careful_reading, is_dicom
from rarl.prepare.files import Fault, Files, ImageFile
from rarl.schema import Box

FINDING = "121071"  # the code of DCM for "Finding", whose value says what is marked
POINTS = ("POINT", "MULTIPOINT")
REPORTS, STATES = "1.2.840.10008.5.1.4.1.1.88.", "1.2.840.10008.5.1.4.1.1.11."
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
READ = "structured reports, presentation states and segmentations are read"


@dataclass(frozen=True)
class ImageMark:
    """One mark in an image, which its SOP instance UID names; empty where nothing does. `frames`
    (from 1) are those that are meant, all if there are none; `size` (columns, rows) is that of the
    picture that was marked, where it has its own. Without a box, `fault` says why."""

    image: str
    frames: tuple[int, ...]
    box: Box | None
    fault: str = ""
    size: tuple[int, int] | None = None


@dataclass
class Annotations:
    """The DICOM annotations below a source's folder. `known` are the marks of each file or folder
    that a cell has named, by their images: these are read once."""

    files: Files
    known: dict[str, dict[str, list[ImageMark]]] = field(default_factory=dict)

    def boxes(self, named: str, image: ImageFile) -> tuple[Box, ...]:
        """Returns what a file of annotations, or all files of a folder, mark in an image. Raises
        Fault, also where they mark nothing in it."""
        uid, size = uid_and_size(image)
        if named not in self.known:
            self.known[named] = self.read(named)
        every = self.known[named].get(uid, ())
        marks = [one for one in every if not one.frames or image.frame + 1 in one.frames]
        where = f"annotations '{named}'"
        for one in marks:
            if one.fault:
                raise Fault(f"{where}: {one.fault}")
            if one.size not in (None, size):
                raise Fault(f"{where}: are of a picture of another size than '{image.name}' has")
        if not marks:
            raise Fault(
                f"{where}: mark nothing in '{image.name}' that is in pixels of it; leave the cell "
                "empty where nothing is known, and write [] where there is nothing to point at"
            )
        return tuple(one.box for one in marks if one.box is not None)

    def read(self, named: str) -> dict[str, list[ImageMark]]:
        """Returns the marks of a file, or of all files below a folder, by their images. Raises
        Fault; a folder may hold other files too."""
        folder = PurePosixPath(named.strip().replace("\\", "/")).as_posix()
        names = sorted(name for name in self.files.entries if name.startswith(f"{folder}/"))
        found: dict[str, list[ImageMark]] = {}
        try:
            alone = [] if names else [self.files.image(named).path]
        except Fault:
            raise Fault(
                f"boxes '{named}' are neither a list nor DICOM annotations: no such file or folder "
                "is below the source folder"
            ) from None
        for name in alone or names:
            for one in read_marks(self.files, name, is_named=bool(alone)):
                found.setdefault(one.image, []).append(one)
        return found


def read_marks(files: Files, name: str, is_named: bool) -> list[ImageMark]:
    """Returns the marks of a file; none of one that is no annotation, unless a cell has named it.
    Raises Fault."""
    data = files.read(name)
    if not is_dicom(data) and not is_named:
        return []
    try:
        with careful_reading(data):
            dataset = pydicom.dcmread(io.BytesIO(data))
            found = marks_of(dataset)
            if found is None and is_named:
                kind = UID(str(dataset.get("SOPClassUID", ""))).name or "no kind"
                raise BadImage(f"is DICOM of the kind {kind}; {READ}")
            return list(found or ())
    except BadImage as error:
        raise Fault(f"annotations '{name}' {error}") from None


def uid_and_size(image: ImageFile) -> tuple[str, tuple[int, int]]:
    """Returns the SOP instance UID of an image, and its columns and rows. Raises Fault."""
    data = image.read()
    if not is_dicom(data):
        raise Fault(f"DICOM annotations are of DICOM images, and '{image.name}' is none")
    tags = ["SOPInstanceUID", "Columns", "Rows"]
    try:
        with careful_reading(data):
            head = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True, specific_tags=tags)
            size = int(head.get("Columns") or 0), int(head.get("Rows") or 0)
            return str(head.get("SOPInstanceUID") or ""), size
    except BadImage as error:
        raise Fault(f"image '{image.name}' {error}") from None


def marks_of(dataset: Dataset) -> Iterator[ImageMark] | None:
    """Returns the marks of a file, or None where it is of no kind that is read. Raises whatever a
    broken file leads to."""
    kind = str(dataset.get("SOPClassUID", ""))
    if kind.startswith(REPORTS):
        return marks_of_report(dataset, dataset, "")
    if kind.startswith(STATES):
        return marks_of_state(dataset)
    return marks_of_segmentation(dataset) if kind == SEGMENTATION else None


def marks_of_report(item: Dataset, report: Dataset, label: str) -> Iterator[ImageMark]:
    """Yields the regions (SCOORD) below a content item. What they mark is the nearest finding above
    them: a code that they belong to, or the one named Finding of their group."""
    label = finding_of(item) or label
    for child in item.get("ContentSequence") or ():
        kind = child.get("ValueType")
        if kind == "SCOORD":
            for image, frames in marked_images(child, report):
                yield mark(image, frames, label, str(child.GraphicType), child.GraphicData)
        yield from marks_of_report(child, report, label)


def finding_of(item: Dataset) -> str:
    if item.get("ValueType") == "CODE":
        return meaning(item, "ConceptCodeSequence")
    for child in item.get("ContentSequence") or ():
        names = child.get("ConceptNameCodeSequence")
        if child.get("ValueType") == "CODE" and names and names[0].get("CodeValue") == FINDING:
            return meaning(child, "ConceptCodeSequence")
    return ""


def meaning(item: Dataset, name: str) -> str:
    """Returns the text of the first code of a sequence."""
    codes = item.get(name)
    return str(codes[0].get("CodeMeaning") or "").strip() if codes else ""


def marked_images(region: Dataset, report: Dataset) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields the images, and their frames, that a region was selected from; they stand below it, or
    elsewhere in the report, at the place that is given."""
    for child in region.get("ContentSequence") or ():
        found = child
        for place in list(child.get("ReferencedContentItemIdentifier") or ())[1:]:
            found = (report if found is child else found).ContentSequence[int(place) - 1]
        for one in found.get("ReferencedSOPSequence") or ():
            yield referenced(one)


def referenced(one: Dataset) -> tuple[str, tuple[int, ...]]:
    """Returns the image and the frames that an item of a sequence of references names."""
    frames = one.get("ReferencedFrameNumber") or ()
    every = frames if isinstance(frames, pydicom.multival.MultiValue | tuple) else [frames]
    return str(one.get("ReferencedSOPInstanceUID") or ""), tuple(map(int, every))


def marks_of_state(dataset: Dataset) -> Iterator[ImageMark]:
    """Yields the graphics of a presentation state. What they mark is the text beside them; they are
    drawn over the images that they name, or over all of the state's."""
    series = dataset.get("ReferencedSeriesSequence") or ()
    every = [one for its in series for one in its.get("ReferencedImageSequence") or ()]
    for annotation in dataset.get("GraphicAnnotationSequence") or ():
        texts = annotation.get("TextObjectSequence") or ()
        label = " ".join(str(one.get("UnformattedTextValue") or "").strip() for one in texts)
        for graphic in annotation.get("GraphicObjectSequence") or ():
            in_pixels = graphic.get("GraphicAnnotationUnits") == "PIXEL"
            kind = str(graphic.GraphicType) if in_pixels else "graphic in places of a screen"
            for one in annotation.get("ReferencedImageSequence") or every:
                yield mark(*referenced(one), label.strip(), kind, graphic.GraphicData)


def mark(image: str, frames: tuple[int, ...], label: str, kind: str, data: Any) -> ImageMark:
    """Returns a mark with the bounds of a graphic, or with what is wrong with it."""
    if not label:
        return ImageMark(image, frames, None, f"a {kind} does not say what it marks")
    places = np.array(data, dtype=np.float64).reshape(-1, 2)
    reach = np.zeros(2)
    if kind == "CIRCLE":  # the centre and a place on the line
        places, reach = places[:1], np.full(2, math.dist(*places[:2]))
    elif kind == "ELLIPSE":  # the ends of one axis, then those of the other
        halves = places[1::2] - places[::2]
        places, reach = places[:2].mean(0, keepdims=True), np.hypot(*halves) / 2
    elif kind in POINTS or kind not in ("POLYLINE", "INTERPOLATED", "POLYGON"):
        return ImageMark(
            image, frames, None, f"a {kind} marks '{label}', and has no bounds in pixels"
        )
    (x1, y1), (x2, y2) = places.min(0) - reach, places.max(0) + reach
    return ImageMark(image, frames, Box(label, float(x1), float(y1), float(x2), float(y2)))


def marks_of_segmentation(dataset: Dataset) -> Iterator[ImageMark]:
    """Yields the bounds of each segment in each frame that has any of it. What it marks is the
    segment's type, or its label where there is none."""
    names = {
        int(one.SegmentNumber): meaning(one, "SegmentedPropertyTypeCodeSequence")
        or str(one.get("SegmentLabel") or "").strip()
        for one in dataset.SegmentSequence
    }
    kind, size = str(dataset.SegmentationType), (int(dataset.Columns), int(dataset.Rows))
    least = int(dataset.MaximumFractionalValue) / 2 if kind == "FRACTIONAL" else 0
    shared = list(dataset.get("SharedFunctionalGroupsSequence") or ())
    for place, own in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        groups = [own, *shared]
        sources = [
            referenced(one)
            for group in groups
            for derived in group.get("DerivationImageSequence") or ()
            for one in derived.get("SourceImageSequence") or ()
        ]
        parts = [
            group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
            for group in groups
            if group.get("SegmentIdentificationSequence")
        ]
        if not parts:
            yield from (
                ImageMark(*one, None, f"a {kind} segmentation is not read") for one in sources
            )
            continue
        mask = pixel_array(dataset, index=place) > least
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        for image, frames in sources if len(rows) else ():
            corners = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            box = Box(names[int(parts[0])], *map(float, corners))
            yield ImageMark(image, frames, box, size=size)
