"""A source's records → examples that can be used with their fingerprints, or the reason why not.
Images are read and decoded by as many threads as there are cores, a bounded number of records
ahead."""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TypeVar

from rarl.data.images import BadImage, decode_image, format_of, require_content
from rarl.prepare.dicom import has_burned_in_text, is_dicom, render
from rarl.prepare.faults import text_fault
from rarl.prepare.fingerprint import ImagePrint, content_id, image_print
from rarl.prepare.metadata import without_metadata
from rarl.prepare.sources.record import (
    SPLITS,
    BadRecord,
    Fault,
    Item,
    LeftOut,
    Record,
    yes_no_or_open,
)
from rarl.schema import Example

ENDINGS = {
    "jpg": "JPEG",
    "jpeg": "JPEG",
    "png": "PNG",
    "bmp": "BMP",
    "gif": "GIF",
    "webp": "WEBP",
    "dcm": "DICOM",
}
T = TypeVar("T")
R = TypeVar("R")
AHEAD = 8  # records per core that may wait with their images in memory


@dataclass(frozen=True)
class Sound:
    """A record that can be used. `notes` is what was put right or is worth knowing, each to be
    counted."""

    where: str
    example: Example
    print: ImagePrint
    notes: tuple[str, ...]
    unused: tuple[str, ...] = ()  # columns


def in_threads(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`function` of every item, in their order, a bounded number ahead."""
    cores = os.cpu_count() or 1
    with ThreadPoolExecutor(cores) as pool:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > AHEAD * cores:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class Inspector:
    """Remembers the images that it has seen, since many questions share one."""

    def __init__(self) -> None:
        self.seen: dict[str, ImagePrint | str] = {}  # content → print, or what is wrong with it

    def inspect_all(self, items: Iterable[Item]) -> Iterator[Sound | BadRecord | LeftOut]:
        """In the order of the items."""
        return in_threads(self.inspect, items)

    def inspect(self, item: Item) -> Sound | BadRecord | LeftOut:
        if not isinstance(item, Record):
            return item
        try:
            encoded, notes = read_image(item)
            print_ = self.look_at(encoded)
            example = make_example(item, encoded, print_)
            fault = text_fault(example)
            if fault:
                raise Fault(fault)
        except Fault as fault:
            return BadRecord(item.where, str(fault))
        return Sound(item.where, example, print_, item.mended + notes, item.unused)

    def look_at(self, encoded: bytes) -> ImagePrint:
        """Raises Fault for an image that cannot be decoded, or that shows nothing."""
        content = content_id(encoded)
        known = self.seen.get(content)
        if known is None:
            try:
                picture = decode_image(encoded)
                require_content(picture)
                known = image_print(encoded, picture)
            except BadImage as error:
                known = f"image {error}"
            self.seen[content] = known
        if isinstance(known, str):
            raise Fault(known)
        return known


def make_example(record: Record, encoded: bytes, print_: ImagePrint) -> Example:
    """Raises Fault for a split of another name: splits become file names."""
    if record.split not in SPLITS:
        raise Fault(f"split '{record.split}' is not one of {', '.join(SPLITS)}")
    guessed = "choice" if record.options else yes_no_or_open(record.answer)
    return Example(
        id=record.id,
        image=encoded,
        image_id=record.image_id or print_.content,
        question=record.question,
        answer=record.answer,
        answer_type=record.answer_type or guessed,
        options=record.options,
        rationale=record.rationale,
        modality=record.modality,
        organ=record.organ,
        split=record.split,
    )


def read_image(record: Record) -> tuple[bytes, tuple[str, ...]]:
    """The bytes to keep, and notes about them: nothing but pixels. Raises Fault."""
    encoded = record.image()
    if not encoded:
        raise Fault(f"image '{record.image_name}' is empty")
    ending = PurePosixPath(record.image_name).suffix.lower().removeprefix(".")
    notes = []
    try:
        if is_dicom(encoded) or ending == "dcm":
            rendered, found = as_png(encoded, record.frame), "DICOM"
            notes.append("DICOM images were rendered to PNG")
            if has_burned_in_text(encoded):
                notes.append(
                    "DICOM images say that text is burned into the picture, which may name the patient"
                )
            encoded = rendered
        elif record.frame:
            raise Fault(f"frame {record.frame} is asked for, but the image is not DICOM")
        else:
            found, kept = format_of(encoded), without_metadata(encoded)
            if kept != encoded:
                notes.append(
                    "images held more than pixels (EXIF, comments, texts), which was taken away"
                )
            encoded = kept
    except BadImage as error:
        raise Fault(f"image {error}") from None
    if ENDINGS.get(ending, found) != found:
        notes.append("images are of another format than their names say, which does no harm")
    return encoded, tuple(notes)


def as_png(dicom: bytes, frame: int) -> bytes:
    out = io.BytesIO()
    render(dicom, frame).save(out, format="PNG")
    return out.getvalue()
