"""The rows of a table, and the records that a source makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from rarl.prepare.files import Fault, ImageFile
from rarl.schema import AnswerType, Box

SPLITS = ("train", "validation", "test")
# What programs write for a missing value, and Excel for one that it cannot compute.
MISSING_WORDS = ("nan", "null", "<na>", "#n/a", "#ref!", "#value!", "#name?", "#div/0!")


class Omitted(Exception):
    """A row is sound but was not asked for, such as one in another language."""


@dataclass(frozen=True)
class Choices:
    """What a user may choose of a source, see `Source.takes`."""

    phrases: tuple[str, ...] = ("freeform", "para")  # vqa-rad: phrase types to keep
    language: str = "en"  # slake: en, zh or all
    images: str = "all"  # medxpertqa: of several images, all or the first
    version: int | None = None  # pmc-vqa: 1 or 2, if the files of both are there
    answers: str | None = None  # silvar-med: a prepared SLAKE, for its short answers
    map: tuple[str, ...] = ()  # folder, text: columns of another name, as in "image=Image Name"
    slices: str | None = None  # folder: how many of a DICOM series, or "all"


@dataclass(frozen=True)
class Row:
    """A row of a table. `fault` is set if the table itself is broken there."""

    where: str  # file and row, for messages
    number: int  # from 0, within its file
    values: dict[str, Any]
    fault: str | None = None
    line: int | None = None  # where a text editor shows it, or the row of a sheet; None in others
    mended: tuple[str, ...] = ()  # as of `Record`, of the table as a whole

    def text(self, key: str) -> str:
        """Returns a required text. Raises Fault if it is missing or of a kind that is not text."""
        value, name = self.values.get(key), key.lower()
        if value != value:
            raise Fault(f"{name} is NaN")
        if not cleaned(value):
            raise Fault(f"{name} is empty")
        if not is_scalar(value):
            raise Fault(f"{name} is of type {type(value).__name__}, not text")
        text = cleaned(value)
        if text.lower() in MISSING_WORDS:
            raise Fault(f"{name} is '{text}', which programs write for a missing value")
        return text

    def optional(self, key: str) -> str | None:
        """Returns a text that may be absent or empty."""
        return given_text(self.values.get(key)) or None


def cleaned(value: Any) -> str:
    """Returns the text of a cell without blanks around it, empty if it is missing. Programs make
    1.0 of 1 in a column with gaps; here it is 1 again."""
    if value is None or value != value:
        return ""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()


def given_text(value: Any) -> str:
    """Returns the text of a cell that may be absent: empty also for one of MISSING_WORDS."""
    text = cleaned(value)
    return "" if text.lower() in MISSING_WORDS else text


def is_scalar(value: Any) -> bool:
    """Returns whether it is a text or number that is there; True and NaN are neither."""
    return isinstance(value, str | int | float) and not isinstance(value, bool) and value == value


@dataclass(frozen=True)
class Record:
    """A row as its source understands it."""

    where: str  # file and row, for messages
    id: str
    images: tuple[ImageFile, ...]  # in the order in which they are shown; none: a question of text
    question: str
    answer: str
    answer_type: AnswerType | None = None  # choice with options, closed for yes and no, else open
    options: tuple[str, ...] | None = None
    texts: dict[str, str | None] = field(default_factory=dict)  # of `Example` by name: organ, …
    facts: tuple[str, ...] = ()  # sentences that are true of the image
    also_right: tuple[str, ...] = ()  # further answers that count as right
    boxes: tuple[Box, ...] | None = None  # in pixels of the image's file
    extra: dict[str, str | None] = field(default_factory=dict)  # further columns of the table
    split: str = ""  # empty if neither the row nor the name of a file or folder tells
    image_labels: tuple[str, ...] | None = None  # what each image is: frontal, prior, …
    image_id: str | None = None  # None: from the images' content
    mended: tuple[str, ...] = ()  # what was put right, in words that fit "3 answers: …"


@dataclass(frozen=True)
class BadRecord:
    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


@dataclass(frozen=True)
class LeftOut:
    """A row that was not asked for."""

    reason: str


Item = Record | BadRecord | LeftOut


def each(rows: Iterable[Row], make: Callable[[Row], Record]) -> Iterator[Item]:
    """Yields `make` of every row, with its Fault and Omitted as items."""
    for row in rows:
        try:
            if row.fault:
                raise Fault(row.fault)
            record = make(row)
            yield replace(record, mended=row.mended + record.mended)
        except Fault as fault:
            yield BadRecord(row.where, str(fault))
        except Omitted as reason:
            yield LeftOut(str(reason))
