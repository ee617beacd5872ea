"""`rarl prepare`: a published data set → canonical Parquet files, one per split."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from rarl.data.parquet import write_examples
from rarl.data.vqa_rad import Conversion, read_vqa_rad
from rarl.errors import UserError
from rarl.schema import Example

SOURCES = {"vqa-rad": read_vqa_rad}
SPLITS = ("official", "image-disjoint")


def prepare_dataset(
    source: str, src: Path, out: Path, split: str, test_share: float, seed: int, phrases: tuple[str, ...]
) -> str:
    """Writes OUT/train.parquet and, where there is one, OUT/test.parquet; returns a report of one paragraph."""
    if source not in SOURCES:
        raise UserError(f"source '{source}' is unknown; known are: {', '.join(SOURCES)}")
    if split not in SPLITS:
        raise UserError(f"split '{split}' is unknown; known are: {', '.join(SPLITS)}")
    if not 0 < test_share < 1:
        raise UserError(f"test share {test_share} is not between 0 and 1")
    if not src.is_dir():
        raise UserError(f"{src}: no such folder")
    conversion = SOURCES[source](src, phrases)
    if not conversion.examples:
        raise UserError(f"{src}: none of the {conversion.records} records is left after keeping {', '.join(phrases)}")
    examples = conversion.examples
    if split == "image-disjoint":
        examples = split_by_image(examples, test_share, seed)
    counts = Counter(example.split for example in examples)
    for name in counts:
        write_examples(out / f"{name}.parquet", (example for example in examples if example.split == name))
    return report(conversion, examples, counts, out, phrases)


def split_by_image(examples: list[Example], test_share: float, seed: int) -> list[Example]:
    """Puts `test_share` of the images, with all their questions, into the test split; no image is in both."""
    images = sorted({example.image_id for example in examples})
    count = max(1, round(test_share * len(images)))
    chosen = set(np.random.default_rng(seed).permutation(images)[:count].tolist())
    return [replace(example, split="test" if example.image_id in chosen else "train") for example in examples]


def report(
    conversion: Conversion, examples: list[Example], counts: Counter[str], out: Path, phrases: tuple[str, ...]
) -> str:
    lines = [f"{conversion.records:,} records read"]
    if conversion.phrases:
        lines[0] += f", {len(examples):,} of phrase type {' or '.join(phrases)} kept"
    if conversion.mended_answer_types:
        lines.append(f"{conversion.mended_answer_types} answer types had a stray blank, which was removed")
    images: dict[str, set[str]] = {}
    for example in examples:
        images.setdefault(example.split, set()).add(example.image_id)
    for name, count in sorted(counts.items()):
        kinds = Counter(example.answer_type for example in examples if example.split == name)
        parts = ", ".join(f"{n:,} {kind}" for kind, n in sorted(kinds.items()))
        lines.append(f"{out / name}.parquet: {count:,} questions ({parts}) about {len(images[name]):,} images")
    if len(images) > 1:
        shared = set.intersection(*images.values())
        lines.append(
            f"{len(shared):,} images are in more than one split: results on them are not results on unseen images; "
            "use --split image-disjoint"
            if shared
            else "no image is in more than one split"
        )
    return "\n".join(lines)
