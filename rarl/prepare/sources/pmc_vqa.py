"""PMC-VQA (Zhang et al. 2023): CSV files of multiple-choice questions with their archive of
figures, in two versions.

Version 1 is train.csv and test.csv with images.zip; the answer's text is in Answer, its letter in
Answer_label. Version 2 is train_2.csv and test_2.csv with images_2.zip (figures cut into their
parts); Answer is the letter.
"""

from __future__ import annotations

from collections.abc import Iterator

from rarl.errors import UserError
from rarl.prepare.sources.files import Files
from rarl.prepare.sources.record import (
    Choices,
    Fault,
    Item,
    Record,
    Row,
    each,
    lettered,
    optional_text,
    pick,
    text,
)
from rarl.prepare.sources.tables import read_table

NAMES = {
    1: {"train.csv": "train", "test.csv": "test"},
    2: {"train_2.csv": "train", "test_2.csv": "test"},
}
OPTIONS = {letter: f"Choice {letter}" for letter in "ABCD"}
KEYS = ("Figure_path", "Question", "Answer", *OPTIONS.values())


def read_pmc_vqa(files: Files, choices: Choices) -> Iterator[Item]:
    """A subset that is published beside them (test_clean.csv) is read only where SRC names it."""
    if files.chosen is not None:
        version = choices.version or (2 if "_2" in files.chosen else 1)
        split = "train" if files.chosen.startswith("train") else "test"
        found = {version: {files.chosen: split}}
    else:
        found = {v: {n: s for n, s in names.items() if files.find(n)} for v, names in NAMES.items()}
        found = {v: names for v, names in found.items() if names and choices.version in (v, None)}
    if not found:
        known = ", ".join(name for names in NAMES.values() for name in names)
        raise UserError(f"{files.named}: holds none of {known} of PMC-VQA")
    if len(found) > 1:
        raise UserError(
            f"{files.named}: holds both versions of PMC-VQA; choose with --version 1 or --version 2"
        )
    (version, names), *_ = found.items()
    for pattern, split in names.items():
        for name in files.find(pattern):
            yield from each(
                read_table(files, name, KEYS),
                lambda row, s=split: pmc_record(row, files, version, s),  # type: ignore[misc]
            )


def pmc_record(row: Row, files: Files, version: int, split: str) -> Record:
    name, options = text(row.values, "Figure_path"), lettered(row.values, OPTIONS)
    given, label = text(row.values, "Answer"), optional_text(row.values, "Answer_label")
    answer = (
        pick(options, label or given)
        if label or given in OPTIONS
        else given.removeprefix("A:").strip()
    )
    if label and given not in (answer, label):
        raise Fault(f"Answer '{given}' is not the option of Answer_label {label}, '{answer}'")
    return Record(
        where=row.where,
        id=f"pmc-vqa-{version}-{split}-{optional_text(row.values, 'index') or row.number}",
        image=files.image(name),
        image_name=name,
        question=text(row.values, "Question"),
        answer=answer,
        answer_type="choice",
        options=tuple(options.values()),
        split=optional_text(row.values, "split") or split,
    )
