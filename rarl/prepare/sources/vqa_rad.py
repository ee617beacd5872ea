"""VQA-RAD (Lau et al. 2018), from the authors' JSON with an image folder, or from the hub's Parquet
files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from rarl.errors import UserError
from rarl.prepare.sources.files import Files
from rarl.prepare.sources.hub_parquet import read_hub_parquet
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

ORGANS = {"HEAD": "head", "CHEST": "chest", "ABD": "abdomen"}
ANSWER_TYPES: dict[str, AnswerType] = {"CLOSED": "closed", "OPEN": "open"}
PHRASES = ("freeform", "para", "frame")
KEYS = ("image_name", "question", "answer", "answer_type", "phrase_type")


def read_vqa_rad(files: Files, choices: Choices) -> Iterator[Item]:
    """Reads whichever of the two forms is there."""
    unknown = [phrase for phrase in choices.phrases if phrase not in PHRASES]
    if unknown:
        raise UserError(f"--phrases '{unknown[0]}': VQA-RAD's JSON has {', '.join(PHRASES)}")
    parquets, jsons = files.find("*.parquet"), files.find("*.json")
    if parquets:
        if set(choices.phrases) != set(Choices.phrases):
            raise UserError(
                f"{files.named}: the hub's Parquet does not name phrase types; leave --phrases out"
            )
        yield from read_hub_parquet(files, parquets, "vqa-rad")
    elif jsons:
        for name in jsons:
            yield from each(
                read_table(files, name, KEYS), lambda row: authors_record(row, files, choices)
            )
    else:
        raise UserError(
            f"{files.named}: holds neither a JSON file with an image folder nor Parquet files of VQA-RAD"
        )


def authors_record(row: Row, files: Files, choices: Choices) -> Record:
    """Phrase types of test records are called test_freeform and test_para."""
    phrase = text(row.values, "phrase_type")
    if phrase.removeprefix("test_") not in choices.phrases:
        raise Omitted(f"of phrase type {' or '.join(choices.phrases)}")
    name, kind = text(row.values, "image_name"), str(row.values["answer_type"])
    if kind.strip() not in ANSWER_TYPES:
        raise Fault(f"answer_type '{kind}' is neither CLOSED nor OPEN")
    return Record(
        where=row.where,
        id=f"vqa-rad-{row.values.get('qid', row.number)}",
        image=files.image(name),
        image_name=name,
        image_id=PurePosixPath(name).with_suffix("").as_posix(),
        question=text(row.values, "question"),
        answer=text(row.values, "answer"),
        answer_type=ANSWER_TYPES[kind.strip()],
        organ=ORGANS.get(optional_text(row.values, "image_organ") or ""),
        split="test" if phrase.startswith("test") else "train",
        mended=("answer types had a stray blank, which was removed",)
        if kind != kind.strip()
        else (),
    )
