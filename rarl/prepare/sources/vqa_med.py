"""VQA-Med 2019 (Ben Abacha et al., ImageCLEF): text files with a question in each line, its fields
separated by bars, beside folders or archives of images.

    ImageClef-2019-VQA-Med-Training/    All_QA_Pairs_train.txt, QAPairsByCategory/, Train_images/
    ImageClef-2019-VQA-Med-Validation/  All_QA_Pairs_val.txt, QAPairsByCategory/, Val_images/
    VQAMed2019Test/                     VQAMed2019_Test_Questions_w_Ref_Answers.txt, images
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import PurePosixPath

from rarl.errors import UserError
from rarl.prepare.files import Fault, Files, ImageFile
from rarl.prepare.rows import Choices, Item, Record, Row, each

PAIRS, BY_CATEGORY = "All_QA_Pairs_*.txt", "C[1-4]_*.txt"
TEST = "VQAMed2019_Test_Questions_w_Ref_Answers.txt"
FIELDS = ("image", "question", "answer")
TEST_FIELDS = ("image", "category", "question", "answer")
IMAGE_FOLDERS = {
    "train": ("Train_images",),
    "validation": ("Val_images",),
    "test": ("VQAMed2019_Test_Images", "Test_images"),
}
OPTIONAL_PART = re.compile(r"\s*\([^()]*\)\s*")
Asked = tuple[str, str]  # image and question


def read_vqa_med(files: Files, _: Choices) -> Iterator[Item]:
    """Yields the questions of all splits that are there. Those of training and validation have
    their category from the files by category, where these are there."""
    require_unpacked(files)
    wanted = f"none of All_QA_Pairs_train.txt, All_QA_Pairs_val.txt and {TEST} of VQA-Med 2019"
    names = files.require(wanted, PAIRS, TEST)
    categories: dict[Asked, str] = {}
    for name in files.find(BY_CATEGORY):
        kind = PurePosixPath(name).name.split("_")[1].lower()
        for row in barred_rows(files, name, FIELDS):
            if row.fault is None:
                categories[asked(row)] = kind
    for name in names:
        is_test = PurePosixPath(name).name == TEST
        rows = barred_rows(files, name, TEST_FIELDS if is_test else FIELDS)
        split = files.split_of(name)
        make = partial(vqa_med_record, files=files, split=split, categories=categories)
        yield from each(rows, make)


def require_unpacked(files: Files) -> None:
    """Raises UserError for an archive in an archive, as the test images are published, which is not
    looked into: the questions about its images would all be missing."""
    for entry in files.entries.values():
        if entry.member is not None and entry.member.lower().endswith(".zip"):
            raise UserError(f"{entry}: an archive in an archive; unpack {entry.path.name} first")


def barred_rows(files: Files, name: str, fields: tuple[str, ...]) -> Iterator[Row]:
    """Yields the lines of a file without a header."""
    where, (text, mended) = files.entries[name], files.read_table_text(name)
    lines = [(n, line) for n, line in enumerate(text.splitlines(), start=1) if line.strip()]
    for number, (line, content) in enumerate(lines):
        cells = [" ".join(cell.split()) for cell in content.split("|")]
        fault = None
        if len(cells) != len(fields):
            fault = f"has {len(cells)} fields between bars, not {len(fields)}: {', '.join(fields)}"
        values = dict(zip(fields, cells, strict=False))
        yield Row(f"{where}: line {line}", number, values, fault, line, mended)


def asked(row: Row) -> Asked:
    return row.values["image"], row.values["question"].lower()


def vqa_med_record(row: Row, files: Files, split: str, categories: dict[Asked, str]) -> Record:
    name = row.text("image")
    answers = [row.text("answer")]
    if split == "test":
        answers = accepted(answers[0])
    category = row.optional("category") or categories.get(asked(row))
    return Record(
        where=row.where,
        id=f"vqa-med-2019-{split}-{row.number}",
        images=(image_of(files, split, name),),
        image_id=name,
        question=row.text("question"),
        answer=answers[0],
        also_right=tuple(answers[1:]),
        extra={"category": category} if category else {},
        split=split,
        mended=("answers may be given in more than one way",) if len(answers) > 1 else (),
    )


def accepted(answer: str) -> list[str]:
    """Returns the answers that count, by the test set's own rule: those between "#", each with and
    without the part in brackets, which is optional."""
    found = []
    for one in (part.strip() for part in answer.split("#")):
        shorter = " ".join(OPTIONAL_PART.sub(" ", one).split())
        found += [one, *([shorter] if shorter else [])]
    return list(dict.fromkeys(one for one in found if one))


def image_of(files: Files, split: str, name: str) -> ImageFile:
    """Returns the image of a question, whose name comes without its ending, from the folder of its
    split where there is one. Raises Fault."""
    for folder in IMAGE_FOLDERS.get(split, ()):
        try:
            return files.image(f"{folder}/{name}.jpg")
        except Fault:
            pass
    return files.image(f"{name}.jpg")
