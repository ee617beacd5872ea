"""Columns of prepared data that are null, of another type or width, or damaged: read, or named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rarl.data.check import RowCheck
from rarl.data.parquet import ParquetRows, write_examples
from rarl.errors import UserError
from rarl.prepare.leaks import check_datasets
from rarl.schema import Example
from tests.pictures import picture


def handmade(**columns: Any) -> dict[str, Any]:
    known = {name: ["a", "b"] for name in ("id", "image_id", "question", "answer")}
    return known | {"answer_type": ["open"] * 2, "image": [picture(0), picture(1)]} | columns


@pytest.mark.parametrize("name", ["id", "image_id", "question", "answer", "answer_type", "image"])
def test_null_in_a_required_column_is_a_bad_row(name: str, tmp_path: Path) -> None:
    columns = handmade()
    pq.write_table(pa.table(columns | {name: [columns[name][0], None]}), tmp_path / "a.parquet")
    report, sound = check_datasets([tmp_path / "a.parquet"])
    assert not sound
    assert "1 bad rows: row 1: example" in report


@pytest.mark.parametrize(
    ("name", "values"),
    [("question", [1, 2]), ("image", ["a", "b"]), ("options", ["a", "b"]), ("organ", [1.5, None])],
)
def test_a_column_of_another_type_is_named(name: str, values: list[Any], tmp_path: Path) -> None:
    pq.write_table(pa.table(handmade(**{name: values})), tmp_path / "a.parquet")
    with pytest.raises(
        UserError,
        match=rf"a\.parquet: column '{name}' is of type .*; convert it with `rarl prepare`",
    ):
        check_datasets([tmp_path / "a.parquet"])


def test_other_widths_and_encodings_of_the_types_are_read(tmp_path: Path) -> None:
    wide = {
        name: pa.array(["a", "b"], pa.large_string()) for name in ("id", "image_id", "question")
    }
    options = pa.array([None, None], pa.large_list(pa.large_string()))
    other = {
        "answer": pa.array(["a", "b"]).dictionary_encode(),
        "options": options,
        "organ": pa.nulls(2),
    }
    pq.write_table(pa.table(handmade(**wide, **other)), tmp_path / "a.parquet")
    assert check_datasets([tmp_path / "a.parquet"])[1]


def test_damaged_pages_are_named_with_their_part_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_examples(
        path,
        [
            Example(str(i), (picture(i),), str(i), f"What is {i}?", "a mass", "open")
            for i in range(6)
        ],
    )
    whole = path.read_bytes()
    path.write_bytes(whole[:4] + bytes(len(whole) // 2) + whole[4 + len(whole) // 2 :])
    with pytest.raises(
        UserError, match=r"a\.parquet: row group 0 cannot be read \(.*\); prepare or fetch"
    ) as caught:
        check_datasets([path])
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"a\.parquet: column 'id' cannot be read"):
        ParquetRows(path).column("id")
    bad = list(RowCheck().facts_in(str(path), [2, 3]))
    assert [one["row"] for one in bad] == [2, 3]
    assert "row group 0 cannot be read" in bad[0]["reason"]
