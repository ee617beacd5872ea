"""Every source converts its published layout: column names, types, options, splits and counts."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rarl.errors import UserError
from rarl.prepare.convert import prepare_dataset
from rarl.prepare.rows import Choices
from rarl.prepare.sources import SOURCES
from tests.pictures import picture, read, write_folder, write_hub_parquet, write_zip

YES_NO = "Is there a fracture?"


def slake_row(qid: int, image: int, **changes: Any) -> dict[str, Any]:
    return {
        "img_id": image,
        "img_name": f"xmlab{image}/source.jpg",
        "question": "Is the lung healthy?",
        "answer": "No",
        "q_lang": "en",
        "location": "Chest_lung",
        "modality": "X-Ray",
        "answer_type": "CLOSED",
        "base_type": "vqa",
        "content_type": "Abnormality",
        "triple": ["vhead", "_", "_"],
        "qid": qid,
    } | changes


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
    assert [e.image for e in train] == [picture(0), picture(1)]
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
    assert [e.image for e in read(tmp_path / "out" / "train.parquet")] == [picture(0), picture(1)]


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


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


CHOICES = {
    "Choice A": " A:CT ",
    "Choice B": " B:MRI ",
    "Choice C": " C:X-ray, lateral ",
    "Choice D": " D:PET ",
}


@pytest.fixture
def pmc(tmp_path: Path) -> Path:
    """Both versions, as the hub's repository holds them."""
    folder = tmp_path / "pmc"
    folder.mkdir()
    asked = {"Question": "What kind of image is this?"}
    v1 = [
        {
            "Figure_path": f"PMC{i}_F1.jpg",
            **asked,
            "Answer": answer,
            **CHOICES,
            "Answer_label": label,
        }
        for i, (answer, label) in enumerate([("MRI", "B"), ("X-ray, lateral", "C")])
    ]
    v2 = [
        {
            "index": i,
            "Figure_path": f"PMC{i}_F1_0.jpg",
            "Caption": "A, b",
            **asked,
            **CHOICES,
            "Answer": letter,
        }
        | {"split": "train"}
        for i, letter in enumerate("AD")
    ]
    write_csv(folder / "train.csv", v1)
    write_csv(folder / "test.csv", v1[:1])
    write_csv(folder / "train_2.csv", v2)
    write_csv(folder / "test_2.csv", [v2[0] | {"split": "test", "Figure_path": "PMC9_F1_0.jpg"}])
    write_zip(folder / "images.zip", {f"images/PMC{i}_F1.jpg": picture(i) for i in range(2)})
    write_zip(
        folder / "images_2.zip", {f"figures/PMC{i}_F1_0.jpg": picture(10 + i) for i in (0, 1, 9)}
    )
    return folder


def test_pmc_vqa_in_both_versions(pmc: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="both versions of PMC-VQA; choose with --version 1 or --version 2"
    ):
        prepare_dataset("pmc-vqa", pmc, tmp_path / "out")
    report = prepare_dataset("pmc-vqa", pmc, tmp_path / "v1", choices=Choices(version=1))
    train = read(tmp_path / "v1" / "train.parquet")
    assert [(e.id, e.answer, e.answer_type) for e in train] == [
        ("pmc-vqa-1-train-0", "MRI", "choice"),
        ("pmc-vqa-1-train-1", "X-ray, lateral", "choice"),
    ]
    assert train[0].options == ("CT", "MRI", "X-ray, lateral", "PET")
    assert train[1].image == picture(1)
    assert "LEAK: test: 1 of its 1 images are in train" in report
    prepare_dataset("pmc-vqa", pmc, tmp_path / "v2", choices=Choices(version=2))
    assert [(e.answer, e.image) for e in read(tmp_path / "v2" / "train.parquet")] == [
        ("CT", picture(10)),
        ("PET", picture(11)),
    ]
    assert [e.image for e in read(tmp_path / "v2" / "test.parquet")] == [picture(19)]
    for name in ("train.csv", "test.csv"):
        (pmc / name).unlink()
    # no choice is needed where only one version is there
    prepare_dataset("pmc-vqa", pmc, tmp_path / "only")
    assert read(tmp_path / "only" / "test.parquet") == read(tmp_path / "v2" / "test.parquet")


def omni_row(number: int, options: list[str], answer: str, modality: str) -> dict[str, Any]:
    named = {f"option_{letter}": option for letter, option in zip("ABCD", options, strict=False)}
    return {
        "dataset": "ACRIMA",
        "question_id": f"ACRIMA_{number:04d}",
        "question_type": "Modality Recognition",
        "question": "What imaging technique was used?",
        "gt_answer": answer,
        "image_path": f"Images/ACRIMA/Im{number}.png",
        **named,
        "modality_type": modality,
    }


def test_what_macos_adds_to_archives_and_disks_is_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "omni"
    folder.mkdir()
    rows = [omni_row(1, ["Yes", "No"], "No", "CT")]
    contents = {"O/Q.json": json.dumps(rows).encode(), "O/Images/ACRIMA/Im1.png": picture(1, "PNG")}
    beside = {
        "__MACOSX/O/._Q.json": b"\x00\x05\x16\xff",
        "__MACOSX/O/Images/ACRIMA/._Im1.png": b"\x00",
    }
    write_zip(folder / "O.zip", contents | beside)
    (folder / "._Q.json").write_bytes(b"\x00\x05\x16\xff")
    prepare_dataset("omnimedvqa", folder, tmp_path / "out")
    assert len(read(tmp_path / "out" / "test.parquet")) == 1


