"""Reads every row once before training starts: a bad one is named now, not in step 900."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import ray.data
from numpy.typing import NDArray

from rarl.data.parquet import ParquetRows
from rarl.errors import UserError
from rarl.prepare.faults import find_fault
from rarl.system.placement import READ_CPUS

ROWS_PER_TASK = 256


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
    """Rows of a part of a file that cannot be read are bad as well."""
    source = ParquetRows(path)
    for row in rows:
        try:
            fault = find_fault(source.read([row])[0])
        except UserError as error:
            fault = str(error)
        if fault:
            yield BadRow(row, fault)


def check_rows(path: str, on_bad_row: Literal["fail", "skip"]) -> CheckedRows:
    """Checks all rows of a canonical data set with Ray Data. Raises UserError for the first bad row
    under "fail"."""

    def check_batch(batch: pa.Table) -> pa.Table:
        bad = list(faults_in(path, batch["row"].to_pylist()))
        return pa.table(
            {"row": pa.array([b.row for b in bad], pa.int64()), "reason": [b.reason for b in bad]}
        )

    numbers = np.arange(len(ParquetRows(path)), dtype=np.int64)
    blocks = [
        pa.table({"row": numbers[i : i + ROWS_PER_TASK]})
        for i in range(0, len(numbers), ROWS_PER_TASK)
    ]
    checked = ray.data.from_arrow(blocks).map_batches(
        check_batch, batch_format="pyarrow", num_cpus=READ_CPUS
    )
    found = [BadRow(int(r["row"]), str(r["reason"])) for r in checked.iter_rows()]
    bad = sorted(found, key=lambda b: b.row)
    if bad and on_bad_row == "fail":
        more = f" (and {len(bad) - 1} more bad rows)" if len(bad) > 1 else ""
        advice = "; mend the data or set data.on_bad_row=skip"
        raise UserError(f"{path}: row {bad[0].row}: {bad[0].reason}{more}{advice}")
    good = np.setdiff1d(numbers, np.array([b.row for b in bad], dtype=np.int64))
    if not len(good):
        raise UserError(
            f"{path}: not one of the {len(numbers)} rows can be used; the first: {bad[0].reason}"
        )
    return CheckedRows(good, bad)
