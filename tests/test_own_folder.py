"""Tables of your own as people and spreadsheets write them: what is understood, and what the report
says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rarl.data.check import options_fault
from rarl.prepare.convert import counted_reasons, prepare_dataset
from rarl.prepare.rows import BadRecord
from rarl.prepare.sources.folder import answer_among
from rarl.schema import Example
from tests.pictures import read, write_folder


def prepared(tmp_path: Path, name: str, table: str) -> tuple[list[Example], str]:
    """The training rows of a table beside four pictures, and the report."""
    (write_folder(tmp_path / "mine", []) / "table.jsonl").unlink()
    (tmp_path / "mine" / name).write_text(table.format(folder=tmp_path / "mine"))
    report = prepare_dataset("folder", tmp_path / "mine", tmp_path / "out")
    return read(tmp_path / "out" / "train.parquet"), report


@pytest.mark.parametrize(
    ("name", "separator"), [("t.csv", ","), ("t.csv", ";"), ("t.csv", "\t"), ("t.tsv", "\t")]
)
def test_every_separator_and_columns_of_any_case(tmp_path: Path, name: str, separator: str) -> None:
    lines = [
        "Image| Question |ANSWER|age|ward",
        "0.png|Where, here?|left|7|B",
        "{folder}/1.png|What?|mass|8|C",
    ]
    quoted = [line.replace("Where, here?", '"Where, here?"') for line in lines]
    rows, report = prepared(tmp_path, name, "\n".join(quoted).replace("|", separator))
    assert [(row.question, row.answer) for row in rows] == [
        ("Where, here?", "left"),
        ("What?", "mass"),
    ]
    assert "columns that are not used: age, ward" in report.splitlines()


def test_columns_of_any_case_in_json(tmp_path: Path) -> None:
    rows, report = prepared(
        tmp_path, "t.json", '[{{"Image": "0.png", "QUESTION ": "What?", "answer": "x", "n": 1}}]'
    )
    assert [row.question for row in rows] == ["What?"]
    assert "columns that are not used: n" in report.splitlines()


def test_other_names_of_splits(tmp_path: Path) -> None:
    names = ("Train", "val", "Test", "dev")
    table = "image,question,answer,split\n" + "".join(
        f"{i}.png,What?,x,{name}\n" for i, name in enumerate(names)
    )
    assert len(prepared(tmp_path, "t.csv", table)[0]) == 1
    assert len(read(tmp_path / "out" / "test.parquet")) == 1
    assert len(read(tmp_path / "out" / "validation.parquet")) == 2


@pytest.mark.parametrize(
    ("answer", "options", "expected"),
    [
        ("liver", "Lung|Liver", "Liver"),
        ("left  LUNG", "Left lung|Liver", "Left lung"),
        ("b", "Lung|Liver", "Liver"),
        ("b", "b|Liver", "b"),
        ("B. Liver", "Lung|Liver", "Liver"),
        ("B) liver", "A) Lung|B) Liver", "Liver"),
        ("Liver", "a. Lung|b. Liver", "Liver"),
        ("B", "A) Lung|B) Liver", "Liver"),
        ("A. baumannii", "E. coli|A. baumannii", "A. baumannii"),
        ("B. Lung", "A) Lung|B) Liver", None),  # letter and text disagree
        ("lung", "Lung|LUNG", None),
        ("C", "Lung|Liver", None),
    ],
)
def test_answers_find_their_option(answer: str, options: str, expected: str | None) -> None:
    found, plain, _ = answer_among(answer, tuple(options.split("|")))
    assert plain is not None
    assert (options_fault(found, plain) is None) == (expected is not None)
    assert expected in (found, None)


def test_reasons_are_counted_without_what_they_quote(tmp_path: Path) -> None:
    reasons = [
        "image 'a' is missing",
        "answer 'Crohn's disease' is not among ['a', 'b']",
        "image 'b' is missing",
    ]
    assert (
        counted_reasons([BadRecord("", r) for r in reasons])
        == "2 × image is missing, 1 × answer is not among"
    )
    rows: list[dict[str, Any]] = [
        {"image": f"{i}.png", "question": "What?", "answer": "x"} for i in range(6)
    ]
    report = prepare_dataset("folder", write_folder(tmp_path / "mine", rows), tmp_path / "out")
    assert "2 × image is nowhere below the source folder; the first: " in report


def test_the_last_line_says_that_a_data_set_was_replaced(tmp_path: Path) -> None:
    mine = write_folder(tmp_path / "mine", [{"image": "0.png", "question": "What?", "answer": "x"}])
    assert "replaced" not in prepare_dataset("folder", mine, tmp_path / "out")
    again = prepare_dataset("folder", mine, tmp_path / "out")
    assert (
        again.splitlines()[-1]
        == f"{tmp_path / 'out'}: held a data set before, which this one replaced"
    )
