"""What the data say of a plan: how long their own prompts are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from rarl.config import IMPORT_PATH, Config
from rarl.data.images import BadImage, size_of
from rarl.data.lengths import (
    LengthRule,
    RowLengths,
    image_tokens,
    measured_lengths,
    training_lengths,
)
from rarl.data.parquet import ROW_GROUP_ROWS, ParquetRows
from rarl.planning.sizes import TEXT_TOKENS
from rarl.schema import Example

MOST_ROWS = 2048  # of a data set that are looked at: a few seconds
# Qwen2-VL's own image processor, where the model is not at hand.
QWEN2_VL_IMAGES = SimpleNamespace(
    size={"shortest_edge": 56 * 56, "longest_edge": 12_845_056}, patch_size=14, merge_size=2
)


@dataclass(frozen=True)
class DataLengths:
    """Tokens. `prompt` and `image` are means over `looked_at` of the `rows` training rows; `needed`
    is what the longest row of all data sets, `longest`, takes with its reply. `text_known` is False
    where the tokenizer is not at hand, and the text's length is assumed."""

    prompt: float
    image: float
    looked_at: int
    rows: int
    needed: int
    longest: str
    text_known: bool


def read_lengths(config: Config, model_path: str) -> DataLengths | None:
    """Returns None where the training data are not at hand, such as those that a function makes.
    Of a large data set it looks at rows that are spread evenly over it. Raises UserError for data
    that cannot be read."""
    if config.data.train is None or not is_at_hand(config.data.train):
        return None
    processor = local_processor(model_path)
    rule = training_lengths(config, model_path)
    trained = list(row_lengths(config.data.train, rule, processor))
    if not trained:
        return None
    longest = {f"{config.data.train}: row {row}": found.needed for row, found in trained}
    measured = measured_lengths(config, model_path, [config.prompts.eval])
    for path in filter(is_at_hand, config.data.eval.values()):
        found = row_lengths(path, measured, processor)
        longest |= {f"{path}: row {row}": one.needed for row, one in found}
    where = max(longest, key=longest.__getitem__)
    return DataLengths(
        prompt=float(np.mean([found.prompt for _, found in trained])),
        image=float(np.mean([found.image for _, found in trained])),
        looked_at=len(trained),
        rows=len(ParquetRows(Path(config.data.train).expanduser())),
        needed=longest[where],
        longest=where,
        text_known=processor is not None,
    )


def is_at_hand(path: str) -> bool:
    return not IMPORT_PATH.match(path) and Path(path).expanduser().exists()


def local_processor(model_path: str) -> Any:
    """Returns the model's processor, or None where it is not on this machine."""
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(model_path, local_files_only=True)
    except (OSError, ValueError):
        return None


def row_lengths(path: str, rule: LengthRule, processor: Any) -> Iterator[tuple[int, RowLengths]]:
    """Yields number and lengths of the rows that are looked at and can be used."""
    source = ParquetRows(Path(path).expanduser())
    for row in spread_rows(source):
        example = source.read([row])[0]
        try:
            yield row, lengths_of(example, rule, processor)
        except BadImage:
            continue


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
    height, width = size_of(example.image)
    if processor is not None:
        return rule.lengths(example, height, width, processor)
    image = image_tokens(height, width, QWEN2_VL_IMAGES, rule.max_pixels)
    reply = rule.reply if isinstance(rule.reply, int) else TEXT_TOKENS
    return RowLengths(image + TEXT_TOKENS, image, image + TEXT_TOKENS + reply)
