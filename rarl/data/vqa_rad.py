"""VQA-RAD (Lau et al. 2018), from the authors' JSON with an image folder, or from the hub's Parquet files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rarl.data.parquet import open_parquet
from rarl.errors import UserError
from rarl.schema import AnswerType, Example

ORGANS = {"HEAD": "head", "CHEST": "chest", "ABD": "abdomen"}


@dataclass
class Conversion:
    """What was read and what was made of it."""

    examples: list[Example] = field(default_factory=list)
    records: int = 0
    mended_answer_types: int = 0  # "CLOSED " with a trailing blank
    phrases: bool = False  # the source tells phrase types apart


def read_vqa_rad(src: Path, phrases: tuple[str, ...]) -> Conversion:
    """Reads SRC in whichever of the two forms it holds. Raises UserError, naming file and record."""
    jsons, parquets = sorted(src.rglob("*.json")), sorted(src.rglob("*.parquet"))
    if parquets:
        return read_hub(parquets)
    if not jsons:
        raise UserError(f"{src}: holds neither a JSON file with an image folder nor Parquet files of VQA-RAD")
    images = {path.name: path for path in src.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png")}
    conversion = Conversion(phrases=True)
    for path in jsons:
        for index, record in enumerate(read_records(path)):
            add_record(conversion, record, images, phrases, where=f"{path}: record {index}")
    return conversion


def read_records(path: Path) -> list[dict[str, Any]]:
    try:
        records = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise UserError(f"{path}: expected a list of records")
    return records


def add_record(
    conversion: Conversion, record: dict[str, Any], images: dict[str, Path], phrases: tuple[str, ...], where: str
) -> None:
    """Phrase types of test records are called test_freeform and test_para."""
    missing = [key for key in ("image_name", "question", "answer", "answer_type", "phrase_type") if key not in record]
    if missing:
        raise UserError(f"{where}: key '{missing[0]}' is missing")
    conversion.records += 1
    phrase = str(record["phrase_type"]).strip()
    if phrase.removeprefix("test_") not in phrases:
        return
    name = str(record["image_name"]).strip()
    if name not in images:
        raise UserError(f"{where}: image '{name}' is nowhere below the source folder")
    kind = str(record["answer_type"])
    conversion.mended_answer_types += kind != kind.strip()
    answer_type = answer_type_of(kind.strip(), where)
    conversion.examples.append(
        Example(
            id=f"vqa-rad-{record.get('qid', conversion.records)}",
            image=images[name].read_bytes(),
            image_id=Path(name).stem,
            question=str(record["question"]).strip(),
            answer=str(record["answer"]).strip(),
            answer_type=answer_type,
            organ=ORGANS.get(str(record.get("image_organ", "")).strip()),
            dataset="vqa-rad",
            split="test" if phrase.startswith("test") else "train",
        )
    )


def answer_type_of(kind: str, where: str) -> AnswerType:
    if kind == "CLOSED":
        return "closed"
    if kind == "OPEN":
        return "open"
    raise UserError(f"{where}: answer_type '{kind}' is neither CLOSED nor OPEN")


def read_hub(paths: list[Path]) -> Conversion:
    """Files named train-… and test-…, with the columns image {bytes, path}, question and answer."""
    conversion = Conversion()
    for path in paths:
        split = path.name.split("-")[0].removesuffix(".parquet")
        for row in hub_rows(path):
            image = row["image"]["bytes"]
            answer = str(row["answer"]).strip()
            conversion.examples.append(
                Example(
                    id=f"vqa-rad-{split}-{conversion.records}",
                    image=image,
                    image_id=hashlib.sha256(image).hexdigest()[:16],
                    question=str(row["question"]).strip(),
                    answer=answer,
                    answer_type="closed" if answer.lower() in ("yes", "no") else "open",
                    dataset="vqa-rad",
                    split=split,
                )
            )
            conversion.records += 1
    return conversion


def hub_rows(path: Path) -> Iterator[dict[str, Any]]:
    file = open_parquet(path, required=("image", "question", "answer"))
    for batch in file.iter_batches(batch_size=64):
        yield from batch.to_pylist()