@pytest.mark.parametrize("packed", [True, False])
def test_omnimedvqa_packed_or_not(tmp_path: Path, packed: bool) -> None:
    rows = [
        omni_row(
            1, ["Fundus photograph", "CT", "MRI", "PET"], "Fundus photograph", "Fundus Photography"
        ),
        omni_row(2, ["Yes", "No"], "No", "MR (Mag-netic Resonance Imaging)"),
    ]
    contents = {
        "OmniMedVQA/QA_information/Open-access/ACRIMA.json": json.dumps(rows).encode(),
        "OmniMedVQA/Images/ACRIMA/Im1.png": picture(1, "PNG"),
        "OmniMedVQA/Images/ACRIMA/Im2.png": picture(2, "PNG"),
    }
    folder = tmp_path / "omni"
    folder.mkdir()
    if packed:
        write_zip(folder / "OmniMedVQA.zip", contents)
    else:
        for name, content in contents.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    prepare_dataset("omnimedvqa", folder, tmp_path / "out")
    found = read(tmp_path / "out" / "test.parquet")
    assert [(e.id, e.answer, e.answer_type, e.modality) for e in found] == [
        ("omnimedvqa-ACRIMA_0001", "Fundus photograph", "choice", "Fundus Photography"),
        ("omnimedvqa-ACRIMA_0002", "No", "choice", "MR (Mag-netic Resonance Imaging)"),
    ]
    assert found[1].options == ("Yes", "No")
    assert found[1].extra == {"question_type": "Modality Recognition"}
    assert found[1].image == picture(2, "PNG")


@pytest.fixture
def medxpertqa(tmp_path: Path) -> Path:
    folder = tmp_path / "medxpertqa"
    for part in ("MM", "Text"):
        (folder / part).mkdir(parents=True)

    def row(number: int, images: list[str]) -> str:
        options = {"A": "Rest", "B": "Surgery", "C": "Radiotherapy", "D": "Splint", "E": "None"}
        listed = " ".join(f"({letter}) {option}" for letter, option in options.items())
        record = {
            "id": f"MM-{number}",
            "question": f"What is the best treatment?\nAnswer Choices: {listed}",
            "options": options,
            "label": "D",
            "images": images,
            "medical_task": "Treatment",
            "body_system": "Skeletal",
            "question_type": "Reasoning",
        }
        return json.dumps(record) + "\n"

    (folder / "MM" / "dev.jsonl").write_text(row(1, ["MM-1-a.jpeg"]))
    (folder / "MM" / "test.jsonl").write_text(
        row(2, ["MM-2-a.jpeg", "MM-2-b.png"]) + row(3, ["MM-3-a.jpeg"])
    )
    (folder / "Text" / "test.jsonl").write_text(
        '{"id": "Text-1", "question": "?", "options": {}, "label": "A"}\n'
    )
    images = {f"images/MM-{i}-a.jpeg": picture(i) for i in (1, 2, 3)}
    write_zip(folder / "images.zip", images | {"images/MM-2-b.png": picture(4, "PNG", (90, 45))})
    return folder


def test_medxpertqa_and_its_several_images(medxpertqa: Path, tmp_path: Path) -> None:
    report = prepare_dataset("medxpertqa", medxpertqa, tmp_path / "first")
    found = read(tmp_path / "first" / "test.parquet")
    assert [(e.id, e.question, e.answer, e.organ) for e in found] == [
        ("medxpertqa-MM-2", "What is the best treatment?", "Splint", "Skeletal"),
        ("medxpertqa-MM-3", "What is the best treatment?", "Splint", "Skeletal"),
    ]
    assert found[0].options == ("Rest", "Surgery", "Radiotherapy", "Splint", "None")
    assert found[0].extra == {"medical_task": "Treatment", "question_type": "Reasoning"}
    assert found[0].image == picture(2)
    assert [e.id for e in read(tmp_path / "first" / "validation.parquet")] == ["medxpertqa-MM-1"]
    assert "1 questions have several images; the first is taken" in report

    report = prepare_dataset(
        "medxpertqa", medxpertqa, tmp_path / "all", choices=Choices(images="all")
    )
    assert "1 questions have several images; all are set side by side in one" in report
    joined, alone = read(tmp_path / "all" / "test.parquet")
    whole = np.asarray(Image.open(io.BytesIO(joined.image)))
    assert whole.shape == (45, 30 + 8 + 90, 3)  # 60x90 at half its size, a gap, 90x45
    right = np.asarray(Image.open(io.BytesIO(picture(4, "PNG", (90, 45)))).convert("RGB"))
    assert (whole[:, 38:] == right).all()
    assert alone.image == picture(3)


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
        prepare_dataset("slake", slake, tmp_path / "out", choices=Choices(images="all"))
    assert set(SOURCES) == {
        "vqa-rad",
        "slake",
        "path-vqa",
        "pmc-vqa",
        "omnimedvqa",
        "medxpertqa",
        "folder",
    }
