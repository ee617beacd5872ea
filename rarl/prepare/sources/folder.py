"""Your own images with a table of `image` (a path below the folder or, in Parquet, the bytes),
`question` and `answer`, or questions of text with a table of the last two. Optional are `id`,
`options`, `facts`, `boxes`, `split`, `answer_type` for boxes and reports, `image_2` and so on for
further images, `image_labels`, `frame` of a DICOM file with several, and the text fields of
`rarl.schema.Example`. Further columns go along as they are."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date, time
from functools import cache, partial
from string import ascii_uppercase
from typing import Any

from rarl.data.columns import MORE_TEXTS
from rarl.errors import UserError
from rarl.prepare import tables
from rarl.prepare.annotations import Annotations
from rarl.prepare.boxes import read_boxes
from rarl.prepare.files import Fault, Files, ImageFile
from rarl.prepare.people import banded, is_date, may_name
from rarl.prepare.rows import (
    SPLITS,
    Choices,
    Item,
    Record,
    Row,
    cleaned,
    each,
    given_text,
    is_scalar,
)
from rarl.prepare.series import require_slices, series_images
from rarl.prepare.sources.published import embedded_image
from rarl.replies.boxes import boxes_text
from rarl.schema import MOST_IMAGES, AnswerType

IMAGES = ("image", *(f"image_{number}" for number in range(2, MOST_IMAGES + 1)))
OF_IMAGES = (*IMAGES, "image_labels", "frame", "boxes")
OF_TEXT = ("question", "answer", "answer_type", "id", "options", "facts", "split", *MORE_TEXTS)
COLUMNS = (*OF_IMAGES, *OF_TEXT)
OTHER_WORKBOOKS = ("*.xls", "*.ods")
TEXTS = str | int | float | bool | date | time | None  # of further columns, those that go along
TOLD_TYPES: dict[str, AnswerType] = {"boxes": "boxes", "report": "report"}
# What others call a split.
SPLIT_NAMES = {"val": "validation", "valid": "validation", "dev": "validation"}
SPLIT_NAMES |= {split: split for split in SPLITS}
LETTERED = re.compile(r"([A-Za-z])[.)]\s*(\S.*)", re.DOTALL)  # B. Liver, B) Liver
BEFORE_LETTER = re.compile(r"\s+(?=[A-Za-z][.)]\s*\S)")
# Between two sentences: "No effusion. The heart is normal."
SENTENCES = re.compile(r"(?<=[^\W\d][.!])\s+(?=[A-Z])")
LAST_OF_A_SENTENCE = re.compile(r"(and|or)\b", re.IGNORECASE)
REQUIRED = ("image", "question", "answer")
GAPS = "questions had cells such as 'nan' for a missing value, which are read as empty"
NOT_TEXT = "rows have images, which the source text does not read; the source folder does"
ALIKE = 0.8  # as in `near_column`: an optional column is seldom missed, so only near names are told


def read_folder(files: Files, choices: Choices) -> Iterator[Item]:
    mapped = read_map(choices.map)
    require_slices(choices.slices)
    name = find_table(files, "beside images")
    images = partial(shown_in, files=files, mapped=mapped, slices=choices.slices)
    rows = tables.read_table(files, name, ("image", "question", "answer"), COLUMNS, mapped)
    split, annotations = files.split_of(name), Annotations(files)
    make = partial(folder_record, images=images, split=split, annotations=annotations)
    yield from each(rows, make)


def read_text(files: Files, choices: Choices) -> Iterator[Item]:
    """Questions without images."""
    mapped = read_map(choices.map, OF_TEXT)
    name = find_table(files, "of questions")
    rows = tables.read_table(files, name, ("question", "answer"), COLUMNS, mapped)
    yield from each(rows, partial(folder_record, images=no_images, split=files.split_of(name)))


def find_table(files: Files, what: str) -> str:
    """Returns the name of the only table. Raises UserError."""
    # Excel leaves files that begin with ~$ beside an open workbook.
    found = [name for name in files.find(*tables.TABLE_PATTERNS) if not name.startswith("~$")]
    names = [name for name in found if "/" not in name]
    workbooks = [name for name in files.find(*OTHER_WORKBOOKS) if "/" not in name]
    if not names and workbooks:
        workbook = files.entries[workbooks[0]]
        raise UserError(f"{workbook}: cannot be read; save it as .xlsx, or as CSV UTF-8")
    if not names:
        kinds = "a CSV, TSV, JSON-lines, JSON or Parquet file, or an .xlsx workbook"
        raise UserError(f"{files.named}: holds no table ({kinds}) {what}")
    if len(names) > 1:
        listed = f"holds {len(names)} tables ({', '.join(names)})"
        raise UserError(f"{files.named}: {listed}; name the one that is meant")
    return names[0]


def read_map(given: tuple[str, ...], columns: Sequence[str] = COLUMNS) -> dict[str, str]:
    """Returns the table's own names by ours, of texts such as "image=Image Name". Raises
    UserError."""
    mapped: dict[str, str] = {}
    for one in given:
        name, _, theirs = (part.strip() for part in one.partition("="))
        name, told = name.lower(), f"--map '{one}'"
        if not theirs:
            raise UserError(f"{told}: write it as in --map image='Image Name'")
        if name not in columns:
            near = tables.near_column(name, columns)
            advice = f"; did you mean '{near}'?" if near else ""
            listed = ", ".join(one for one in columns if one not in IMAGES[2:])
            raise UserError(f"{told}: '{name}' is none of {listed}{advice}")
        if name in mapped or theirs in mapped.values():
            raise UserError(f"{told}: '{name if name in mapped else theirs}' is mapped twice")
        mapped[name] = theirs
    return mapped


@cache
def hints(columns: tuple[str, ...]) -> tuple[str, ...]:
    """Returns a note for each optional column that may be there under another name."""
    further, notes = [name for name in columns if name not in COLUMNS], []
    if named := [name for name in further if may_name(name)]:
        one, they = ("a column", "does") if len(named) == 1 else ("columns", "do")
        notes.append(f"rows have {one} that may name a patient and {they} not go along: {named}")
    for wanted in ("options", "split", *MORE_TEXTS):
        near = tables.near_column(wanted, further, ALIKE)
        if near and wanted not in columns:
            advice = f"if '{near}' is that, add {tables.as_map({wanted: near})}"
            notes.append(f"rows are read without '{wanted}': {advice}")
    return tuple(notes)


# A question's images, their labels, and what was put right.
Shown = tuple[tuple[ImageFile, ...], tuple[str, ...] | None, tuple[str, ...]]


def no_images(row: Row) -> Shown:
    """Says so where a table has what may be images after all."""
    cells = [row.values.get(name) for name in IMAGES]
    return (), None, (NOT_TEXT,) * any(held(one) or bool(cleaned(one)) for one in cells)


def held(value: Any) -> bool:
    """Returns whether a cell holds an image itself."""
    return isinstance(value, dict | bytes)


def shown_in(row: Row, files: Files, mapped: Mapping[str, str], slices: str | None) -> Shown:
    """Returns the images that the row's cells name or hold; a cell may hold a list of them. With
    `slices`, one that names a folder of DICOM files, or a file of several frames, stands for a
    series. Raises Fault."""
    if not held(row.values["image"]) and not isinstance(row.values["image"], list):
        row.text("image")  # is there
    names: list[str] = []
    cells: list[Any] = []
    for name in IMAGES:
        value = row.values.get(name)
        if isinstance(value, str) and value.lstrip().startswith("["):
            value = tables.read_list(value, name)
        its = value if isinstance(value, list) else [value]
        cells += [one for one in its if held(one) or cleaned(one)]
        names += [mapped.get(name, "")] * (len(cells) - len(names))
    if not cells:
        raise Fault("image is empty")
    frame = read_frame(row.values.get("frame"))
    if slices is not None:
        if len(cells) > 1 or held(cells[0]) or frame:
            raise Fault("--slices takes one image cell that names a series, and no frame")
        return *series_images(files, cleaned(cells[0]), slices), ()
    if frame and len(cells) > 1:
        raise Fault(f"frame {frame} is asked for, but there are {len(cells)} images")
    images = [embedded_image(one) if held(one) else files.image(cleaned(one)) for one in cells]
    images[0] = replace(images[0], frame=frame)
    labels = read_labels(row.values.get("image_labels"))
    if labels is None and len(cells) > 1 and all(names):
        labels = tuple(names)
    return tuple(images), labels, ()


def read_labels(value: Any) -> tuple[str, ...] | None:
    """Returns the labels of a list, or of a text with |, semicolons or commas between them. Raises
    Fault."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = tables.read_list(value, "image_labels")
    if not isinstance(value, list):
        text = cleaned(value)
        value = text.split(next((mark for mark in "|;," if mark in text), "|")) if text else []
    if not all(is_scalar(one) for one in value):
        raise Fault(f"image_labels {value!r} are not a list of texts")
    return tuple(map(cleaned, value)) or None


