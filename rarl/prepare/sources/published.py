"""The published data sets: VQA-RAD, PathVQA and SLAKE with yes or no or a short text as the answer;
PMC-VQA, OmniMedVQA and MedXpertQA with options."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from rarl.errors import UserError
from rarl.prepare.files import Fault, Files, ImageFile
from rarl.prepare.rows import SPLITS, Choices, Item, Omitted, Record, Row, each
from rarl.prepare.tables import read_table
from rarl.schema import AnswerType, Box

ORGANS = {"HEAD": "head", "CHEST": "chest", "ABD": "abdomen"}
ANSWER_TYPES: dict[str, AnswerType] = {"CLOSED": "closed", "OPEN": "open"}
PHRASES = ("freeform", "para", "frame")
VQA_RAD_KEYS = ("image_name", "question", "answer", "answer_type", "phrase_type")
LANGUAGES = ("en", "zh", "all")
SLAKE_FILES = ("train.json", "validation.json", "validate.json", "test.json")
SLAKE_KEYS = ("img_name", "question", "answer", "q_lang", "answer_type")
PMC_FILES = {1: ("train.csv", "test.csv"), 2: ("train_2.csv", "test_2.csv")}
PMC_OPTIONS = {letter: f"Choice {letter}" for letter in "ABCD"}
PMC_KEYS = ("Figure_path", "Question", "Answer", *PMC_OPTIONS.values())
OMNI_OPTIONS = {letter: f"option_{letter}" for letter in "ABCD"}
OMNI_KEYS = ("image_path", "question", "gt_answer")
EXPERT_FILES = {"dev.jsonl": "validation", "test.jsonl": "test"}
EXPERT_KEYS = ("id", "question", "options", "label", "images")
DETECTIONS = "detection.json"


def read_vqa_rad(files: Files, choices: Choices) -> Iterator[Item]:
    """VQA-RAD (Lau et al. 2018), from JSON with an image folder, or from the hub's Parquet files.
    The authors' phrase types test_freeform and test_para tell the split; most groups pass the JSON
    on as trainset.json and testset.json with plain ones, where the name of file or folder does."""
    unknown = [phrase for phrase in choices.phrases if phrase not in PHRASES]
    if unknown:
        raise UserError(f"--phrases '{unknown[0]}': VQA-RAD's JSON has {', '.join(PHRASES)}")
    parquets = files.find("*.parquet")
    if parquets:
        if set(choices.phrases) != set(Choices.phrases):
            ignored = "the hub's Parquet does not name phrase types; leave --phrases out"
            raise UserError(f"{files.named}: {ignored}")
        yield from read_hub_parquet(files, parquets, "vqa-rad")
        return
    wanted = "neither a JSON file with an image folder nor Parquet files of VQA-RAD"
    for name in files.require(wanted, "*.json"):
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
        images=(files.image(name),),
        image_id=PurePosixPath(name).with_suffix("").as_posix(),
        question=row.text("question"),
        answer=row.text("answer"),
        answer_type=answer_type,
        texts={"organ": ORGANS.get(row.optional("image_organ") or "")},
        extra=further(row, "question_type"),
        split="test" if phrase.startswith("test") else split,
        mended=mended,
    )


def further(row: Row, *names: str) -> dict[str, str | None]:
    """Returns those of the published columns that are there, to be measured by, as they are named
    there."""
    return {name: row.optional(name) for name in names if name in row.values}


def published_answer_type(row: Row) -> tuple[AnswerType, tuple[str, ...]]:
    """Returns the type that VQA-RAD and SLAKE name, and what was put right in it. Raises Fault."""
    kind = str(row.values["answer_type"])
    if kind.strip() not in ANSWER_TYPES:
        raise Fault(f"answer_type '{kind}' is neither CLOSED nor OPEN")
    stray = ("answer types had a stray blank, which was removed",)
    return ANSWER_TYPES[kind.strip()], stray if kind != kind.strip() else ()


def read_path_vqa(files: Files, _: Choices) -> Iterator[Item]:
    """PathVQA (He et al. 2020), from the hub's Parquet files."""
    names = files.require("no Parquet files of PathVQA", "*.parquet")
    yield from read_hub_parquet(files, names, "path-vqa")


