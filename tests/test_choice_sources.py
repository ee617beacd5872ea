"""Sources whose questions have options, in their published layouts: PMC-VQA, OmniMedVQA and
MedXpertQA."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rarl.errors import UserError
from rarl.prepare.convert import prepare_dataset
from rarl.prepare.rows import Choices
from tests.pictures import picture, read, write_zip
from tests.published_rows import CHOICES, omni_row, write_csv


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
    assert train[1].images[0] == picture(1)
    assert "LEAK: test: 1 of its 1 images are in train" in report
    prepare_dataset("pmc-vqa", pmc, tmp_path / "v2", choices=Choices(version=2))
    assert [(e.answer, e.images[0]) for e in read(tmp_path / "v2" / "train.parquet")] == [
        ("CT", picture(10)),
        ("PET", picture(11)),
    ]
    assert [e.images[0] for e in read(tmp_path / "v2" / "test.parquet")] == [picture(19)]
    for name in ("train.csv", "test.csv"):
        (pmc / name).unlink()
    # no choice is needed where only one version is there
    prepare_dataset("pmc-vqa", pmc, tmp_path / "only")
    assert read(tmp_path / "only" / "test.parquet") == read(tmp_path / "v2" / "test.parquet")


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
    assert found[1].images[0] == picture(2, "PNG")


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
    report = prepare_dataset("medxpertqa", medxpertqa, tmp_path / "all")
    found = read(tmp_path / "all" / "test.parquet")
    assert [(e.id, e.question, e.answer, e.organ) for e in found] == [
        ("medxpertqa-MM-2", "What is the best treatment?", "Splint", "Skeletal"),
        ("medxpertqa-MM-3", "What is the best treatment?", "Splint", "Skeletal"),
    ]
    assert found[0].options == ("Rest", "Surgery", "Radiotherapy", "Splint", "None")
    assert found[0].extra == {"medical_task": "Treatment", "question_type": "Reasoning"}
    assert found[0].images == (picture(2), picture(4, "PNG", (90, 45)))
    assert found[1].images == (picture(3),)
    assert [e.id for e in read(tmp_path / "all" / "validation.parquet")] == ["medxpertqa-MM-1"]
    assert "1 questions have several images, all taken, in order" in report

    choices = Choices(images="first")
    report = prepare_dataset("medxpertqa", medxpertqa, tmp_path / "first", choices=choices)
    assert "1 questions have several images, of which the first is taken" in report
    found = read(tmp_path / "first" / "test.parquet")
    assert [e.images for e in found] == [(picture(2),), (picture(3),)]
