"""What the data say of a plan: how long their own prompts are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from rarl.config import IMPORT_PATH, Config
from rarl.data.check import text_fault
from rarl.data.images import BadImage, size_of
from rarl.data.lengths import (
    LengthRule,
    MeasuredRow,
    RowLengths,
    image_tokens,
    measured_lengths,
    require_room,
    training_lengths,
)
from rarl.data.parquet import ROW_GROUP_ROWS, ParquetRows, most_images
from rarl.planning.sizes import TEXT_TOKENS
from rarl.prompts import LOOK_LABELS, trains_looks
from rarl.schema import Example
from rarl.system.imports import quick_imports

MOST_ROWS = 2048  # of a data set that are looked at: a few seconds
# Qwen2-VL's own image processor, where the model is not at hand.
QWEN2_VL_IMAGES = SimpleNamespace(
    size={"shortest_edge": 56 * 56, "longest_edge": 12_845_056}, patch_size=14, merge_size=2
)


@dataclass(frozen=True)
class DataLengths:
    """Tokens. `prompt` and `image`, those of its images, are means over `looked_at` of the `rows`
    training rows, as is `images`, their number; `most_images` is the largest of all data sets.
    `needed` is what the longest row of them, `longest`, takes with its reply. `text_known` is False
    where the tokenizer is not at hand, and the text's length is assumed."""

    prompt: float
    image: float
    images: float
    most_images: int
    looked_at: int
    rows: int
    needed: int
    longest: str
    text_known: bool


def read_lengths(config: Config, model_path: str) -> DataLengths | None:
    """Returns None where the training data are not at hand, such as those that a function makes.
    Of a large data set it looks at rows that are spread evenly over it. Raises UserError for data
    that cannot be read."""
    processor = local_processor(model_path)
    trained = training_rows(config, model_path, processor)
    if not trained:
        return None
    measured = measured_rows(config, model_path, processor, [config.prompts.eval])
    longest = max([*trained, *measured], key=lambda one: one.lengths.needed)
    return DataLengths(
        prompt=float(np.mean([one.lengths.prompt for one in trained])),
        image=float(np.mean([one.lengths.image for one in trained])),
        images=float(np.mean([one.images for one in trained])),
        most_images=most_images_known(config),
        looked_at=len(trained),
        rows=len(ParquetRows(trained[0].path)),
        needed=longest.lengths.needed,
        longest=f"{longest.path}: row {longest.row}",
        text_known=processor is not None,
    )


def require_room_at_first_sight(
    config: Config, model_path: str, trains: bool, families: Sequence[str]
) -> None:
    """Raises UserError as the check of all rows does, but within seconds, before engines start, and
    for the rows alone that `read_lengths` looks at. `families` are those of the measurements."""
    paths = [*config.data.eval.values(), config.data.train if trains else None]
    # transformers takes seconds to import: not for data that a function makes.
    needed = any(path is not None and is_at_hand(path) for path in paths)
    processor = local_processor(model_path) if needed else None
    if processor is not None:
        rows = measured_rows(config, model_path, processor, families)
        rows += training_rows(config, model_path, processor) if trains else []
        require_room(rows, config.rollout.max_model_length)


def training_rows(config: Config, model_path: str, processor: Any) -> list[MeasuredRow]:
    """Returns the training rows that are looked at, if they are at hand."""
    path, rule = config.data.train, training_lengths(config, model_path)
    return list(row_lengths(path, rule, processor)) if path and is_at_hand(path) else []


def measured_rows(
    config: Config, model_path: str, processor: Any, families: Sequence[str]
) -> list[MeasuredRow]:
    """Returns the same of the data sets that are measured, with prompts of these families."""
    rule, most = measured_lengths(config, model_path, families), config.evaluation.max_examples
    paths = filter(is_at_hand, config.data.eval.values())
    return [one for path in paths for one in row_lengths(path, rule, processor, most)]


def most_images_known(config: Config) -> int:
    """Returns the largest number of images of a question in all data; as many as there may be where
    some are not at hand."""
    paths, limit = [str(config.data.train), *config.data.eval.values()], config.data.max_images
    if not all(map(is_at_hand, paths)):
        return limit
    known = most_images([str(Path(path).expanduser()) for path in paths], limit)
    return max(known, len(LOOK_LABELS)) if trains_looks(config.prompts) else known


def is_at_hand(path: str) -> bool:
    return not IMPORT_PATH.match(path) and Path(path).expanduser().exists()


def local_processor(model_path: str) -> Any:
    """Returns the model's processor, or None where it is not on this machine."""
    with quick_imports():
        from transformers import AutoProcessor

        try:
            return AutoProcessor.from_pretrained(model_path, local_files_only=True)
        except (OSError, ValueError):
            return None


def row_lengths(
    path: str, rule: LengthRule, processor: Any, most: int | None = None
) -> Iterator[MeasuredRow]:
    """Yields the rows that are looked at and can be used, of the first `most` ones."""
    place = str(Path(path).expanduser())
    source = ParquetRows(place)
    for row in (row for row in spread_rows(source) if most is None or row < most):
        example = source.read([row])[0]
        with suppress(BadImage):
            if text_fault(example) is None:
                lengths = lengths_of(example, rule, processor)
                yield MeasuredRow(place, row, lengths, len(example.images))


def spread_rows(source: ParquetRows) -> list[int]:
    """Returns all rows, or those of evenly spread row groups, since a group is read as a whole."""
    if len(source) <= MOST_ROWS:
        return list(range(len(source)))
    groups = np.linspace(0, len(source.groups) - 1, MOST_ROWS // ROW_GROUP_ROWS).astype(int)
    rows = (range(source.starts[group], source.starts[group + 1]) for group in np.unique(groups))
    return [row for its in rows for row in its][:MOST_ROWS]


def lengths_of(example: Example, rule: LengthRule, processor: Any) -> RowLengths:
    """Returns the lengths, by Qwen2-VL's rule for images and an assumed text without a processor.
    Raises BadImage."""
    sizes = [size_of(image) for image in example.images]
    if processor is not None:
        return rule.lengths(example, sizes, processor)
    image = image_tokens(sizes, QWEN2_VL_IMAGES, rule.max_pixels)
    reply = rule.reply if isinstance(rule.reply, int) else TEXT_TOKENS
    return RowLengths(image + TEXT_TOKENS, image, image + TEXT_TOKENS + reply)