def folder_record(
    row: Row,
    images: Callable[[Row], Shown],
    split: str,
    annotations: Annotations | None = None,
) -> Record:
    """`split` is what the table's name tells, for rows that name none; `annotations` are those that
    cells of boxes may name."""
    row, gaps = without_missing(row)
    shown, labels, noted = images(row)
    boxes = read_boxes(row.values.get("boxes"), shown, annotations)
    answer_type = read_type(row)
    if answer_type == "boxes" and boxes is not None:
        given_answer = boxes_text(boxes)  # what stands there says the same to people
    else:
        given_answer = row.text("answer")
    options = read_options(row.values.get("options"), given_answer)
    answer, options, mended = answer_among(given_answer, options)
    columns = tuple(name for name in row.values if name)
    further = {name: row.values[name] for name in columns if name not in COLUMNS}
    given = row.optional("split") or split
    return Record(
        where=row.where,
        id=row.optional("id") or f"row-{row.number if row.line is None else row.line}",
        images=shown,
        image_labels=labels,
        question=row.text("question"),
        answer=answer,
        answer_type=answer_type,
        options=options,
        boxes=boxes,
        texts={name: row.optional(name) for name in MORE_TEXTS},
        facts=read_facts(row.values.get("facts")),
        split=SPLIT_NAMES.get(given.lower(), given),
        mended=gaps + noted + mended + hints(columns),
        extra={
            name: banded(name, cleaned(value) or None)
            for name, value in further.items()
            if goes_along(name, value)
        },
    )


