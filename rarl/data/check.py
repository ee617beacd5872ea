"""Which rows can be used. Training reads every row once before it starts, to name bad ones now."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rarl.data.images import BadImage, decode_image
from rarl.data.parquet import ParquetRows
from rarl.errors import UserError
from rarl.schema import ANSWER_TYPES, Example
from rarl.system.placement import READ_CPUS

UNSEEN = ("Cc", "Cf", "Zs", "Zl", "Zp")  # Unicode's controls, marks without width, and blanks
ROWS_PER_TASK = 256


def find_fault(example: Example) -> str | None:
    """Returns why an example cannot be used, or None."""
    fault = text_fault(example)
    if fault is None:
        try:
            decode_image(example.image)
        except BadImage as error:
            fault = f"image {error}"
    return None if fault is None else f"example '{example.id}': {fault}"


def text_fault(example: Example) -> str | None:
    """Returns what is wrong with the texts and options of an example, or None."""
    for name in ("id", "image_id", "question", "answer"):
        if not is_seen(getattr(example, name)):
            return f"the {name} is empty"
    if example.answer_type not in ANSWER_TYPES:
        return f"answer_type '{example.answer_type}' is not one of {', '.join(ANSWER_TYPES)}"
    if example.answer_type == "choice" and not example.options:
        return "answer_type is 'choice' but there are no options"
    return options_fault(example.answer, example.options) if example.options else None


def options_fault(answer: str, options: tuple[str, ...]) -> str | None:
    if not all(is_seen(option) for option in options):
        return f"an option is empty among {list(options)}"
    if answer not in options:
        return f"answer '{answer}' is not among the options {list(options)}"
    if len(options) == 1:
        return f"'{answer}' is the only option"
    if options.count(answer) > 1:
        return f"answer '{answer}' is there twice among the options {list(options)}"
    return None


def is_seen(text: str) -> bool:
    """Returns whether there is anything to read."""
    return any(unicodedata.category(character) not in UNSEEN for character in text)


@dataclass(frozen=True)
class BadRow:
    row: int
    reason: str


@dataclass(frozen=True)
class CheckedRows:
    """The rows that can be used, ascending, and those that were left out."""

    good: NDArray[np.int64]
    bad: list[BadRow]


def faults_in(path: str, rows: list[int]) -> Iterator[BadRow]:
    """Yields the bad rows among `rows`; so are those of a part of a file that cannot be read."""
    source = ParquetRows(path)
    for row in rows:
        try:
            fault = find_fault(source.read([row])[0])
        except UserError as error:
            fault = str(error)
        if fault:
            yield BadRow(row, fault)


def check_rows(path: str, on_bad_row: Literal["fail", "skip"]) -> CheckedRows:
    """Checks all rows. Raises UserError for the first bad one under "fail", or if none is good."""
    import ray.data  # here, since `rarl prepare` asks for the faults above and needs no Ray

    def check_batch(batch: pa.Table) -> pa.Table:
        bad = list(faults_in(path, batch["row"].to_pylist()))
        rows = pa.array([one.row for one in bad], pa.int64())
        return pa.table({"row": rows, "reason": [one.reason for one in bad]})

    numbers = np.arange(len(ParquetRows(path)), dtype=np.int64)
    starts = range(0, len(numbers), ROWS_PER_TASK)
    blocks = [pa.table({"row": numbers[start : start + ROWS_PER_TASK]}) for start in starts]
    data = ray.data.from_arrow(blocks)
    checked = data.map_batches(check_batch, batch_format="pyarrow", num_cpus=READ_CPUS)
    found = [BadRow(int(r["row"]), str(r["reason"])) for r in checked.iter_rows()]
    bad = sorted(found, key=lambda one: one.row)
    if bad and on_bad_row == "fail":
        more = f" (and {len(bad) - 1} more bad rows)" if len(bad) > 1 else ""
        advice = "; mend the data or set data.on_bad_row=skip"
        raise UserError(f"{path}: row {bad[0].row}: {bad[0].reason}{more}{advice}")
    good = np.setdiff1d(numbers, np.array([one.row for one in bad], dtype=np.int64))
    if not len(good):
        none = f"not one of the {len(numbers)} rows can be used; the first: {bad[0].reason}"
        raise UserError(f"{path}: {none}")
    return CheckedRows(good, bad)