def read_hub_parquet(files: Files, names: list[str], dataset: str) -> Iterator[Item]:
    """Reads Parquet files as the hub writes them for image data: image {bytes, path}, question and
    answer; named train-00000-of-00002-….parquet, or in a folder of the split's name."""
    counts: dict[str, int] = {}

    def record(row: Row, split: str) -> Record:
        number = counts[split] = counts.get(split, -1) + 1
        return Record(
            where=row.where,
            id=f"{dataset}-{split}-{number}",
            images=(embedded_image(row.values["image"]),),
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


def embedded_image(value: Any) -> ImageFile:
    """Returns the image of an image column with the file name that came with it. Raises Fault."""
    held = value if isinstance(value, dict) else {"bytes": value}
    if not isinstance(held.get("bytes"), bytes) or not held["bytes"]:
        raise Fault("image holds no bytes")
    return ImageFile(partial(bytes, held["bytes"]), str(held.get("path") or ""))


def read_slake(files: Files, choices: Choices) -> Iterator[Item]:
    """SLAKE (Liu et al. 2021): JSON files beside imgs.zip, in English and Chinese. On the authors'
    page validation.json is validate.json. Beside each picture is a detection.json of what is in it,
    which becomes the boxes of all questions about it."""
    if choices.language not in LANGUAGES:
        raise UserError(f"--language {choices.language}: SLAKE has {', '.join(LANGUAGES)}")
    wanted = "none of train.json, validation.json and test.json of SLAKE"
    for name in files.require(wanted, *SLAKE_FILES):
        make = partial(slake_record, files=files, choices=choices, split=files.split_of(name))
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
        images=(files.image(name),),
        image_id=name.split("/")[0],
        question=row.text("question"),
        answer=row.text("answer"),
        answer_type=answer_type,
        texts={"modality": row.optional("modality"), "organ": place},
        boxes=slake_boxes(files, str(PurePosixPath(name).with_name(DETECTIONS))),
        extra=further(row, "content_type"),
        split=split,
        mended=mended,
    )


def slake_boxes(files: Files, name: str) -> tuple[Box, ...] | None:
    """Returns the boxes of a picture's detection.json, a list of {label: [x, y, width, height]};
    None where there is no such file. Raises Fault."""
    found = [one for one in files.by_name.get(DETECTIONS, []) if f"/{one}".endswith(f"/{name}")]
    if not found:
        return None
    try:
        pairs = [pair for one in json.loads(files.read(found[0])) for pair in one.items()]
        boxes = []
        for label, held in pairs:
            x, y, width, height = map(float, held)
            boxes.append(Box(label.replace("_", " ").strip(), x, y, x + width, y + height))
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        wanted = "a list of {label: [x, y, width, height]}"
        raise Fault(f"{found[0]} is not {wanted}; fetch imgs.zip again") from None
    return tuple(boxes)


def lettered(row: Row, columns: dict[str, str]) -> dict[str, str]:
    """Returns the options by letter, without the "A:" that some texts begin with, from the columns
    that `columns` names by letter. Options that are absent are left out."""
    given = {letter: row.optional(column) for letter, column in columns.items()}
    return {letter: o.removeprefix(f"{letter}:").strip() for letter, o in given.items() if o}


def pick(options: dict[str, str], letter: str) -> str:
    """Returns the option of a letter. Raises Fault if there is none."""
    if letter not in options:
        raise Fault(f"answer '{letter}' is not one of the letters {', '.join(options)}")
    return options[letter]


def pmc_files(choices: Choices) -> tuple[str, ...]:
    """Returns the names of the files of the version that is chosen; without one no figures, since
    `read_pmc_vqa` asks for it first."""
    tables = [name for v in PMC_FILES if choices.version in (v, None) for name in PMC_FILES[v]]
    figures = {1: ("images.zip",), 2: ("images_2.zip",)}.get(choices.version or 0, ())
    return (*tables, *figures)


