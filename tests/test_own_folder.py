"""Tables of your own as people and spreadsheets write them: what is understood, and what the report
says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from rarl.data.check import options_fault
from rarl.errors import UserError
from rarl.prepare.convert import prepare_dataset
from rarl.prepare.report import counted_reasons
from rarl.prepare.rows import BadRecord, Choices
from rarl.prepare.sources.folder import answer_among, read_options
from rarl.schema import Example
from tests.pictures import read, write_folder


def prepared(
    tmp_path: Path, name: str, table: str, encoding: str = "utf-8", **asked: Any
) -> tuple[list[Example], str]:
    """The training rows of a table beside four pictures, and the report."""
    (write_folder(tmp_path / "mine", []) / "table.jsonl").unlink()
    written = table.format(folder=tmp_path / "mine")
    (tmp_path / "mine" / name).write_text(written, encoding=encoding)
    report = prepare_dataset("folder", tmp_path / "mine", tmp_path / "out", **asked)
    return read(tmp_path / "out" / "train.parquet"), report


def skipped(tmp_path: Path) -> list[str]:
    """The places of the rows that were left out, without the folder."""
    lines = (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()
    return [json.loads(line)["where"].removeprefix(f"{tmp_path}/mine/") for line in lines]


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
    assert (
        "further columns that go along: age, ward; take out of the table what may name a patient"
        in report.splitlines()
    )


def test_columns_of_any_case_in_json(tmp_path: Path) -> None:
    rows, report = prepared(
        tmp_path, "t.json", '[{{"Image": "0.png", "QUESTION ": "What?", "answer": "x", "n": 1}}]'
    )
    assert [row.question for row in rows] == ["What?"]
    assert (
        "further columns that go along: n; take out of the table what may name a patient"
        in report.splitlines()
    )


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


@pytest.mark.parametrize(
    ("header", "proposed"),
    [
        (
            "Image,Frage,ANSWER",
            "column 'question' is missing (it has: Image, Frage, ANSWER); name it with --map "
            "question=COLUMN",
        ),
        (
            "Image Name,question,answer",
            "did you mean 'Image Name'? Then add --map image='Image Name'",
        ),
        ("fileName,question,answer", "did you mean 'fileName'? Then add --map image=fileName"),
        (
            "imgae,Question text,Label",
            "did you mean 'imgae', 'Question text', 'Label'? Then add --map image=imgae "
            "--map question='Question text' --map answer=Label",
        ),
        ("scan,question,answer", "name it with --map image=COLUMN"),
    ],
)
def test_near_columns_are_proposed_and_the_proposal_works(
    header: str, proposed: str, tmp_path: Path
) -> None:
    table = f"{header}\n0.png,What?,x\n"
    with pytest.raises(UserError) as caught:
        prepared(tmp_path, "t.csv", table)
    assert str(caught.value).endswith(proposed)
    mapped = tuple(zip(("image", "question", "answer"), header.split(","), strict=True))
    choices = Choices(map=tuple(f"{ours}={theirs}" for ours, theirs in mapped))
    [row] = prepared(tmp_path, "t.csv", table, choices=choices)[0]
    assert (row.question, row.answer) == ("What?", "x")


def test_a_near_name_of_an_optional_column_is_told(tmp_path: Path) -> None:
    table = "image,question,answer,Option,ward\n0.png,What?,b,a|b,3\n"
    rows, report = prepared(tmp_path, "t.csv", table)
    assert (
        "1 rows are read without 'options': if 'Option' is that, add --map options=Option" in report
    )
    assert rows[0].answer_type == "open"
    rows, report = prepared(tmp_path, "t.csv", table, choices=Choices(map=("options=option",)))
    assert (rows[0].options, rows[0].extra) == (("a", "b"), {"ward": "3"})
    assert "read without" not in report


def test_a_mapped_column_takes_the_place_of_the_tables_own(tmp_path: Path) -> None:
    table = "image,question,answer,corrected\n0.png,What?,x,y\n"
    [row] = prepared(tmp_path, "t.csv", table, choices=Choices(map=("answer=corrected",)))[0]
    assert (row.answer, row.extra) == ("y", {})
    swapped = Choices(map=("question=answer", "answer=question"))
    [row] = prepared(tmp_path, "t.csv", table, choices=swapped)[0]
    assert (row.question, row.answer) == ("x", "What?")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("image",), "write it as in --map image='Image Name'"),
        (("imge=x",), "did you mean 'image'?"),
        (("image=a", "image=b"), "'image' is mapped twice"),
        (("image=picure",), "has no column 'picure' .*did you mean --map image=Picture?"),
    ],
)
def test_a_wrong_map_is_named(given: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        prepared(tmp_path, "t.csv", "Picture,question,answer\n", choices=Choices(map=given))


@pytest.mark.parametrize(
    ("options", "answer", "expected"),
    [
        ("left; right", "B", ("left", "right")),
        ("upper lobe, left; lower lobe, left;", "A", ("upper lobe, left", "lower lobe, left")),
        ("left\nright", "B", ("left", "right")),
        ("left, right, both", "Right", ("left", "right", "both")),
        ("A) left, B) right", "B", ("A) left", "B) right")),
        ("A) left lung B) right lung C) both", "B", ("A) left lung", "B) right lung", "C) both")),
        ("A. baumannii", "A. baumannii", None),
        ("A) left C) right", "C", None),
        ("['left', \"Crohn's disease\"]", "left", ("left", "Crohn's disease")),
        ("[1, 2.5]", "1", ("1", "2.5")),
        ("left, right", "B", None),  # B may be the second option, or there is one alone
        ("mass, left, mass, right", "left", None),
        ("left, right, and both", "left", None),
        ("upper lobe, left", "lower lobe", None),
        ("['left' 'right']", "left", None),  # NumPy's, of which Python would make one text
        ("[left, right]", "left", None),
    ],
)
def test_options_are_read_where_it_is_clear(
    options: str, answer: str, expected: tuple[str, ...] | None
) -> None:
    if expected is None:
        with pytest.raises(ValueError, match="options"):
            read_options(options, answer)
    else:
        assert read_options(options, answer) == expected


def test_rows_are_named_as_an_editor_counts_them(tmp_path: Path) -> None:
    """Below a cell of two lines and an empty line, the lines of an editor and the rows of a
    spreadsheet part."""
    table = (
        "image,question,answer\n0.png,What?,x\nno.png,What?,x\n"
        '1.png,"What is it,\n and where?",x\n\nnone.png,What?,x\n2.png,What?,x\n'
    )
    rows, _ = prepared(tmp_path, "t.csv", table)
    assert skipped(tmp_path) == ["t.csv: line 3", "t.csv: line 7 (row 6 of a spreadsheet)"]
    assert [row.id for row in rows] == ["row-2", "row-4", "row-8"]
    with pytest.raises(UserError, match="the row that begins in line 4: not valid CSV"):
        prepared(tmp_path, "t.csv", table.replace('where?"', "where?"))


def workbook(path: Path, **sheets: list[list[Any]]) -> None:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for title, rows in sheets.items():
        sheet = book.create_sheet(title)
        for row in rows:
            sheet.append(row)
    path.parent.mkdir(exist_ok=True)
    book.save(path)


def test_a_workbook_is_read_from_the_sheet_with_the_columns(tmp_path: Path) -> None:
    (write_folder(tmp_path / "mine", []) / "table.jsonl").unlink()
    table: list[list[Any]] = [
        ["Image", "question", "answer", "options", None, "age"],
        ["0.png", "Which grade?", 2, "1;2", None, 61],
        [],
        ["no.png", "What?", "x"],
        ["1.png", "Ist das normal?", "Ja", None, None, 7.5],
    ]
    path = tmp_path / "mine" / "t.xlsx"
    workbook(path, About=[["made by", "us"]], Data=table)
    (tmp_path / "mine" / "~$t.xlsx").write_bytes(b"of the open workbook")
    prepare_dataset("folder", tmp_path / "mine", tmp_path / "out")
    first, second = read(tmp_path / "out" / "train.parquet")
    assert (first.answer, first.options, first.extra) == ("2", ("1", "2"), {"age": "61"})
    assert (second.answer_type, second.extra, second.id) == ("closed", {"age": "7.5"}, "row-5")
    assert skipped(tmp_path) == ["t.xlsx: sheet 'Data': row 4"]
    workbook(path, One=table, Two=table)
    with pytest.raises(UserError, match="the sheets 'One', 'Two' all have the columns"):
        prepare_dataset("folder", tmp_path / "mine", tmp_path / "out")


def test_a_table_in_windows_1252_is_read_and_the_report_says_so(tmp_path: Path) -> None:
    rows, report = prepared(
        tmp_path, "t.csv", "image;question;answer\n0.png;Größe?;“groß” – 5 µm\n", "cp1252"
    )
    assert (rows[0].question, rows[0].answer) == ("Größe?", "“groß” – 5 µm")
    assert "1 rows are of a table in Windows-1252 (cp1252), not UTF-8: if 'Größe' is not" in report


def test_yes_and_no_of_other_languages_are_closed(tmp_path: Path) -> None:
    answers = ("Ja", "nein.", "oui", "Sì", "não", "nee", "ДА", "lung", "no lesion")
    table = "image,question,answer\n" + "".join(f"0.png,{a}?,{a}\n" for a in answers)
    rows, _ = prepared(tmp_path, "t.csv", table)
    assert [row.answer_type for row in rows] == ["closed"] * 7 + ["open"] * 2


DOUBTFUL = (
    "image,question,answer,options\n0.png,What?,x,\n0.png,what ?,X,\n1.png,Where?,left,\n"
    "1.png,Where?,right,\n2.png,Which?,a,a|b\n2.png,Which?,c,c|d\n3.png,What?,x,\n"
)


def test_repeated_and_contradicting_rows_are_listed(tmp_path: Path) -> None:
    """Other options make another question."""
    rows, report = prepared(tmp_path, "t.csv", DOUBTFUL)
    assert len(rows) == 7
    table = tmp_path / "mine" / "t.csv"
    listed = (tmp_path / "out" / "doubts.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in listed] == [
        {"where": f"{table}: line 3", "reason": f"repeats {table}: line 2"},
        {
            "where": f"{table}: line 4",
            "reason": f"contradicts {table}: line 5: 'left' here, 'right' there",
        },
        {
            "where": f"{table}: line 5",
            "reason": f"contradicts {table}: line 4: 'right' here, 'left' there",
        },
    ]
    assert report.splitlines()[-1] == "--drop repeats,contradictions leaves them out"


@pytest.mark.parametrize(
    ("drop", "kept", "told"),
    [
        (("repeats",), [2, 4, 5, 6, 7, 8], "1 rows that repeat another one were dropped"),
        (("contradictions",), [2, 3, 6, 7, 8], "2 rows that contradict another one were dropped"),
        (("repeats", "contradictions"), [2, 6, 7, 8], "1 rows that repeat another one were"),
    ],
)
def test_they_are_dropped_where_that_is_asked_for(
    drop: tuple[str, ...], kept: list[int], told: str, tmp_path: Path
) -> None:
    rows, report = prepared(tmp_path, "t.csv", DOUBTFUL, drop=drop)
    assert [row.id for row in rows] == [f"row-{line}" for line in kept]
    assert told in report
    checks = json.loads((tmp_path / "out" / "dataset.json").read_text())["checks"]
    assert {kind for kind in ("repeats", "contradictions") if not checks[kind]["train"]} == {*drop}


def test_an_unknown_kind_to_drop_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--drop 'doubles' is unknown; known are: repeats"):
        prepared(tmp_path, "t.csv", DOUBTFUL, drop=("doubles",))


OWN_SOURCE = """
from rarl.prepare.rows import Record

