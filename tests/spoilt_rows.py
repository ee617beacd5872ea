"""Faults of single rows, in their images and in their texts."""

from __future__ import annotations

from tests.pictures import picture
from tests.spoilt_sources import (
    Fault,
    bomb,
    empty_images,
    even,
    expert_row,
    image_named_otherwise,
    image_two,
    parquet_answers,
    pmc_csv,
    pmc_split,
    real_dicom,
    row_two,
    slake_zip,
)

JPEG = picture(2)

IMAGES: dict[str, Fault] = {
    "truncated JPEG": (
        "folder",
        image_two(JPEG[: len(JPEG) // 2], "2.jpg"),
        "skip",
        "cannot be decoded",
    ),
    "truncated PNG": ("folder", image_two(picture(2, "PNG")[:300]), "skip", "cannot be decoded"),
    "text that is called PNG": ("folder", image_two(b"not a picture"), "skip", "cannot be decoded"),
    "empty image": ("folder", image_two(b""), "skip", "image '2.png' is empty"),
    "PNG bomb": (
        "folder",
        image_two(bomb()),
        "skip",
        r"40000x40000 pixels are more than|cannot be decoded",
    ),
    "black image": ("folder", image_two(even(0)), "skip", "is blank"),
    "grey JPEG": ("folder", image_two(even(77, "JPEG"), "2.jpg"), "skip", "is blank"),
    "one pixel": ("folder", image_two(picture(2, "PNG", (1, 1))), "skip", "only 1x1 pixels"),
    "truncated DICOM": (
        "folder",
        image_two(real_dicom("MR_truncated.dcm"), "2.dcm"),
        "skip",
        "decoded as DICOM",
    ),
    "DICOM without a picture": (
        "folder",
        image_two(real_dicom("test-SR.dcm"), "2.dcm"),
        "skip",
        "without a picture",
    ),
    "infinite frame": (
        "folder",
        row_two(frame=float("inf")),
        "skip",
        "frame 'inf' is not a number from 0",
    ),
    "half a frame": ("folder", row_two(frame=0.5), "skip", "frame '0.5' is not a number from 0"),
    "text that is called DICOM": (
        "folder",
        image_two(b"x" * 500, "2.dcm"),
        "skip",
        "not a DICOM file",
    ),
    "missing image": ("folder", row_two(image="none.png"), "skip", "image 'none.png' is nowhere"),
    "missing image of another case": (
        "folder",
        image_named_otherwise,
        "skip",
        r"did you mean 'img/CASE04\.JPG'\?",
    ),
    "path that leads outside": (
        "folder",
        row_two(image="../../etc/passwd"),
        "skip",
        "leads outside the source folder",
    ),
    "absolute path": (
        "folder",
        row_two(image="/etc/passwd"),
        "skip",
        "leads outside the source folder",
    ),
    "frame of a PNG": (
        "folder",
        row_two(frame=3),
        "skip",
        "frame 3 is asked for, but the image is not DICOM",
    ),
    "frame that is no number": (
        "folder",
        row_two(frame="last"),
        "skip",
        "frame 'last' is not a number",
    ),
    "image without bytes": ("path-vqa", empty_images, "skip", "image holds no bytes"),
}

TEXTS: dict[str, Fault] = {
    "empty question": ("folder", row_two(question="  "), "skip", "question is empty"),
    "empty answer": ("folder", row_two(answer=""), "skip", "answer is empty"),
    "question that nobody sees": (
        "folder",
        row_two(question="\u200b\ufeff"),
        "skip",
        "question is empty",
    ),
    "half of a character": (
        "folder",
        row_two(question="\ud83d?"),
        "skip",
        r"half of a character \(.ud83d alone\)",
    ),
    "half of a character in options": (
        "folder",
        row_two(options='["a mass", "\\ud83d"]'),
        "skip",
        "look like a JSON",
    ),
    "null answer": ("folder", row_two(answer=None), "skip", "answer is empty"),
    "NaN answer": ("folder", row_two(answer=float("nan")), "skip", "answer is NaN"),
    "NaN answer in Parquet": ("folder", parquet_answers, "skip", "answer is NaN"),
    "the word nan": (
        "folder",
        row_two(answer="NaN"),
        "skip",
        "which programs write for a missing value",
    ),
    "truth value": ("folder", row_two(answer=True), "skip", "answer is of type bool"),
    "answer not among options": (
        "folder",
        row_two(options=["cyst", "stone"]),
        "skip",
        "not among the options",
    ),
    "options as one string": (
        "folder",
        row_two(options="a mass"),
        "skip",
        "options 'a mass' are one text",
    ),
    "options as broken JSON": (
        "folder",
        row_two(options='["a mass", '),
        "skip",
        "look like a JSON or Python list",
    ),
    "options as numbers in lists": (
        "folder",
        row_two(options=[["a mass"]]),
        "skip",
        "not a list of texts",
    ),
    "truth values as options": (
        "folder",
        row_two(options=[True, False]),
        "skip",
        "not a list of texts",
    ),
    "only option": ("folder", row_two(options=["a mass"]), "skip", "'a mass' is the only option"),
    "empty options": ("folder", row_two(options="a mass||"), "skip", "an option is empty"),
    "answer twice among options": (
        "folder",
        row_two(options=["a mass", "a mass"]),
        "skip",
        "is there twice",
    ),
    "unknown split": ("folder", row_two(split="later"), "skip", "split 'later' is not one of"),
    "split that leads outside": (
        "folder",
        row_two(split="../escaped"),
        "skip",
        "split '../escaped' is not one of",
    ),
    "split of a CSV that leads outside": (
        "pmc-vqa",
        pmc_split("../escaped"),
        "skip",
        "split '../escaped' is not",
    ),
    "label that is not an option": (
        "pmc-vqa",
        pmc_csv("MRI", "E"),
        "skip",
        "answer 'E' is not one of the letters",
    ),
    "label and answer disagree": (
        "pmc-vqa",
        pmc_csv("MRI", "C"),
        "skip",
        "not the option of Answer_label C",
    ),
    "no images": (
        "medxpertqa",
        expert_row(images=[]),
        "skip",
        "images is not a list of file names",
    ),
    "options as a list": (
        "medxpertqa",
        expert_row(options=["Rest"]),
        "skip",
        "options is not an object",
    ),
    "unknown answer type": (
        "slake",
        slake_zip(answer_type="MAYBE"),
        "skip",
        "neither CLOSED nor OPEN",
    ),
    "missing key": ("slake", slake_zip(q_lang=None), "skip", "q_lang is empty"),
}
