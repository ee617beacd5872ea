"""A source's records → examples that can be used with their fingerprints, or the reason why not.
Images are read and decoded by as many threads as there are cores, a bounded number of records
ahead."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath
from typing import Any, TypeVar

from rarl.data.check import text_fault
from rarl.data.images import BadImage, decode_image, format_of, png_bytes, require_content
from rarl.prepare.dicom import has_burned_in_text, is_dicom, render
from rarl.prepare.files import Fault
from rarl.prepare.fingerprint import ImagePrint, content_id, image_print
from rarl.prepare.metadata import without_metadata
from rarl.prepare.rows import SPLITS, BadRecord, Item, LeftOut, Record
from rarl.schema import AnswerType, Example

ENDINGS = {"jpg": "JPEG", "jpeg": "JPEG", "dcm": "DICOM"}
ENDINGS |= {kind.lower(): kind for kind in ("PNG", "BMP", "GIF", "WEBP")}
BURNED_IN = "DICOM images say that text is burned into the picture, which may name the patient"
TAKEN_AWAY = "images held more than pixels (EXIF, comments, texts), which was taken away"
OTHER_FORMAT = "images are of another format than their names say, which does no harm"
# Of VQA-RAD's 2,190 different questions, all English, none is taken for another language with this
# probability.
SURE = 0.9
AHEAD = 8  # records per core that may wait with their images in memory
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Sound:
    """A record that can be used. `notes` is what was put right or is worth knowing."""

    where: str
    example: Example
    print: ImagePrint
    notes: tuple[str, ...]
    unused: tuple[str, ...] = ()  # columns


def in_threads(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yields `function` of every item, in their order, a bounded number ahead."""
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
        """Returns an image's fingerprint. Raises Fault if it cannot be decoded or shows nothing."""
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
    if record.split not in ("", *SPLITS):
        raise Fault(f"split '{record.split}' is not one of {', '.join(SPLITS)}")
    is_closed = record.answer.lower().rstrip(".") in ("yes", "no")
    guessed: AnswerType = "choice" if record.options else "closed" if is_closed else "open"
    return Example(
        id=record.id,
        image=encoded,
        image_id=record.image_id or print_.content,
        question=record.question,
        answer=record.answer,
        answer_type=record.answer_type or guessed,
        options=record.options,
        split=record.split,
        **{name: value for name, value in record.texts.items() if value is not None},
    )


def read_image(record: Record) -> tuple[bytes, tuple[str, ...]]:
    """Returns the bytes to keep, nothing but pixels, and notes about them. Raises Fault."""
    encoded, notes = record.image.read(), []
    if not encoded:
        raise Fault(f"image '{record.image.name}' is empty")
    ending = PurePosixPath(record.image.name).suffix.lower().removeprefix(".")
    try:
        if is_dicom(encoded) or ending == "dcm":
            kept, found = png_bytes(render(encoded, record.frame)), "DICOM"
            notes.append("DICOM images were rendered to PNG")
            if has_burned_in_text(encoded):
                notes.append(BURNED_IN)
        elif record.frame:
            raise Fault(f"frame {record.frame} is asked for, but the image is not DICOM")
        else:
            kept, found = without_metadata(encoded), format_of(encoded)
            if kept != encoded:
                notes.append(TAKEN_AWAY)
    except BadImage as error:
        raise Fault(f"image {error}") from None
    if ENDINGS.get(ending, found) != found:
        notes.append(OTHER_FORMAT)
    return kept, tuple(notes)


@cache
def language_identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def language_of(text: str) -> str | None:
    """Returns a two-letter code by py3langid, which needs no download, or None if it is not sure,
    as it often is with short questions: a language that is named is there."""
    language, probability = language_identifier().classify(text)
    return str(language) if probability >= SURE else None
