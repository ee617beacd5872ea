"""A record as its source gives it → an example that can be used, or why it cannot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from rarl.data.check import images_fault, text_fault, which_image
from rarl.data.images import BadImage, format_of, png_bytes, size_of
from rarl.prepare.dicom import identifying, is_dicom, people, render
from rarl.prepare.files import Fault, ImageFile
from rarl.prepare.fingerprint import ImagePrint, SeenImages, content_of, naming_image
from rarl.prepare.metadata import without_metadata
from rarl.prepare.people import without_names
from rarl.prepare.rows import SPLITS, BadRecord, Item, LeftOut, Record
from rarl.replies.boxes import boxes_in_images_fault, cut_at_edges
from rarl.replies.grading import is_yes_no
from rarl.schema import AnswerType, Example

ENDINGS = {"jpg": "JPEG", "jpeg": "JPEG", "dcm": "DICOM"}
ENDINGS |= {kind.lower(): kind for kind in ("PNG", "BMP", "GIF", "WEBP")}
RENDERED = "DICOM files were rendered to PNG"
TAKEN_AWAY = "image files held more than pixels (EXIF, comments, texts), which was taken away"
OTHER_FORMAT = "image files are of another format than their names say, which does no harm"
CUT = "rows had boxes up to two pixels over the edge of their image, which were cut"
HARMLESS = (RENDERED, TAKEN_AWAY, OTHER_FORMAT)


@dataclass(frozen=True)
class Sound:
    """A record that can be used, with notes of what was put right, and of what is worth knowing of
    its images' files."""

    where: str
    example: Example
    prints: list[ImagePrint]
    notes: tuple[str, ...]
    image_notes: list[tuple[str, str, str]]  # the note, the file's path or content, and its name


def inspect(item: Item, seen: SeenImages) -> Sound | BadRecord | LeftOut:
    """Reads and checks a record. Splits of another name are faults: they become file names."""
    if not isinstance(item, Record):
        return item
    try:
        encoded, image_notes, said = read_images(item)
        prints = seen.look_at_all(encoded)
        if item.split not in ("", *SPLITS):
            raise Fault(f"split '{item.split}' is not one of {', '.join(SPLITS)}")
        is_closed = is_yes_no(item.answer)
        guessed: AnswerType = "choice" if item.options else "closed" if is_closed else "open"
        texts = {k: text for k, text in item.texts.items() if text is not None}
        given: dict[str, Any] = without_names(said | texts)
        example = Example(
            id=item.id,
            images=tuple(encoded),
            image_labels=item.image_labels,
            image_id=item.image_id or images_id(item, prints),
            question=item.question,
            answer=item.answer,
            answer_type=item.answer_type or guessed,
            options=item.options,
            split=item.split,
            facts=item.facts or None,
            also_right=item.also_right or None,
            boxes=item.boxes,
            extra=item.extra,
            **given,
        )
        sizes = [size_of(one) for one in encoded] if item.boxes else []
        mended = item.mended
        if item.boxes and len(sizes) == 1:
            height, width = sizes[0]
            if (cut := cut_at_edges(item.boxes, width, height)) != item.boxes:
                example, mended = replace(example, boxes=cut), (*mended, CUT)
        fault = text_fault(example) or images_fault(example.images)
        fault = fault or boxes_in_images_fault(example.boxes, sizes)
        if fault:
            raise Fault(fault)
    except Fault as fault:
        return BadRecord(item.where, str(fault))
    notes = [
        (note, image.path or print_.content, image.path or image.name or item.where)
        for image, print_, its in zip(item.images, prints, image_notes, strict=True)
        for note in its
    ]
    return Sound(item.where, example, prints, mended, notes)


def images_id(record: Record, prints: Sequence[ImagePrint]) -> str:
    """Returns what is equal for equal images, and for a question of text is its own."""
    return content_of(prints) if prints else f"text-{record.id}"


def read_images(record: Record) -> tuple[list[bytes], list[tuple[str, ...]], dict[str, str]]:
    """Returns the bytes of each image to keep, notes about each file, and what these say of
    patient, study and site. Raises Fault, which names the image, and if they tell of several
    patients."""
    kept, notes, said = [], [], dict[str, str]()
    for number, image in enumerate(record.images):
        with naming_image(number, len(record.images)):
            encoded, its, people_ = read_image(image)
        if said.get("patient", "") not in ("", people_.get("patient", said.get("patient"))):
            raise Fault(f"{which_image(number, len(record.images))} is of another patient")
        kept.append(encoded)
        notes.append(its)
        said = people_ | said
    return kept, notes, said


def read_image(image: ImageFile) -> tuple[bytes, tuple[str, ...], dict[str, str]]:
    """Returns the bytes to keep, nothing but pixels, notes about the file, and what it says of
    patient, study and site. Raises Fault."""
    said: dict[str, str] = {}
    try:
        encoded, notes = image.read(), []
    except OSError as error:  # of a source of the user's own
        raise Fault(f"image '{image.name}' cannot be read ({error})") from None
    if not encoded:
        raise Fault(f"image '{image.name}' is empty")
    ending = PurePosixPath(image.name).suffix.lower().removeprefix(".")
    try:
        if is_dicom(encoded) or ending == "dcm":
            kept, found = png_bytes(render(encoded, image.frame)), "DICOM"
            notes.append(RENDERED)
            said, says = people(encoded), identifying(encoded)
            notes += [f"DICOM files {says}"] if says else []
        elif image.frame:
            raise Fault(f"frame {image.frame} is asked for, but the image is not DICOM")
        else:
            kept, found = without_metadata(encoded), format_of(encoded)
            if kept != encoded:
                notes.append(TAKEN_AWAY)
    except BadImage as error:
        raise Fault(f"image {error}") from None
    if ENDINGS.get(ending, found) != found:
        notes.append(OTHER_FORMAT)
    return kept, tuple(notes), said