def read(files, choices):
    for line in files.read_text("list.txt").splitlines():
        image, question, answer = line.split("/")
        shown = (files.image(image),)
        yield Record(line, image, shown, question, answer, extra={{"site": "north"}})

def wrong(files, choices):
    yield {{"image": "0.png"}}

def broken(files, choices):
    yield 1 / 0

def greedy(files):
    yield
"""


def test_a_source_by_import_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_source.py").write_text(OWN_SOURCE.format())
    folder = write_folder(tmp_path / "mine", [])
    (folder / "list.txt").write_text("0.png/Is it clear?/no\n1.png/What?/mass\n")
    prepare_dataset("own_source:read", folder, tmp_path / "out")
    rows = read(tmp_path / "out" / "train.parquet")
    assert [(row.answer_type, row.extra) for row in rows] == [
        ("closed", {"site": "north"}),
        ("open", {"site": "north"}),
    ]
    for name, message in {
        "wrong": "source 'own_source:wrong' gave a dict; known are Record",
        "broken": r"own_source.py, line 14: ZeroDivisionError: division by zero$",
        "greedy": r"no function\(files, choices\) that yields records: too many",
        "absent": "'own_source:absent' cannot be imported",
    }.items():
        with pytest.raises(UserError, match=message):
            prepare_dataset(f"own_source:{name}", folder, tmp_path / "none")


@pytest.mark.parametrize("word", ["nan", "NULL", "<NA>", "#N/A"])
def test_words_for_a_missing_value_are_empty_in_optional_cells(tmp_path: Path, word: str) -> None:
    optional = "image_2,image_labels,frame,id,options,boxes,facts,split,patient,rationale,site,ward"
    gaps = ",".join([word] * len(optional.split(",")))
    table = f"image,question,answer,{optional}\n0.png,What is it?,mass,{gaps}\n"
    (row,), report = prepared(tmp_path, "t.csv", table)
    assert (row.patient, row.rationale, row.site) == (None, None, None)
    assert (row.facts or (), row.image_labels, row.options, row.boxes) == ((), None, None, None)
    assert not row.extra or row.extra["ward"] is None
    assert "cells such as 'nan' for a missing value, which are read as empty" in report
