"""SilVar-Med (Pham et al. 2025, arXiv 2504.10642): questions about abnormal images of SLAKE, with
explanations that specialists checked. docs/data.md says what of its layout is known, and how."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any

from rarl.data.parquet import ParquetRows
from rarl.prepare.files import Fault, Files, ImageFile
from rarl.prepare.fingerprint import NEAR, ImagePrint, SeenImages, bits_apart, text_key
from rarl.prepare.rows import Choices, Item, Record, Row, each
from rarl.prepare.sources.published import embedded_image
from rarl.prepare.tables import read_table
from rarl.schema import AnswerType

KEYS = ("question", "answer")
IMAGE_KEYS = ("img_name", "image")
EXPLANATIONS = ("explanation", "rationale", "reasoning")  # where they stand apart from the answer
YES_OR_NO = re.compile(r"(yes|no)\b[\s,.:;–-]*", re.IGNORECASE)
SENTENCE_END = re.compile(r"(?<=[.!?])\s")
GUESSED = (
    "answers are the first sentence of their explanation, since nothing gives a short one: "
    "--answers takes those of a prepared SLAKE"
)


@dataclass(frozen=True)
class Short:
    """A short answer to the same question about the same image."""

    answer: str
    answer_type: AnswerType | None = None
    modality: str | None = None
    organ: str | None = None


@dataclass
class ShortAnswers:
    """The short answers of a prepared data set, a folder or file, by question; its images are
    looked at when a question is asked."""

    path: Path
    seen: SeenImages = field(default_factory=SeenImages)
    looks: dict[str, ImagePrint] = field(default_factory=dict)  # so far, by image id

    @cached_property
    def rows(self) -> ParquetRows:
        """The data set. Raises UserError."""
        return ParquetRows(self.path)

    @cached_property
    def by_question(self) -> dict[str, list[tuple[int, str]]]:
        """The rows that ask each question, with the ids of their images."""
        found: dict[str, list[tuple[int, str]]] = {}
        columns = (self.rows.column(name) for name in ("question", "image_id"))
        for row, (question, image) in enumerate(zip(*columns, strict=True)):
            found.setdefault(text_key(question), []).append((row, image))
        return found

    def find(self, question: str, image: ImageFile) -> Short | None:
        """Returns what answers the same question about the same image, or nearly the same. Raises
        Fault for an image that cannot be decoded."""
        asked = self.by_question.get(text_key(question), [])
        print_ = self.seen.look_at(image.read()) if asked else None
        for row, id_ in asked:
            if id_ not in self.looks:
                self.looks[id_] = self.seen.look_at(self.rows.read([row])[0].images[0])
            look = self.looks[id_].look
            if print_ is not None and bits_apart(look[None], print_.look[None])[0, 0] <= NEAR:
                (known,) = self.rows.read([row])
                return Short(known.answer, known.answer_type, known.modality, known.organ)
        return None


def read_silvar_med(files: Files, choices: Choices) -> Iterator[Item]:
    """Yields a record for each question; one row may hold a list of questions and one of
    answers."""
    known = ShortAnswers(Path(choices.answers)) if choices.answers else None
    wanted = "neither a JSON file with an image folder nor Parquet files of SilVar-Med"
    names = files.find("*.parquet") or files.require(wanted, "*.json", "*.jsonl")
    for name in names:
        split = files.split_of(name)
        make = partial(silvar_record, files=files, split=split, known=known)
        yield from each(one_by_one(read_table(files, name, KEYS)), make)


def one_by_one(rows: Iterable[Row]) -> Iterator[Row]:
    """Yields a row for each question of a row that holds lists of them."""
    number = 0
    for row in rows:
        listed = [row.values.get(key) for key in KEYS]
        texts: list[tuple[Any, ...]] = [tuple(listed)]
        fault = row.fault
        if all(isinstance(one, list) for one in listed):
            lengths = {len(one) for one in listed if isinstance(one, list)}
            if len(lengths) > 1:
                fault = fault or "has lists of questions and answers of different lengths"
            texts = list(zip(*(one for one in listed if isinstance(one, list)), strict=False))
        for pair in texts or [("", "")]:
            values = row.values | dict(zip(KEYS, pair, strict=True))
            yield Row(row.where, number, values, fault, row.line, row.mended)
            number += 1


def silvar_record(row: Row, files: Files, split: str, known: ShortAnswers | None) -> Record:
    image, question = image_of(row, files), row.text("question")
    apart = next((text for key in EXPLANATIONS if (text := row.optional(key))), None)
    explanation = apart or row.text("answer")
    short = Short(row.text("answer")) if apart else None
    mended: tuple[str, ...] = ()
    if short is None and known is not None:
        short = known.find(question, image)
    if short is None and (said := YES_OR_NO.match(explanation)):
        short = Short(said[1].capitalize())
    if short is None:
        short, mended = Short(SENTENCE_END.split(explanation)[0]), (GUESSED,)
    return Record(
        where=row.where,
        id=f"silvar-med-{split or 'all'}-{row.number}",
        images=(image,),
        question=question,
        answer=short.answer,
        answer_type=short.answer_type,
        texts={
            "rationale": without_answer(explanation),
            "modality": short.modality,
            "organ": short.organ,
        },
        split=split,
        mended=mended,
    )


def without_answer(explanation: str) -> str:
    """Returns an explanation without the yes or no that it begins with, which would tell the answer
    before the reasons."""
    rest = YES_OR_NO.sub("", explanation, count=1) if YES_OR_NO.match(explanation) else explanation
    return rest[:1].upper() + rest[1:] if rest else explanation


def image_of(row: Row, files: Files) -> ImageFile:
    """Returns the image of a row: in the row itself, of the name that it gives, or, as the authors'
    own program looks for it, of the part of that name before the first "_". Raises Fault."""
    key = next((one for one in IMAGE_KEYS if row.values.get(one)), "img_name")
    if not isinstance(row.values.get(key), str):
        return embedded_image(row.values.get(key))
    name = row.text(key)
    try:
        return files.image(name)
    except Fault:
        first = PurePosixPath(name).name.split("_")[0]
        if first == PurePosixPath(name).name:
            raise
        return files.image(f"{first}.jpg")
