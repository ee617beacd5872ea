"""What a source makes of a published row, and how it says that a row cannot be used or is not
wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from rarl.schema import AnswerType

SPLITS = ("train", "validation", "test")
MISSING_WORDS = ("nan", "null", "<na>", "#n/a")  # what programs write for a missing value


class Fault(ValueError):
    """A row cannot be used; the message says why. The row is counted, listed and left out."""


class Omitted(Exception):
    """A row is sound but was not asked for, such as one in another language."""


@dataclass(frozen=True)
class Choices:
    """What a user may choose of a source. Each source takes those that it names, see
    `Source.takes`."""

    phrases: tuple[str, ...] = ("freeform", "para")  # vqa-rad: phrase types to keep
    language: str = "en"  # slake: en, zh or all
    images: str = "first"  # medxpertqa: of several images, the first or all side by side
    version: int | None = None  # pmc-vqa: 1 or 2, if the files of both are there


@dataclass(frozen=True)
class Row:
    """A row of a table. `fault` is set if the table itself is broken there."""

    where: str  # file and row, for messages
    number: int  # from 0, within its file
    values: dict[str, Any]
    fault: str | None = None

    def text(self, key: str) -> str:
        """Returns a required text. Raises Fault if it is absent, empty, not a number, or of a kind
        that is not text."""
        value, name = self.values.get(key), key.lower()
        if value != value:
            raise Fault(f"{name} is NaN")
        if not cleaned(value):
            raise Fault(f"{name} is empty")
        if not is_scalar(value):
            raise Fault(f"{name} is of type {type(value).__name__}, not text")
        if cleaned(value).lower() in MISSING_WORDS:
            written = f"'{cleaned(value)}', which programs write for a missing value"
            raise Fault(f"{name} is {written}")
        return cleaned(value)

    def optional(self, key: str) -> str | None:
        """Returns a text that may be absent or empty."""
        return cleaned(self.values.get(key)) or None


def cleaned(value: Any) -> str:
    """Returns the text of a cell without blanks around it; the empty text if it is missing. Whole
    numbers have no fraction: programs make 1.0 of 1 in a column with gaps."""
    if value is None or value != value:
        return ""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()


def is_scalar(value: Any) -> bool:
    """Returns whether it is a text or number that is there; True and NaN are neither."""
    return isinstance(value, str | int | float) and not isinstance(value, bool) and value == value


@dataclass(frozen=True)
class Record:
    """A row as its source understands it. `image()` reads the encoded file when it is wanted and
    raises Fault."""

    where: str  # file and row, for messages
    id: str
    image: Callable[[], bytes]
    question: str
    answer: str
    # None: choice with options, closed for yes and no, else open
    answer_type: AnswerType | None = None
    options: tuple[str, ...] | None = None
    # further text fields of `Example` by name, such as organ
    texts: dict[str, str | None] = field(default_factory=dict)
    split: str = ""  # empty if neither the row nor the name of a file or folder tells
    image_name: str = ""  # as published, to compare its ending with the content
    image_id: str | None = None  # None: from the image's content
    frame: int = 0  # of a DICOM image
    mended: tuple[str, ...] = ()  # what was put right, in words that fit "3 answers: …"
    unused: tuple[str, ...] = ()  # columns of a table of your own that say nothing to RARL


@dataclass(frozen=True)
class BadRecord:
    where: str
    reason: str


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
            yield make(row)
        except Fault as fault:
            yield BadRecord(row.where, str(fault))
        except Omitted as reason:
            yield LeftOut(str(reason))


def pick(options: dict[str, str], letter: str) -> str:
    """Returns the option of a letter. Raises Fault if there is none."""
    if letter not in options:
        raise Fault(f"answer '{letter}' is not one of the letters {', '.join(options)}")
    return options[letter]
