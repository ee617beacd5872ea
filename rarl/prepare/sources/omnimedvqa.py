"""OmniMedVQA (Hu et al. 2024): JSON files of multiple-choice questions with an image folder, or the
archive of both.

It is published for evaluation: every row is in the split `test`.
"""

from __future__ import annotations

from collections.abc import Iterator

from rarl.errors import UserError
from rarl.prepare.sources.files import Files
from rarl.prepare.sources.record import (
    Choices,
    Item,
    Record,
    Row,
    each,
    lettered,
    optional_text,
    text,
)
from rarl.prepare.sources.tables import read_table

OPTIONS = {letter: f"option_{letter}" for letter in "ABCD"}
KEYS = ("image_path", "question", "gt_answer")


def read_omnimedvqa(files: Files, choices: Choices) -> Iterator[Item]:
    names = files.find("*.json")
    if not names:
        raise UserError(f"{files.named}: holds no JSON file of OmniMedVQA, nor an archive with one")
    for name in names:
        yield from each(read_table(files, name, KEYS), lambda row: omnimedvqa_record(row, files))


def omnimedvqa_record(row: Row, files: Files) -> Record:
    """Yes/no questions come with two options, others with up to four."""
    name = text(row.values, "image_path")
    return Record(
        where=row.where,
        id=f"omnimedvqa-{optional_text(row.values, 'question_id') or row.where.rsplit('/', 1)[-1]}",
        image=files.image(name),
        image_name=name,
        question=text(row.values, "question"),
        answer=text(row.values, "gt_answer"),
        answer_type="choice",
        options=tuple(lettered(row.values, OPTIONS).values()),
        modality=optional_text(row.values, "modality_type"),
        split="test",
    )
