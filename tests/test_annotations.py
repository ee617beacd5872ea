"""DICOM annotations as highdicom writes them → the boxes of a table's rows; and each kind of mark
that is not read."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from rarl.data.parquet import ParquetRows
from rarl.errors import UserError
from rarl.prepare.annotations import Annotations
from rarl.prepare.convert import prepare_dataset
from rarl.prepare.files import Fault, Files
from rarl.schema import Box
from tests.pictures import picture, read, real, saved

CT = pydicom.dcmread(io.BytesIO(real("CT_small")))  # 128 x 128
CORNERS = [[10.5, 20.0], [40.0, 20.0], [40.0, 60.25], [10.5, 60.25], [10.5, 20.0]]


def numbered(**changes: Any) -> dict[str, Any]:
    """What every DICOM object that highdicom makes must be told."""
    return {
        "series_instance_uid": hd.UID(),
        "series_number": 100,
        "sop_instance_uid": hd.UID(),
        "instance_number": 1,
        "manufacturer": "nobody",
        **changes,
    }


def report_of(
    *regions: hd.sr.ImageRegion | hd.sr.ImageRegion3D, finding: Any, image: Dataset = CT
) -> Dataset:
    """A structured report (TID 1500) with a group of measurements for each region."""
    person = hd.sr.PersonObserverIdentifyingAttributes(name="Planted^Reader")
    observer = hd.sr.ObserverContext(codes.DCM.Person, person)
    groups = [
        hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
            tracking_identifier=hd.sr.TrackingIdentifier(hd.UID(), "lesion one"),
            referenced_region=region,
            finding_type=finding,
        )
        for region in regions
    ]
    content = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_person_context=observer),
        procedure_reported=codes.LN.CTUnspecifiedBodyRegion,
        imaging_measurements=groups,
    )
    return hd.sr.Comprehensive3DSR(evidence=[image], content=content, **numbered())


def region(kind: str, places: list[list[float]], image: Dataset = CT) -> hd.sr.ImageRegion:
    source = hd.sr.SourceImageForRegion.from_source_image(image)
    return hd.sr.ImageRegion(hd.sr.GraphicTypeValues(kind), np.array(places), source)


def state_of(kind: str, places: list[list[float]], text: str, units: str = "PIXEL") -> Dataset:
    """A presentation state with one graphic and, where there is one, its text."""
    layer = hd.pr.GraphicLayer("MARKS", order=1)
    texts = [hd.pr.TextObject(text, units=units, anchor_point=(0.1, 0.1))] if text else None
    annotation = hd.pr.GraphicAnnotation(
        referenced_images=[CT],
        graphic_layer=layer,
        graphic_objects=[hd.pr.GraphicObject(kind, np.array(places), units=units)],
        text_objects=texts,
    )
    return hd.pr.GrayscaleSoftcopyPresentationState(
        referenced_images=[CT],
        content_label="MARKS",
        graphic_layers=[layer],
        graphic_annotations=[annotation],
        manufacturer_model_name="none",
        software_versions="1",
        device_serial_number="1",
        **numbered(),
    )


def segmentation_of(masks: np.ndarray, kind: str = "BINARY", image: Dataset = CT) -> Dataset:
    """A segmentation with a segment for each of `masks`, (rows, columns, segments)."""
    segments = [
        hd.seg.SegmentDescription(
            segment_number=number + 1,
            segment_label=f"Segment {number + 1}",
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=(codes.SCT.Nodule, codes.SCT.Cyst)[number],
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for number in range(masks.shape[-1])
    ]
    return hd.seg.Segmentation(
        source_images=[image],
        pixel_array=masks[None],
        segmentation_type=kind,
        segment_descriptions=segments,
        manufacturer_model_name="none",
        software_versions="1",
        device_serial_number="1",
        **numbered(),
    )


def two_masks() -> np.ndarray:
    masks = np.zeros((128, 128, 2), bool)
    masks[20:30, 40:60, 0] = masks[50, 41, 0] = True
    masks[3:5, 0:128, 1] = True
    return masks


def source(folder: Path, *annotations: Dataset, image: bytes | None = None) -> Files:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ct.dcm").write_bytes(real("CT_small") if image is None else image)
    for number, one in enumerate(annotations):
        place = folder / "notes" / f"{number}.dcm"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(saved(one))
    return Files(folder)


def boxes_of(folder: Path, *annotations: Dataset) -> tuple[Box, ...]:
    files = source(folder, *annotations)
    return Annotations(files).boxes("notes", files.image("ct.dcm"))


NODULE = ("Nodule", 10.5, 20.0, 40.0, 60.25)
KINDS: dict[str, tuple[Callable[[], Dataset], tuple[tuple[Any, ...], ...]]] = {
    "report, polyline": (
        lambda: report_of(region("POLYLINE", CORNERS), finding=codes.SCT.Nodule),
        (NODULE,),
    ),
    "report, circle": (
        lambda: report_of(region("CIRCLE", [[50, 60], [53, 64]]), finding=codes.SCT.Cyst),
        (("Cyst", 45, 55, 55, 65),),
    ),
    # axes of 10 and 4, turned by 45 degrees
    "report, ellipse": (
        lambda: report_of(
            region("ELLIPSE", [[40, 40], [60, 60], [46, 54], [54, 46]]), finding=codes.SCT.Cyst
        ),
        (("Cyst", 50 - 116**0.5, 50 - 116**0.5, 50 + 116**0.5, 50 + 116**0.5),),
    ),
    "report, two regions": (
        lambda: report_of(
            region("POLYLINE", CORNERS),
            region("CIRCLE", [[9, 9], [9, 4]]),
            finding=codes.SCT.Nodule,
        ),
        (NODULE, ("Nodule", 4, 4, 14, 14)),
    ),
    "state, polyline": (
        lambda: state_of("POLYLINE", CORNERS, "a mass"),
        (("a mass", *NODULE[1:]),),
    ),
    "state, circle": (
        lambda: state_of("CIRCLE", [[50, 60], [53, 64]], "cyst"),
        (("cyst", 45, 55, 55, 65),),
    ),
    "segmentation": (
        lambda: segmentation_of(two_masks()),
        (("Nodule", 40, 20, 60, 51), ("Cyst", 0, 3, 128, 5)),
    ),
    "segmentation, fractional": (
        lambda: segmentation_of(two_masks() * 0.8 + 0.1, "FRACTIONAL"),
        (("Nodule", 40, 20, 60, 51), ("Cyst", 0, 3, 128, 5)),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_bounds_of_each_kind_of_mark(kind: str, tmp_path: Path) -> None:
    make, wanted = KINDS[kind]
    found = boxes_of(tmp_path, make())
    assert [one.label for one in found] == [label for label, *_ in wanted]
    for one, (_, *corners) in zip(found, wanted, strict=True):
        assert one.corners == pytest.approx(corners)


def test_a_row_has_the_boxes_of_its_own_image_alone(tmp_path: Path) -> None:
    """Two images, each with annotations of its own in the same folder, and one file by its name."""
    other = pydicom.dcmread(io.BytesIO(real("CT_small")))
    other.SOPInstanceUID = other.file_meta.MediaStorageSOPInstanceUID = hd.UID()
    other.PixelData = other.PixelData[::-1]
    notes = [
        report_of(region("POLYLINE", CORNERS), finding=codes.SCT.Nodule),
        report_of(region("CIRCLE", [[9, 9], [9, 4]], other), finding=codes.SCT.Cyst, image=other),
    ]
    src = tmp_path / "src"
    source(src, *notes)
    (src / "other.dcm").write_bytes(saved(other))
    (src / "notes" / "read-me.txt").write_text("no DICOM")
    rows = ["ct.dcm,Where?,,notes", "other.dcm,Where?,,notes", "ct.dcm,Really?,yes,notes/0.dcm"]
    (src / "table.csv").write_text("\n".join(["image,question,answer,boxes", *rows]) + "\n")
    prepare_dataset("folder", src, tmp_path / "out")
    found = read(tmp_path / "out" / "train.parquet")
    assert [one.boxes for one in found] == [
        (Box(*NODULE),),
        (Box("Cyst", 4, 4, 14, 14),),
        (Box(*NODULE),),
    ]
    assert [one.answer_type for one in found] == ["boxes", "boxes", "closed"]
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").iterdir())
    assert b"Planted" not in written and str(CT.PatientID).encode() not in written


def test_a_frame_has_the_marks_of_its_own(tmp_path: Path) -> None:
    """Of a file of several frames."""
    files = source(tmp_path, report_of(region("POLYLINE", CORNERS), finding=codes.SCT.Nodule))
    image = files.image("ct.dcm")
    path = tmp_path / "notes" / "0.dcm"
    dataset = pydicom.dcmread(path)

    def name_frame(item: Dataset) -> None:
        for child in item.get("ContentSequence") or ():
            if child.ValueType == "IMAGE" and item.ValueType == "SCOORD":
                child.ReferencedSOPSequence[0].ReferencedFrameNumber = [2, 3]
            name_frame(child)

    name_frame(dataset)
    dataset.save_as(path)
    for frame, marks in ((0, 0), (1, 1), (2, 1)):
        asked = type(image)(image.read, image.name, image.path, frame)
        if marks:
            assert Annotations(files).boxes("notes", asked) == (Box(*NODULE),)
        else:
            with pytest.raises(Fault, match=r"mark nothing in 'ct\.dcm'"):
                Annotations(files).boxes("notes", asked)


def unnamed() -> Dataset:
    """A report whose regions say nothing of what they are."""
    return report_of(region("POLYLINE", CORNERS), finding=None)


def in_space() -> Dataset:
    places = np.array([[1.0, 2, 3], [1, 5, 3], [4, 5, 3], [1, 2, 3]])
    kind = hd.sr.GraphicTypeValues3D.POLYGON
    flat = hd.sr.ImageRegion3D(kind, places, hd.UID(CT.FrameOfReferenceUID))
    return report_of(flat, finding=codes.SCT.Nodule)


def of_other_size() -> Dataset:
    made = segmentation_of(two_masks()[..., :1])
    made.Rows, made.Columns = 64, 256
    return made


def structure_set() -> Dataset:
    made = pydicom.dcmread(io.BytesIO(real("CT_small")))
    made.SOPClassUID = hd.UID("1.2.840.10008.5.1.4.1.1.481.3")
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    return made


NOT_READ: dict[str, tuple[Callable[[], Dataset], str]] = {
    "a point": (
        lambda: report_of(region("POINT", [[5, 5]]), finding=codes.SCT.Nodule),
        "a POINT marks 'Nodule', and has no bounds in pixels",
    ),
    "without a finding": (unnamed, "a POLYLINE does not say what it marks"),
    "without a text": (
        lambda: state_of("POLYLINE", CORNERS, ""),
        "a POLYLINE does not say what it marks",
    ),
    "of a screen": (
        lambda: state_of("CIRCLE", [[0.5, 0.5], [0.6, 0.5]], "cyst", "DISPLAY"),
        "a graphic in places of a screen marks 'cyst', and has no bounds in pixels",
    ),
    "in the patient": (in_space, "mark nothing in 'ct.dcm' that is in pixels of it"),
    "nothing": (
        lambda: segmentation_of(np.eye(128, dtype=bool)[..., None] & False),
        "mark nothing in 'ct.dcm' that is in pixels of it",
    ),
    "another size": (of_other_size, "of a picture of another size than 'ct.dcm' has"),
    "another kind": (
        structure_set,
        "is DICOM of the kind RT Structure Set Storage; structured reports, presentation states "
        "and segmentations are read",
    ),
    "cut off": (lambda: cut(segmentation_of(two_masks())), "cannot be decoded as DICOM"),
}


def cut(dataset: Dataset) -> Dataset:
    dataset.PixelData = dataset.PixelData[:100]
    return dataset


@pytest.mark.parametrize("kind", NOT_READ)
def test_what_is_not_read_is_said(kind: str, tmp_path: Path) -> None:
    """By the name of the file, as by its folder where that holds no other."""
    make, message = NOT_READ[kind]
    files = source(tmp_path, make())
    with pytest.raises(Fault) as raised:
        Annotations(files).boxes("notes/0.dcm", files.image("ct.dcm"))
    assert message in str(raised.value)


def test_faults_of_the_table_are_named_with_their_row(tmp_path: Path) -> None:
    src = tmp_path / "src"
    source(src, report_of(region("POLYLINE", CORNERS), finding=codes.SCT.Nodule))
    (src / "x.png").write_bytes(picture(1, "PNG"))
    rows = [
        "ct.dcm,Where?,,notes",
        "ct.dcm,Is it?,yes,",
        "ct.dcm,Is it?,no,",
        "x.png,Where?,,notes",
        "ct.dcm,Where is it?,,nowhere.dcm",
    ]
    (src / "table.csv").write_text("\n".join(["image,question,answer,boxes", *rows]) + "\n")
    prepare_dataset("folder", src, tmp_path / "out")
    assert len(ParquetRows(tmp_path / "out" / "train.parquet")) == 3
    lines = (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()
    told = [json.loads(line)["reason"] for line in lines]
    assert told == [
        "DICOM annotations are of DICOM images, and 'x.png' is none",
        "boxes 'nowhere.dcm' are neither a list nor DICOM annotations: no such file or folder is "
        "below the source folder",
    ]
    with pytest.raises(UserError, match="not one of the 1 records"):
        (src / "table.csv").write_text("image,question,answer,boxes\nx.png,Where?,,notes\n")
        prepare_dataset("folder", src, tmp_path / "out")