def goes_along(name: str, value: Any) -> bool:
    """Tells whether a cell of a further column is kept: no date, and nothing that may name a
    patient."""
    if not isinstance(value, TEXTS) or isinstance(value, date) or may_name(name):
        return False
    return not is_date(name, cleaned(value))


def without_missing(row: Row) -> tuple[Row, tuple[str, ...]]:
    """Returns the row without the words that programs write for a missing value in cells that may
    be empty, and a note where there were any. Required cells stay: their faults name the word."""
    missing = [
        name
        for name, value in row.values.items()
        if name not in REQUIRED
        and isinstance(value, str)
        and cleaned(value)
        and not given_text(value)
    ]
    if not missing:
        return row, ()
    return replace(row, values={**row.values, **dict.fromkeys(missing)}), (GAPS,)


def read_frame(value: Any) -> int:
    """Returns the number of a DICOM frame, from 0. Raises Fault."""
    try:
        frame = float(cleaned(value) or 0)
    except ValueError:
        frame = -1.0
    if frame < 0 or not frame.is_integer():  # infinity is none either
        raise Fault(f"frame '{value}' is not a number from 0")
    return int(frame)


def read_facts(value: Any) -> tuple[str, ...]:
    """Returns the facts of a list, or of a text: what a JSON or Python list holds, else what stands
    between line ends, semicolons or |, else its sentences, so that a report may stand there.
    Raises Fault."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = tables.read_list(value, "facts")
    if not isinstance(value, list):
        text = cleaned(value)
        value = next((text.split(mark) for mark in "\n;|" if mark in text), SENTENCES.split(text))
    if not all(one is None or is_scalar(one) for one in value):
        raise Fault(f"facts {value!r} are not a list of texts")
    return tuple(text for one in value if (text := given_text(one)))


def read_type(row: Row) -> AnswerType | None:
    """Returns the answer's type where a column names one that cannot be told from the answer; the
    others are told from it. A row with boxes and no answer asks for them."""
    given = (row.optional("answer_type") or "").lower()
    if given in TOLD_TYPES:
        return TOLD_TYPES[given]
    asks = cleaned(row.values.get("boxes")) and not given_text(row.values.get("answer"))
    return "boxes" if asks else None


def read_options(value: Any, answer: str) -> tuple[str, ...] | None:
    """Returns the options of a list, or of a text as `part_options` does. Raises Fault."""
    if value is None or value != value or value == "" or value == []:
        return None
    if isinstance(value, str):
        value = part_options(value, answer)
    if not isinstance(value, list) or not all(is_scalar(option) for option in value):
        raise Fault(f"options {value!r} are not a list of texts")
    return tuple(cleaned(option) for option in value)


def part_options(text: str, answer: str) -> Any:
    """Returns what a JSON or Python list holds, or the texts between |, line ends, semicolons,
    letters such as A) and B), or commas, of which the first that is there counts. Raises Fault,
    also where commas may be part of an option: unless the answer is one of the texts, or these
    begin with A), B) and so on."""
    if text.lstrip().startswith("["):
        return tables.read_list(text, "options")
    if "|" in text:
        return text.split("|")
    for separator in ("\n", ";"):
        if separator in text:
            return [part for part in text.split(separator) if part.strip()]
    lettered = BEFORE_LETTER.split(text.strip())
    if "," not in text and without_letters(lettered):
        return lettered
    parts = [part.strip() for part in text.split(",")]
    told = {folded(part) for part in parts}
    if len(parts) < 2:
        raise Fault(f"options '{text}' are one text; give a list, or texts separated by |")
    doubtful = len(told) < len(parts) or any(map(LAST_OF_A_SENTENCE.match, parts))
    if doubtful or not (without_letters(parts) or folded(answer) in told):
        reason = f"may be parted at commas or not: answer '{answer}' does not tell"
        raise Fault(f"options '{text}' {reason}; separate them by |")
    return parts


def without_letters(options: Sequence[str]) -> tuple[str, ...] | None:
    """Returns the options without A), B) and so on before them; None unless all have their letter:
    `A. baumannii` alone is a name."""
    found = [match for option in options if (match := LETTERED.fullmatch(option.strip()))]
    letters = "".join(match[1].upper() for match in found)
    if len(options) < 2 or len(found) < len(options) or not ascii_uppercase.startswith(letters):
        return None
    return tuple(match[2] for match in found)


def answer_among(
    answer: str, options: tuple[str, ...] | None
) -> tuple[str, tuple[str, ...] | None, tuple[str, ...]]:
    """Returns (answer, options, notes): both without letters before them, and the answer as its
    option is written. An answer that fits no option, or several, stays: the checks find that."""
    if not options:
        return answer, options, ()
    notes: tuple[str, ...] = ()
    plain = without_letters(options)
    if plain:
        options = plain
        notes = ("questions had letters before their options, which were taken away",)
    named, note = as_option(answer, options)
    return named, options, notes + note


def as_option(answer: str, options: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """Returns the option that an answer names, and what was put right in it."""
    alike = [option for option in options if folded(option) == folded(answer)]
    if answer in options or len(alike) > 1:
        return answer, ()
    if alike:
        return alike[0], ("answers differed from their option in case or blanks",)
    letters = dict(zip(ascii_uppercase, options, strict=False))
    if answer.upper() in letters:
        return letters[answer.upper()], ("answers were an option's letter and are now its text",)
    lettered = LETTERED.fullmatch(answer)
    option = letters.get(lettered[1].upper()) if lettered else None
    if lettered and option and folded(option) == folded(lettered[2]):  # else they disagree
        return option, ("answers had their option's letter before them, which was taken away",)
    return answer, ()


def folded(text: str) -> str:
    return " ".join(text.casefold().split())
