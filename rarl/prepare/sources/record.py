"""What a source makes of a published row, and how it says that a row cannot be used or is not
wanted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from rarl.schema import AnswerType

SPLITS = ("train", "validation", "test")


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
    version: int | None = None  # pmc-vqa: 1 or 2, where the files of both are there


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
    rationale: str | None = None
    modality: str | None = None
    organ: str | None = None
    split: str = "train"
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
    """Counts a row that was not asked for."""

    reason: str


Item = Record | BadRecord | LeftOut


@dataclass(frozen=True)
class Row:
    """A row of a table. `fault` is set where the table itself is broken there."""

    where: str
    number: int  # from 0, within its file
    values: dict[str, Any]
    fault: str | None = None


def each(rows: Iterable[Row], make: Callable[[Row], Record]) -> Iterator[Item]:
    """`make` for every row, with its Fault and Omitted as items."""
    for row in rows:
        try:
            if row.fault:
                raise Fault(row.fault)
            yield make(row)
        except Fault as fault:
            yield BadRecord(row.where, str(fault))
        except Omitted as reason:
            yield LeftOut(str(reason))


MISSING_WORDS = ("nan", "null", "<na>", "#n/a")  # what programs write for a missing value


def text(values: dict[str, Any], key: str) -> str:
    """A required text. Raises Fault where it is absent, empty, not a number, or of a kind that is
    not text."""
    if key not in values:
        raise Fault(f"key '{key}' is missing")
    value = values[key]
    if value is None or (isinstance(value, str) and not value.strip()):
        raise Fault(f"{key.lower()} is empty")
    if isinstance(value, float) and math.isnan(value):
        raise Fault(f"{key.lower()} is NaN")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Fault(f"{key.lower()} is of type {type(value).__name__}, not text")
    stripped = scalar_text(value)
    if stripped.lower() in MISSING_WORDS:
        raise Fault(f"{key.lower()} is '{stripped}', which programs write for a missing value")
    return stripped


def scalar_text(value: str | int | float) -> str:
    """Whole numbers without a fraction: programs make 1.0 of 1 where a column has gaps."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()


def optional_text(values: dict[str, Any], key: str) -> str | None:
    """A text that may be absent or empty."""
    value = values.get(key)
    if value is None or (isinstance(value, float) and math.isnan(value)) or not str(value).strip():
        return None
    return str(value).strip()


def yes_no_or_open(answer: str) -> AnswerType:
    return "closed" if answer.strip().lower().rstrip(".") in ("yes", "no") else "open"


def lettered(values: dict[str, Any], keys: dict[str, str]) -> dict[str, str]:
    """Letter → option text, from the columns that `keys` names by letter, without the "A:" that
    some texts begin with; options that are absent are left out."""
    options = {}
    for letter, key in keys.items():
        value = optional_text(values, key)
        if value is not None:
            options[letter] = value.removeprefix(f"{letter}:").strip()
    return options


def pick(options: dict[str, str], letter: str) -> str:
    """The option of a letter. Raises Fault."""
    if letter not in options:
        raise Fault(f"answer '{letter}' is not one of the letters {', '.join(options)}")
    return options[letter]
