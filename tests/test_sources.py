"""SLAKE, PathVQA and folders of your own, from their published layouts: column names, types,
options, splits, counts and the card."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rarl.errors import UserError
from rarl.prepare.convert import prepare_dataset
from rarl.prepare.rows import Choices
from rarl.prepare.sources import SOURCES
from tests.pictures import picture, read, write_folder, write_hub_parquet, write_zip
from tests.published_rows import slake_row, write_csv

YES_NO = "Is there a fracture?"


@pytest.fixture
def slake(tmp_path: Path) -> Path:
    folder = tmp_path / "slake"
    folder.mkdir()
    chinese = {"q_lang": "zh", "question": "图像中的肺部是健康的吗?", "answer": "不是"}
    rows = {
        "train": [
            slake_row(0, 0),
            slake_row(1, 1, answer="Liver", answer_type="OPEN", location="Abdomen"),
        ],
        "validation": [
            slake_row(0, 2, modality="MRI", answer_type="CLOSED "),
            slake_row(1, 2, **chinese),
        ],
        "test": [slake_row(0, 3)],
    }
    for split, records in rows.items():
        (folder / f"{split}.json").write_text(
            json.dumps(records, ensure_ascii=False), encoding="utf-8"
        )
    write_zip(folder / "imgs.zip", {f"imgs/xmlab{i}/source.jpg": picture(i) for i in range(4)})
    return folder


def test_slake_in_english(slake: Path, tmp_path: Path) -> None:
    report = prepare_dataset("slake", slake, tmp_path / "out")
    train, validation = (
        read(tmp_path / "out" / "train.parquet"),
        read(tmp_path / "out" / "validation.parquet"),
    )
    assert [(e.id, e.answer, e.answer_type, e.modality, e.organ) for e in train] == [
        ("slake-train-0", "No", "closed", "X-Ray", "chest lung"),
        ("slake-train-1", "Liver", "open", "X-Ray", "abdomen"),
    ]
    assert [e.images[0] for e in train] == [picture(0), picture(1)]
    assert [e.image_id for e in train] == ["xmlab0", "xmlab1"]
    assert train[0].extra == {"content_type": "Abnormality"}
    assert [(e.id, e.modality, e.answer_type) for e in validation] == [
        ("slake-validation-0", "MRI", "closed")
    ]
    assert len(read(tmp_path / "out" / "test.parquet")) == 1
    assert "5 records read, 4 in language en kept" in report
    assert "1 answer types had a stray blank" in report


def test_slake_in_chinese_and_in_both(slake: Path, tmp_path: Path) -> None:
    prepare_dataset("slake", slake, tmp_path / "zh", choices=Choices(language="zh"))
    assert [e.answer for e in read(tmp_path / "zh" / "validation.parquet")] == ["不是"]
    prepare_dataset("slake", slake, tmp_path / "all", choices=Choices(language="all"))
    assert len(read(tmp_path / "all" / "validation.parquet")) == 2
    with pytest.raises(UserError, match="SLAKE has en, zh, all"):
        prepare_dataset("slake", slake, tmp_path / "fr", choices=Choices(language="fr"))


def test_a_table_that_is_named_must_be_one_of_the_source(slake: Path, tmp_path: Path) -> None:
    prepare_dataset("slake", slake / "test.json", tmp_path / "test")
    assert [p.name for p in (tmp_path / "test").glob("*.parquet")] == ["test.parquet"]
    (slake / "test.json").rename(slake / "my.json")
    with pytest.raises(
        UserError, match=r"my\.json: holds none of train\.json, validation\.json and test\.json"
    ):
        prepare_dataset("slake", slake / "my.json", tmp_path / "out")


def test_slake_with_its_images_unpacked(slake: Path, tmp_path: Path) -> None:
    (slake / "imgs.zip").unlink()
    for number in range(4):
        (slake / "imgs" / f"xmlab{number}").mkdir(parents=True)
        (slake / "imgs" / f"xmlab{number}" / "source.jpg").write_bytes(picture(number))
    prepare_dataset("slake", slake, tmp_path / "out")
    assert [e.images[0] for e in read(tmp_path / "out" / "train.parquet")] == [
        picture(0),
        picture(1),
    ]


def test_path_vqa_in_three_splits_and_several_files(tmp_path: Path) -> None:
    data = tmp_path / "path-vqa" / "data"
    first = [(picture(0), "where is the stem cell?", "in the canals"), (picture(0), YES_NO, "yes")]
    write_hub_parquet(data / "train-00000-of-00002-abc.parquet", first)
    write_hub_parquet(data / "train-00001-of-00002-def.parquet", [(picture(1), YES_NO, "No")])
    write_hub_parquet(data / "validation-00000-of-00001-a.parquet", [(picture(2), YES_NO, "no")])
    write_hub_parquet(
        data / "test-00000-of-00001-a.parquet", [(picture(3), "what is this?", "a rash")]
    )
    prepare_dataset("path-vqa", data.parent, tmp_path / "out")
    train = read(tmp_path / "out" / "train.parquet")
    assert [(e.id, e.answer, e.answer_type) for e in train] == [
        ("path-vqa-train-0", "in the canals", "open"),
        ("path-vqa-train-1", "yes", "closed"),
        ("path-vqa-train-2", "No", "closed"),
    ]
    assert train[0].image_id == train[1].image_id != train[2].image_id
    assert [len(read(tmp_path / "out" / f"{s}.parquet")) for s in ("validation", "test")] == [1, 1]


def test_what_was_prepared_below_the_source_is_not_read_again(tmp_path: Path) -> None:
    src = tmp_path / "path-vqa"
    write_hub_parquet(src / "data" / "train-0.parquet", [(picture(0), YES_NO, "yes")])
    # left by a kill
    write_hub_parquet(src / ".out.partial-x" / "train-0.parquet", [(picture(1), YES_NO, "no")])
    for _ in range(2):
        assert "1 records read" in prepare_dataset("path-vqa", src, src / "out")


def as_json(options: Any) -> Any:
    return json.dumps(options) if isinstance(options, list) else options


def test_a_folder_of_your_own_in_every_kind_of_table(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {
            "image": "0.png",
            "question": "Is it clear?",
            "answer": "yes",
            "modality": "CT",
            "split": "train",
        },
        {
            "image": "1.png",
            "question": "Which side?",
            "answer": "left",
            "options": ["left", "right"],
        },
        {
            "image": "2.png",
            "question": "What?",
            "answer": "B",
            "options": "nodule|mass",
            "rationale": "It is large.",
        },
        {"image": "3.png", "question": "How many?", "answer": 3, "split": "test"},
    ]
    folder = write_folder(tmp_path / "mine", rows)
    expected = None
    for kind in ("jsonl", "json", "csv", "parquet"):
        for old in folder.glob("table.*"):
            old.unlink()
        flat = [row | {"options": as_json(row.get("options"))} for row in rows]
        columns = ("image", "question", "answer", "options", "rationale", "modality", "split")
        full = [{key: row.get(key) for key in columns} for row in flat]
        if kind == "csv":
            write_csv(folder / "table.csv", full)
        elif kind == "parquet":
            table = [{**row, "answer": str(row["answer"])} for row in full]
            pq.write_table(pa.Table.from_pylist(table), folder / "table.parquet")
        else:
            text = (
                json.dumps(rows)
                if kind == "json"
                else "".join(json.dumps(row) + "\n" for row in rows)
            )
            (folder / f"table.{kind}").write_text(text)
        report = prepare_dataset("folder", folder, tmp_path / kind)
        found = read(tmp_path / kind / "train.parquet") + read(tmp_path / kind / "test.parquet")
        assert [(e.answer, e.answer_type, e.options) for e in found] == [
            ("yes", "closed", None),
            ("left", "choice", ("left", "right")),
            ("mass", "choice", ("nodule", "mass")),
            ("3", "open", None),
        ], kind
        assert (found[0].modality, found[2].rationale) == ("CT", "It is large.")
        assert "1 answers were an option's letter" in report
        found = [replace(one, id="") for one in found]  # the ids tell the lines
        expected = expected or found
        assert found == expected, kind


def test_numbers_are_the_same_text_as_answer_and_as_option(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"image": "0.png", "question": "Which grade?", "answer": 1.0, "options": [1.0, 2.0]},
        {"image": "1.png", "question": "Which grade?", "answer": 2, "options": [1.0, "2", 2.5]},
    ]
    prepare_dataset("folder", write_folder(tmp_path / "mine", rows), tmp_path / "out")
    found = read(tmp_path / "out" / "train.parquet")
    assert [(e.answer, e.options) for e in found] == [("1", ("1", "2")), ("2", ("1", "2", "2.5"))]


def test_the_card_says_what_the_data_is(slake: Path, tmp_path: Path) -> None:
    prepare_dataset("slake", slake, tmp_path / "out")
    card = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert (card["source"], card["licence"], card["records"]) == ("slake", "CC-BY-4.0", 5)
    assert card["choices"] == {"language": "en"}
    assert card["left_out"] == {"in language en": 1}
    assert card["splits"]["train"] == {
        "questions": 2,
        "images": 2,
        "answer_types": {"closed": 1, "open": 1},
        "modalities": {"X-Ray": 2},
        "organs": {"chest lung": 1, "abdomen": 1},
        "rationales": 0,
        "with_1_facts": 0,
        "with_3_facts": 0,
    }
    assert {file["path"] for file in card["files"]} == {
        "train.parquet",
        "validation.parquet",
        "test.parquet",
    }
    assert [(pair["between"], pair["and"]) for pair in card["checks"]["leaks"]] == [
        ("train", "validation"),
        ("train", "test"),
        ("validation", "test"),
    ]
    prepare_dataset("slake", slake, tmp_path / "again")
    assert (tmp_path / "again" / "dataset.json").read_bytes() == (
        tmp_path / "out" / "dataset.json"
    ).read_bytes()


def test_choices_that_a_source_would_ignore_are_refused(slake: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--images says nothing to slake"):
        prepare_dataset("slake", slake, tmp_path / "out", choices=Choices(images="first"))
    assert set(SOURCES) == {
        "vqa-rad",
        "slake",
        "path-vqa",
        "pmc-vqa",
        "omnimedvqa",
        "medxpertqa",
        "silvar-med",
        "vqa-med-2019",
        "folder",
        "text",
    }
