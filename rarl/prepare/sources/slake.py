"""SLAKE (Liu et al. 2021): train.json, validation.json and test.json beside imgs.zip, in English
and Chinese."""

from __future__ import annotations

from collections.abc import Iterator

from rarl.errors import UserError
from rarl.prepare.sources.files import Files
from rarl.prepare.sources.record import (
    Choices,
    Fault,
    Item,
    Omitted,
    Record,
    Row,
    each,
    optional_text,
    text,
)
from rarl.prepare.sources.tables import read_table
from rarl.schema import AnswerType

ANSWER_TYPES: dict[str, AnswerType] = {"CLOSED": "closed", "OPEN": "open"}
LANGUAGES = ("en", "zh", "all")
KEYS = ("img_name", "question", "answer", "q_lang", "answer_type")


def read_slake(files: Files, choices: Choices) -> Iterator[Item]:
    if choices.language not in LANGUAGES:
        raise UserError(f"--language {choices.language}: SLAKE has {', '.join(LANGUAGES)}")
    names = files.find("train.json", "validation.json", "test.json")
    if not names:
        raise UserError(
            f"{files.named}: holds none of train.json, validation.json and test.json of SLAKE"
        )
    for name in names:
        split = name.rsplit("/", 1)[-1].removesuffix(".json")
        yield from each(
            read_table(files, name, KEYS),
            lambda row, s=split: slake_record(row, files, choices, s),  # type: ignore[misc]
        )


def slake_record(row: Row, files: Files, choices: Choices, split: str) -> Record:
    language = text(row.values, "q_lang")
    if choices.language not in (language, "all"):
        raise Omitted(f"in language {choices.language}")
    kind = str(row.values["answer_type"])
    if kind.strip() not in ANSWER_TYPES:
        raise Fault(f"answer_type '{kind}' is neither CLOSED nor OPEN")
    name = text(row.values, "img_name")
    organ = optional_text(row.values, "location")
    return Record(
        where=row.where,
        id=f"slake-{split}-{row.values.get('qid', row.number)}",
        image=files.image(name),
        image_name=name,
        image_id=name.split("/")[0],
        question=text(row.values, "question"),
        answer=text(row.values, "answer"),
        answer_type=ANSWER_TYPES[kind.strip()],
        modality=optional_text(row.values, "modality"),
        organ=organ.lower().replace("_", " ") if organ else None,
        split=split,
        mended=("answer types had a stray blank, which was removed",)
        if kind != kind.strip()
        else (),
    )
