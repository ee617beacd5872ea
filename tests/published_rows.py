"""Rows of published data sets, in their layouts."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

CHOICES = {  # of a row of PMC-VQA
    "Choice A": " A:CT ",
    "Choice B": " B:MRI ",
    "Choice C": " C:X-ray, lateral ",
    "Choice D": " D:PET ",
}


def slake_row(qid: int, image: int, **changes: Any) -> dict[str, Any]:
    """A question of SLAKE."""
    return {
        "img_id": image,
        "img_name": f"xmlab{image}/source.jpg",
        "question": "Is the lung healthy?",
        "answer": "No",
        "q_lang": "en",
        "location": "Chest_lung",
        "modality": "X-Ray",
        "answer_type": "CLOSED",
        "base_type": "vqa",
        "content_type": "Abnormality",
        "triple": ["vhead", "_", "_"],
        "qid": qid,
    } | changes


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def omni_row(number: int, options: list[str], answer: str, modality: str) -> dict[str, Any]:
    """A question of OmniMedVQA."""
    named = {f"option_{letter}": option for letter, option in zip("ABCD", options, strict=False)}
    return {
        "dataset": "ACRIMA",
        "question_id": f"ACRIMA_{number:04d}",
        "question_type": "Modality Recognition",
        "question": "What imaging technique was used?",
        "gt_answer": answer,
        "image_path": f"Images/ACRIMA/Im{number}.png",
        **named,
        "modality_type": modality,
    }
