"""What a folder of measurements knows of its data sets: none is taken for another of its name."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from rarl.commands.held_out import fingerprint
from rarl.data.check import FACTS, CheckedRows, RowCheck
from rarl.data.parquet import ParquetRows, write_examples
from rarl.errors import UserError
from rarl.evaluation.measured_data import known_data, remember_data
from rarl.schema import Example
from tests.records import KEY, reply_to, write_measurement


def checked(path: Path) -> CheckedRows:
    """All rows with what is known of them, without Ray."""
    rows = list(range(len(ParquetRows(path))))
    facts = list(RowCheck(fingerprint).facts_in(str(path), rows))
    return CheckedRows(np.array(rows), [], pa.Table.from_pylist(facts, schema=FACTS))


def test_another_data_set_of_the_same_name_is_not_taken_for_the_one_that_was_measured(
    tmp_path: Path, dataset: Path, examples: list[Example]
) -> None:
    evaluation = tmp_path / "evaluation"
    remember_data(evaluation, {"d": str(dataset)}, {"d": checked(dataset)})
    write_measurement(evaluation, KEY, [reply_to(replace(examples[0], images=()), "yes")])
    moved, other = tmp_path / "moved.parquet", tmp_path / "noisy" / "examples.parquet"
    # Further rows change nothing of what was measured, nor does another place.
    write_examples(moved, [replace(examples[0], id="new"), *examples])
    for _ in range(2):
        remember_data(evaluation, {"d": str(moved)}, {"d": checked(moved)})
    assert known_data(evaluation) == {"d": str(moved)}
    for changed in (
        replace(examples[0], images=examples[-1].images),
        replace(examples[0], options=(examples[0].answer, "x"), answer_type="choice"),
    ):
        write_examples(other, [changed, *examples[1:]])
        with pytest.raises(UserError, match=rf"called 'd'.* of {moved}, .*data\.eval\.d-2={other}"):
            remember_data(evaluation, {"d": str(other)}, {"d": checked(other)})
        assert known_data(evaluation) == {"d": str(moved)}
    remember_data(evaluation, {"d-2": str(other)}, {"d-2": checked(other)})
    shutil.rmtree(evaluation / "model=base")
    remember_data(evaluation, {"d": str(other)}, {"d": checked(other)})


def test_a_folder_that_kept_no_content_goes_on(
    tmp_path: Path, dataset: Path, examples: list[Example]
) -> None:
    write_measurement(tmp_path, KEY, [reply_to(replace(examples[0], images=()), "yes")])
    (tmp_path / "_data.json").write_text(json.dumps({"d": "gone.parquet"}))
    remember_data(tmp_path, {"d": str(dataset)}, {"d": checked(dataset)})
    write_examples(dataset, [replace(examples[0], images=examples[-1].images)])
    with pytest.raises(UserError, match="showed other images"):
        remember_data(tmp_path, {"d": str(dataset)}, {"d": checked(dataset)})