def read_pmc_vqa(files: Files, choices: Choices) -> Iterator[Item]:
    """PMC-VQA (Zhang et al. 2023): CSV files with their archive of figures, in two versions. In
    version 1 the answer's text is in Answer, its letter in Answer_label; in version 2 (figures
    cut into parts) Answer is the letter. test_clean.csv is read only if SRC names it."""
    if files.chosen is not None:
        found = {choices.version or (2 if "_2" in files.chosen else 1): [files.chosen]}
    else:
        versions = [v for v in PMC_FILES if choices.version in (v, None)]
        # Training rows come first.
        found = {v: [n for one in PMC_FILES[v] for n in files.find(one)] for v in versions}
        found = {version: names for version, names in found.items() if names}
    if not found:
        known = ", ".join(name for names in PMC_FILES.values() for name in names)
        raise UserError(f"{files.named}: holds none of {known} of PMC-VQA")
    if len(found) > 1:
        both = "holds both versions of PMC-VQA; choose with --version 1 or --version 2"
        raise UserError(f"{files.named}: {both}")
    ((version, names),) = found.items()
    for name in names:
        make = partial(pmc_record, files=files, version=version, split=files.split_of(name))
        yield from each(read_table(files, name, PMC_KEYS), make)


def pmc_record(row: Row, files: Files, version: int, split: str) -> Record:
    options, label = lettered(row, PMC_OPTIONS), row.optional("Answer_label")
    given = row.text("Answer")
    answer = given.removeprefix("A:").strip()
    if label or given in PMC_OPTIONS:
        answer = pick(options, label or given)
    if label and given not in (answer, label):
        raise Fault(f"Answer '{given}' is not the option of Answer_label {label}, '{answer}'")
    return Record(
        where=row.where,
        id=f"pmc-vqa-{version}-{split}-{row.optional('index') or row.number}",
        images=(files.image(row.text("Figure_path")),),
        question=row.text("Question"),
        answer=answer,
        answer_type="choice",
        options=tuple(options.values()),
        split=row.optional("split") or split,
    )


def read_omnimedvqa(files: Files, _: Choices) -> Iterator[Item]:
    """OmniMedVQA (Hu et al. 2024): JSON files with an image folder, or the archive of both. It is
    published for evaluation: every row is in the split `test`."""
    wanted = "no JSON file of OmniMedVQA, nor an archive with one"
    for name in files.require(wanted, "*.json"):
        yield from each(read_table(files, name, OMNI_KEYS), partial(omnimedvqa_record, files=files))


def omnimedvqa_record(row: Row, files: Files) -> Record:
    return Record(
        where=row.where,
        id=f"omnimedvqa-{row.optional('question_id') or row.where.rsplit('/', 1)[-1]}",
        images=(files.image(row.text("image_path")),),
        question=row.text("question"),
        answer=row.text("gt_answer"),
        answer_type="choice",
        options=tuple(lettered(row, OMNI_OPTIONS).values()),
        texts={"modality": row.optional("modality_type")},
        extra=further(row, "question_type"),
        split="test",
    )


def read_medxpertqa(files: Files, choices: Choices) -> Iterator[Item]:
    """MedXpertQA's multimodal part (Zuo et al. 2025): JSON lines and images.zip. A question has all
    its images, or with `--images first` the first."""
    if choices.images not in ("first", "all"):
        raise UserError(f"--images {choices.images}: expected first or all")
    names = [name for name in files.find(*EXPERT_FILES) if "Text/" not in name]
    if not names:
        wanted = "neither dev.jsonl nor test.jsonl of MedXpertQA's MM part"
        raise UserError(f"{files.named}: holds {wanted}")
    for name in names:
        split = EXPERT_FILES[name.rsplit("/", 1)[-1]]
        make = partial(medxpertqa_record, files=files, choices=choices, split=split)
        yield from each(read_table(files, name, EXPERT_KEYS), make)


def medxpertqa_record(row: Row, files: Files, choices: Choices, split: str) -> Record:
    options, names = row.values["options"], row.values["images"]
    if not isinstance(options, dict) or not options:
        raise Fault("options is not an object of letters and texts")
    if not isinstance(names, list) or not names:
        raise Fault("images is not a list of file names: a question without an image")
    texts = {str(letter): str(option).strip() for letter, option in options.items()}
    taken = "of which the first is taken" if choices.images == "first" else "all taken, in order"
    images = tuple(files.image(str(name)) for name in names)
    several = len(images) > 1
    if choices.images == "first":
        images = images[:1]
    return Record(
        where=row.where,
        id=f"medxpertqa-{row.text('id')}",
        images=images,
        question=row.text("question").split("\nAnswer Choices:")[0].strip(),
        answer=pick(texts, row.text("label")),
        answer_type="choice",
        options=tuple(texts.values()),
        texts={"organ": row.optional("body_system")},
        extra=further(row, "medical_task", "question_type"),
        split=split,
        mended=(f"questions have several images, {taken}",) if several else (),
    )
