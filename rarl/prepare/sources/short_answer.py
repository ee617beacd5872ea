"""VQA-RAD, PathVQA and SLAKE: questions with yes or no, or with a short text, as the answer."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from rarl.errors import UserError
from rarl.prepare.files import Files
from rarl.prepare.record import SPLITS, Choices, Fault, Item, Omitted, Record, Row, each
from rarl.prepare.tables import read_table
from rarl.schema import AnswerType

ORGANS = {"HEAD": "head", "CHEST": "chest", "ABD": "abdomen"}
ANSWER_TYPES: dict[str, AnswerType] = {"CLOSED": "closed", "OPEN": "open"}
PHRASES = ("freeform", "para", "frame")
VQA_RAD_KEYS = ("image_name", "question", "answer", "answer_type", "phrase_type")
LANGUAGES = ("en", "zh", "all")
SLAKE_FILES = {"train": "train", "validation": "validation", "validate": "validation"}
SLAKE_FILES |= {"test": "test"}
SLAKE_KEYS = ("img_name", "question", "answer", "q_lang", "answer_type")


def read_vqa_rad(files: Files, choices: Choices) -> Iterator[Item]:
    """VQA-RAD (Lau et al. 2018), from JSON with an image folder, or from the hub's Parquet files.

    In the authors' JSON the phrase types of test records are test_freeform and test_para. Most
    groups pass it on as trainset.json and testset.json with plain phrase types: there the name of
    the file or folder tells the split. If nothing tells, the split of the record stays empty.
    """
    unknown = [phrase for phrase in choices.phrases if phrase not in PHRASES]
    if unknown:
        raise UserError(f"--phrases '{unknown[0]}': VQA-RAD's JSON has {', '.join(PHRASES)}")
    parquets, jsons = files.find("*.parquet"), files.find("*.json")
    if parquets and set(choices.phrases) != set(Choices.phrases):
        ignored = "the hub's Parquet does not name phrase types; leave --phrases out"
        raise UserError(f"{files.named}: {ignored}")
    if parquets:
        yield from read_hub_parquet(files, parquets, "vqa-rad")
        return
    if not jsons:
        wanted = "a JSON file with an image folder nor Parquet files of VQA-RAD"
        raise UserError(f"{files.named}: holds neither {wanted}")
    for name in jsons:
        rows = list(read_table(files, name, VQA_RAD_KEYS))
        told = any(str(row.values.get("phrase_type")).startswith("test") for row in rows)
        split = files.split_of(name) or ("train" if told else "")
        yield from each(rows, partial(vqa_rad_record, files=files, choices=choices, split=split))


def vqa_rad_record(row: Row, files: Files, choices: Choices, split: str) -> Record:
    phrase = row.text("phrase_type")
    if phrase.removeprefix("test_") not in choices.phrases:
        raise Omitted(f"of phrase type {' or '.join(choices.phrases)}")
    name = row.text("image_name")
    answer_type, mended = published_answer_type(row)
    return Record(
        where=row.where,
        id=f"vqa-rad-{row.values.get('qid', f'{split}-{row.number}')}",
        image=files.image(name),
        image_name=name,
        image_id=PurePosixPath(name).with_suffix("").as_posix(),
        question=row.text("question"),
        answer=row.text("answer"),
        answer_type=answer_type,
        texts={"organ": ORGANS.get(row.optional("image_organ") or "")},
        split="test" if phrase.startswith("test") else split,
        mended=mended,
    )


def published_answer_type(row: Row) -> tuple[AnswerType, tuple[str, ...]]:
    """Returns the type that VQA-RAD and SLAKE name, and what was put right in it. Raises Fault."""
    kind = str(row.values["answer_type"])
    if kind.strip() not in ANSWER_TYPES:
        raise Fault(f"answer_type '{kind}' is neither CLOSED nor OPEN")
    stray = ("answer types had a stray blank, which was removed",)
    return ANSWER_TYPES[kind.strip()], stray if kind != kind.strip() else ()


def read_path_vqa(files: Files, choices: Choices) -> Iterator[Item]:
    """PathVQA (He et al. 2020), from the hub's Parquet files."""
    names = files.find("*.parquet")
    if not names:
        raise UserError(f"{files.named}: holds no Parquet files of PathVQA")
    yield from read_hub_parquet(files, names, "path-vqa")


def read_hub_parquet(files: Files, names: list[str], dataset: str) -> Iterator[Item]:
    """Reads Parquet files as the hub writes them for image data: image {bytes, path}, question and
    answer; one or more per split, named train-00000-of-00002-….parquet, or in a folder of the
    split's name. Yes and no are closed, everything else is open."""
    counts: dict[str, int] = {}

    def record(row: Row, split: str) -> Record:
        number = counts[split] = counts.get(split, -1) + 1
        encoded, name = embedded_image(row.values["image"])
        return Record(
            where=row.where,
            id=f"{dataset}-{split}-{number}",
            image=partial(bytes, encoded),
            image_name=name,
            question=row.text("question"),
            answer=row.text("answer"),
            split=split,
        )

    for name in names:
        split = files.split_of(name)
        if not split:
            wanted = f"its name should begin with {', '.join(SPLITS)}, as on the hub"
            raise UserError(f"{files.entries[name]}: {wanted}")
        rows = read_table(files, name, ("image", "question", "answer"))
        yield from each(rows, partial(record, split=split))


def embedded_image(value: Any) -> tuple[bytes, str]:
    """Returns the bytes of an image column, and the file name that came with them. Raises Fault."""
    name = None
    if isinstance(value, dict):
        value, name = value.get("bytes"), value.get("path")
    if not isinstance(value, bytes) or not value:
        raise Fault("image holds no bytes")
    return value, str(name or "")


def read_slake(files: Files, choices: Choices) -> Iterator[Item]:
    """SLAKE (Liu et al. 2021): train.json, validation.json (on the authors' page validate.json) and
    test.json beside imgs.zip, in English and Chinese."""
    if choices.language not in LANGUAGES:
        raise UserError(f"--language {choices.language}: SLAKE has {', '.join(LANGUAGES)}")
    names = files.find(*(f"{name}.json" for name in SLAKE_FILES))
    if not names:
        wanted = "train.json, validation.json and test.json of SLAKE"
        raise UserError(f"{files.named}: holds none of {wanted}")
    for name in names:
        split = SLAKE_FILES[PurePosixPath(name).stem]
        make = partial(slake_record, files=files, choices=choices, split=split)
        yield from each(read_table(files, name, SLAKE_KEYS), make)


def slake_record(row: Row, files: Files, choices: Choices, split: str) -> Record:
    if choices.language not in (row.text("q_lang"), "all"):
        raise Omitted(f"in language {choices.language}")
    answer_type, mended = published_answer_type(row)
    name, organ = row.text("img_name"), row.optional("location")
    place = organ.lower().replace("_", " ") if organ else None
    return Record(
        where=row.where,
        id=f"slake-{split}-{row.values.get('qid', row.number)}",
        image=files.image(name),
        image_name=name,
        image_id=name.split("/")[0],
        question=row.text("question"),
        answer=row.text("answer"),
        answer_type=answer_type,
        texts={"modality": row.optional("modality"), "organ": place},
        split=split,
        mended=mended,
    )
