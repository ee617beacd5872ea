"""MedXpertQA's multimodal part (Zuo et al. 2025): JSON lines and images.zip. A question may have
several images.

An example holds one image. `--images first` takes the first; `--images all` sets all side by side
in one picture. The few questions in dev.jsonl are the split `validation`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

from PIL import Image

from rarl.data.images import BadImage, decode_image
from rarl.errors import UserError
from rarl.prepare.metadata import without_metadata
from rarl.prepare.sources.files import Files
from rarl.prepare.sources.record import (
    Choices,
    Fault,
    Item,
    Record,
    Row,
    each,
    optional_text,
    pick,
    text,
)
from rarl.prepare.sources.tables import read_table

SPLITS = {"dev": "validation", "test": "test"}
KEYS = ("id", "question", "options", "label", "images")
GAP = 8  # pixels between images that stand side by side


def read_medxpertqa(files: Files, choices: Choices) -> Iterator[Item]:
    if choices.images not in ("first", "all"):
        raise UserError(f"--images {choices.images}: expected first or all")
    names = [name for name in files.find("dev.jsonl", "test.jsonl") if "Text/" not in name]
    if not names:
        raise UserError(
            f"{files.named}: holds neither dev.jsonl nor test.jsonl of MedXpertQA's MM part"
        )
    for name in names:
        split = SPLITS.get(name.rsplit("/", 1)[-1].removesuffix(".jsonl"), "test")
        yield from each(
            read_table(files, name, KEYS),
            lambda row, s=split: record_of(row, files, choices, s),  # type: ignore[misc]
        )


def record_of(row: Row, files: Files, choices: Choices, split: str) -> Record:
    options, names = row.values["options"], row.values["images"]
    if not isinstance(options, dict) or not options:
        raise Fault("options is not an object of letters and texts")
    if not isinstance(names, list) or not names:
        raise Fault("images is not a list of file names: a question without an image")
    texts = {str(letter): str(option).strip() for letter, option in options.items()}
    images = [files.image(str(name)) for name in names]
    several = "questions have several images; " + (
        "the first is taken" if choices.images == "first" else "all are set side by side in one"
    )
    return Record(
        where=row.where,
        id=f"medxpertqa-{text(row.values, 'id')}",
        image=images[0] if len(images) == 1 or choices.images == "first" else side_by_side(images),
        image_name=str(names[0]) if choices.images == "first" or len(names) == 1 else "",
        question=text(row.values, "question").split("\nAnswer Choices:")[0].strip(),
        answer=pick(texts, text(row.values, "label")),
        answer_type="choice",
        options=tuple(texts.values()),
        organ=optional_text(row.values, "body_system"),
        split=split,
        mended=(several,) if len(images) > 1 else (),
    )


def side_by_side(images: list[Callable[[], bytes]]) -> Callable[[], bytes]:
    """One PNG of all images, scaled to the height of the lowest."""

    def joined() -> bytes:
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
        out = io.BytesIO()
        whole.save(out, format="PNG")
        return out.getvalue()

    return joined
