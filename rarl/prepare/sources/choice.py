"""PMC-VQA, OmniMedVQA and MedXpertQA: multiple-choice questions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from PIL import Image

from rarl.data.images import BadImage, decode_image, png_bytes
from rarl.errors import UserError
from rarl.prepare.files import Files
from rarl.prepare.metadata import without_metadata
from rarl.prepare.record import Choices, Fault, Item, Record, Row, each, pick
from rarl.prepare.tables import read_table

PMC_FILES = {
    1: {"train.csv": "train", "test.csv": "test"},
    2: {"train_2.csv": "train", "test_2.csv": "test"},
}
PMC_OPTIONS = {letter: f"Choice {letter}" for letter in "ABCD"}
PMC_KEYS = ("Figure_path", "Question", "Answer", *PMC_OPTIONS.values())
OMNI_OPTIONS = {letter: f"option_{letter}" for letter in "ABCD"}
OMNI_KEYS = ("image_path", "question", "gt_answer")
EXPERT_FILES = {"dev.jsonl": "validation", "test.jsonl": "test"}
EXPERT_KEYS = ("id", "question", "options", "label", "images")
GAP = 8  # pixels between images that stand side by side


def lettered(row: Row, columns: dict[str, str]) -> dict[str, str]:
    """Returns the options by letter, from the columns that `columns` names by letter, without the
    "A:" that some texts begin with. Options that are absent are left out."""
    given = {letter: row.optional(column) for letter, column in columns.items()}
    return {letter: o.removeprefix(f"{letter}:").strip() for letter, o in given.items() if o}


def read_pmc_vqa(files: Files, choices: Choices) -> Iterator[Item]:
    """PMC-VQA (Zhang et al. 2023): CSV files with their archive of figures, in two versions.

    Version 1 is train.csv and test.csv with images.zip; the answer's text is in Answer, its letter
    in Answer_label. Version 2 is train_2.csv and test_2.csv with images_2.zip (figures cut into
    their parts); Answer is the letter. A subset that is published beside them (test_clean.csv) is
    read only if SRC names it.
    """
    if files.chosen is not None:
        version = choices.version or (2 if "_2" in files.chosen else 1)
        found = {version: {files.chosen: files.split_of(files.chosen)}}
    else:
        found = {v: {n: s for n, s in of.items() if files.find(n)} for v, of in PMC_FILES.items()}
        found = {v: names for v, names in found.items() if names and choices.version in (v, None)}
    if not found:
        known = ", ".join(name for names in PMC_FILES.values() for name in names)
        raise UserError(f"{files.named}: holds none of {known} of PMC-VQA")
    if len(found) > 1:
        both = "holds both versions of PMC-VQA; choose with --version 1 or --version 2"
        raise UserError(f"{files.named}: {both}")
    (version, names), *_ = found.items()
    for pattern, split in names.items():
        for name in files.find(pattern):
            make = partial(pmc_record, files=files, version=version, split=split)
            yield from each(read_table(files, name, PMC_KEYS), make)


def pmc_record(row: Row, files: Files, version: int, split: str) -> Record:
    name, options = row.text("Figure_path"), lettered(row, PMC_OPTIONS)
    given, label = row.text("Answer"), row.optional("Answer_label")
    answer = given.removeprefix("A:").strip()
    if label or given in PMC_OPTIONS:
        answer = pick(options, label or given)
    if label and given not in (answer, label):
        raise Fault(f"Answer '{given}' is not the option of Answer_label {label}, '{answer}'")
    return Record(
        where=row.where,
        id=f"pmc-vqa-{version}-{split}-{row.optional('index') or row.number}",
        image=files.image(name),
        image_name=name,
        question=row.text("Question"),
        answer=answer,
        answer_type="choice",
        options=tuple(options.values()),
        split=row.optional("split") or split,
    )


def read_omnimedvqa(files: Files, choices: Choices) -> Iterator[Item]:
    """OmniMedVQA (Hu et al. 2024): JSON files with an image folder, or the archive of both. It is
    published for evaluation: every row is in the split `test`."""
    names = files.find("*.json")
    if not names:
        raise UserError(f"{files.named}: holds no JSON file of OmniMedVQA, nor an archive with one")
    for name in names:
        yield from each(read_table(files, name, OMNI_KEYS), partial(omnimedvqa_record, files=files))


def omnimedvqa_record(row: Row, files: Files) -> Record:
    """Yes/no questions come with two options, others with up to four."""
    name = row.text("image_path")
    return Record(
        where=row.where,
        id=f"omnimedvqa-{row.optional('question_id') or row.where.rsplit('/', 1)[-1]}",
        image=files.image(name),
        image_name=name,
        question=row.text("question"),
        answer=row.text("gt_answer"),
        answer_type="choice",
        options=tuple(lettered(row, OMNI_OPTIONS).values()),
        texts={"modality": row.optional("modality_type")},
        split="test",
    )


def read_medxpertqa(files: Files, choices: Choices) -> Iterator[Item]:
    """MedXpertQA's multimodal part (Zuo et al. 2025): JSON lines and images.zip. The few questions
    in dev.jsonl are the split `validation`.

    A question may have several images and an example holds one: `--images first` takes the first;
    `--images all` sets all side by side in one picture.
    """
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
    images = [files.image(str(name)) for name in names]
    image, image_name, mended = images[0], str(names[0]), ""
    if len(images) > 1:
        mended = "questions have several images; the first is taken"
    if len(images) > 1 and choices.images == "all":
        mended = "questions have several images; all are set side by side in one"
        image, image_name = partial(side_by_side, images), ""
    return Record(
        where=row.where,
        id=f"medxpertqa-{row.text('id')}",
        image=image,
        image_name=image_name,
        question=row.text("question").split("\nAnswer Choices:")[0].strip(),
        answer=pick(texts, row.text("label")),
        answer_type="choice",
        options=tuple(texts.values()),
        texts={"organ": row.optional("body_system")},
        split=split,
        mended=(mended,) if mended else (),
    )


def side_by_side(images: list[Callable[[], bytes]]) -> bytes:
    """Returns one PNG of all images, scaled to the height of the lowest. Raises Fault."""
    try:
        pictures = [decode_image(without_metadata(read())) for read in images]
    except BadImage as error:
        raise Fault(f"image {error}") from None
    height = min(picture.height for picture in pictures)
    scaled = [p.resize((max(1, round(p.width * height / p.height)), height)) for p in pictures]
    whole = Image.new("RGB", (sum(p.width for p in scaled) + GAP * (len(scaled) - 1), height))
    left = 0
    for picture in scaled:
        whole.paste(picture, (left, 0))
        left += picture.width + GAP
    return png_bytes(whole)
