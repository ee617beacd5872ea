"""The sources of the paper's comparison in their published layouts, made here: VQA-Med 2019, and
SilVar-Med with its explanations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rarl.errors import UserError
from rarl.prepare.convert import prepare_dataset
from rarl.prepare.rows import Choices
from rarl.prepare.sources.vqa_med import accepted
from tests.pictures import picture, read, write_zip
from tests.published_rows import slake_row

# VQA-Med 2019


@pytest.fixture
def vqa_med(tmp_path: Path) -> Path:
    """All three folders as they are unpacked; the test images in an archive of their own. A name
    is in two folders, as file names are not unique across them."""
    folder = tmp_path / "VQA-Med-2019"
    for name, split, first in (("Training", "train", 0), ("Validation", "val", 2)):
        part = folder / f"ImageClef-2019-VQA-Med-{name}"
        (part / f"{split.capitalize()}_images").mkdir(parents=True)
        (part / "QAPairsByCategory").mkdir()
        ids = [f"synpic{first + i}" for i in range(2)]
        for number, id_ in enumerate([*ids, "synpic9"], start=first):
            path = part / f"{split.capitalize()}_images" / f"{id_}.jpg"
            path.write_bytes(picture(number + 10 * first))
        pairs = [
            f"{ids[0]}|what modality is shown?|ct - gi & iv contrast",
            f"{ids[0]}|is there an abnormality  in the image?|yes",
            f"{ids[1]}|what plane is seen?|axial",
        ]
        (part / f"All_QA_Pairs_{split}.txt").write_text("\n".join(pairs) + "\n")
        (part / f"{split}_ImageIDs.txt").write_text("\n".join(ids))
        for kind, pair in zip(("C1_Modality", "C4_Abnormality"), pairs, strict=False):
            (part / "QAPairsByCategory" / f"{kind}_{split}.txt").write_text(pair + "\n")
    test = folder / "VQAMed2019Test"
    test.mkdir()
    lines = [
        "synpic9|abnormality|what is abnormal?|(angioinvasive aspergillosis with) emboli",
        "synpic9|organ|what organ is this?|spine and contents#skull and contents",
        "synpic8|plane|in what plane?",
    ]
    (test / "VQAMed2019_Test_Questions_w_Ref_Answers.txt").write_text("\n".join(lines))
    (test / "VQAMed2019_Test_Questions.txt").write_text("synpic9|what is abnormal?\n")
    (test / "README-VQA-Med-2019-TestSet.txt").write_text("VQA-Med-2019: Test Set\n")
    write_zip(
        test / "VQAMed2019_Test_Images.zip", {"VQAMed2019_Test_Images/synpic9.jpg": picture(7)}
    )
    return folder


def test_vqa_med_in_three_splits_with_categories(vqa_med: Path, tmp_path: Path) -> None:
    report = prepare_dataset("vqa-med-2019", vqa_med, tmp_path / "out")
    train = read(tmp_path / "out" / "train.parquet")
    assert [(e.id, e.answer, e.answer_type, e.extra.get("category")) for e in train] == [
        ("vqa-med-2019-train-0", "ct - gi & iv contrast", "open", "modality"),
        ("vqa-med-2019-train-1", "yes", "closed", "abnormality"),
        ("vqa-med-2019-train-2", "axial", "open", None),
    ]
    assert train[1].question == "is there an abnormality in the image?"
    assert train[0].also_right is None
    validation = read(tmp_path / "out" / "validation.parquet")
    assert [e.image_id for e in validation] == ["synpic2", "synpic2", "synpic3"]
    test = read(tmp_path / "out" / "test.parquet")
    assert [(e.answer, e.also_right, e.extra["category"]) for e in test] == [
        ("(angioinvasive aspergillosis with) emboli", ("emboli",), "abnormality"),
        ("spine and contents", ("skull and contents",), "organ"),
    ]
    assert [e.images[0] for e in test] == [picture(7)] * 2
    assert "2 answers may be given in more than one way" in report
    assert "has 3 fields between bars, not 4: image, category, question, answer" in report
    assert "line 3" in report


def test_vqa_med_in_archives_as_they_are_downloaded(vqa_med: Path, tmp_path: Path) -> None:
    src = tmp_path / "downloaded"
    src.mkdir()
    for part in vqa_med.iterdir():
        files = {str(p.relative_to(vqa_med)): p for p in part.rglob("*") if p.is_file()}
        write_zip(src / f"{part.name}.zip", {name: p.read_bytes() for name, p in files.items()})
    with pytest.raises(
        UserError, match=r"VQAMed2019Test\.zip: .*Images\.zip: an archive in an archive; unpack"
    ):
        prepare_dataset("vqa-med-2019", src, tmp_path / "out")
    (src / "VQAMed2019Test.zip").unlink()
    prepare_dataset("vqa-med-2019", src, tmp_path / "out")
    splits = sorted(path.name for path in (tmp_path / "out").glob("*.parquet"))
    assert splits == ["train.parquet", "validation.parquet"]


@pytest.mark.parametrize(
    ("answer", "all_of_them"),
    [
        ("axial", ["axial"]),
        ("a#b # c", ["a", "b", "c"]),
        ("ct w/contrast (iv)", ["ct w/contrast (iv)", "ct w/contrast"]),
        ("(iatrogenic) air#gas", ["(iatrogenic) air", "air", "gas"]),
        ("mass (with fat) left", ["mass (with fat) left", "mass left"]),
        ("(all optional)", ["(all optional)"]),
        ("a#", ["a"]),
    ],
)
def test_the_answers_that_count(answer: str, all_of_them: list[str]) -> None:
    assert accepted(answer) == all_of_them


def test_a_folder_without_vqa_meds_files_is_told(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("a|b|c")
    with pytest.raises(UserError, match=r"holds none of All_QA_Pairs_train\.txt"):
        prepare_dataset("vqa-med-2019", tmp_path, tmp_path / "out")


# SilVar-Med

HEALTHY = "No, the lung appears abnormal. There is an opacity in the left lobe."
CANCER = "The image indicates lung cancer, by growths in the tissue. Nodules may be malignant."


@pytest.fixture
def silvar(tmp_path: Path) -> Path:
    """As the authors' program reads it: a folder of images and a JSON file for each split, some
    rows with lists of questions and answers."""
    folder = tmp_path / "Abnormal_Ours"
    rows: dict[str, list[dict[str, Any]]] = {
        "train": [
            {"img_name": "xmlab0.jpg", "question": "Is the lung healthy?", "answer": HEALTHY},
            {
                "img_name": "xmlab1.jpg",
                "question": ["What diseases are included?", "Is the lung healthy?"],
                "answer": [CANCER, "The lung is not healthy, since nodules are seen."],
            },
            {"img_name": "xmlab0.jpg", "question": ["a", "b"], "answer": ["c"]},
        ],
        "test": [{"img_name": "xmlab2_q1.jpg", "question": "Is it healthy?", "answer": HEALTHY}],
    }
    for split, records in rows.items():
        images = folder / split / f"imgs_{split}_abnormal"
        images.mkdir(parents=True)
        (folder / split / "dataset_unique_abnormal.json").write_text(json.dumps(records))
        for number in (0, 1) if split == "train" else (2,):
            (images / f"xmlab{number}.jpg").write_bytes(picture(number))
        (folder / split / "audio_wav").mkdir()
        (folder / split / "audio_wav" / "xmlab0.wav").write_bytes(b"RIFF")
    return folder


def test_explanations_become_rationales(silvar: Path, tmp_path: Path) -> None:
    report = prepare_dataset("silvar-med", silvar, tmp_path / "out")
    train = read(tmp_path / "out" / "train.parquet")
    assert [(e.answer, e.answer_type, e.rationale) for e in train] == [
        ("No", "closed", "The lung appears abnormal. There is an opacity in the left lobe."),
        ("The image indicates lung cancer, by growths in the tissue.", "open", CANCER),
        (
            "The lung is not healthy, since nodules are seen.",
            "open",
            "The lung is not healthy, since nodules are seen.",
        ),
    ]
    assert [e.images[0] for e in train] == [picture(0), picture(1), picture(1)]
    test = read(tmp_path / "out" / "test.parquet")
    assert [(e.images[0], e.answer) for e in test] == [(picture(2), "No")]
    assert "2 answers are the first sentence of their explanation" in report
    assert "has lists of questions and answers of different lengths" in report
    card = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert card["splits"]["train"]["rationales"] == 3


def test_short_answers_come_from_slake_by_question_and_image(silvar: Path, tmp_path: Path) -> None:
    """The same images in another encoding, and the same question about another image, whose answer
    is not taken."""
    slake = tmp_path / "slake"
    (slake / "imgs").mkdir(parents=True)
    asked = "what diseases are included"
    rows = [
        slake_row(0, 7, question=asked, answer="Pneumonia", answer_type="OPEN"),
        slake_row(1, 1, question=asked, answer="Lung cancer", answer_type="OPEN", modality="CT"),
        slake_row(2, 1, answer="No"),
    ]
    (slake / "train.json").write_text(json.dumps(rows))
    for number in (1, 7):
        (slake / "imgs" / f"xmlab{number}").mkdir()
        image = slake / "imgs" / f"xmlab{number}" / "source.jpg"
        image.write_bytes(picture(number, "PNG"))
    prepare_dataset("slake", slake, tmp_path / "prepared")
    choices = Choices(answers=str(tmp_path / "prepared"))
    report = prepare_dataset("silvar-med", silvar, tmp_path / "out", choices=choices)
    train = read(tmp_path / "out" / "train.parquet")
    assert [(e.answer, e.answer_type, e.modality, e.organ) for e in train] == [
        ("No", "closed", None, None),
        ("Lung cancer", "open", "CT", "chest lung"),
        ("No", "closed", "X-Ray", "chest lung"),
    ]
    assert train[1].rationale == CANCER
    assert "first sentence" not in report


def test_explanations_that_stand_apart_are_taken_with_their_short_answers(tmp_path: Path) -> None:
    record = {"img_name": "a.jpg", "question": "Q?", "answer": "Left", "explanation": "It is so."}
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "train.json").write_text(json.dumps([record]))
    (tmp_path / "src" / "a.jpg").write_bytes(picture(0))
    prepare_dataset("silvar-med", tmp_path / "src", tmp_path / "out")
    [one] = read(tmp_path / "out" / "train.parquet")
    assert (one.answer, one.rationale) == ("Left", "It is so.")


def test_slake_without_the_images_of_silvar_med(silvar: Path, tmp_path: Path) -> None:
    """As the paper's comparison needs it: SLAKE's images are where SilVar-Med's come from."""
    slake = tmp_path / "slake"
    (slake / "imgs").mkdir(parents=True)
    rows = [slake_row(number, number) for number in (0, 2, 8, 9)]
    (slake / "test.json").write_text(json.dumps(rows))
    for number in (0, 2, 8, 9):
        (slake / "imgs" / f"xmlab{number}").mkdir()
        (slake / "imgs" / f"xmlab{number}" / "source.jpg").write_bytes(picture(number, "PNG"))
    prepare_dataset("silvar-med", silvar, tmp_path / "silvar")
    prepare_dataset("slake", slake, tmp_path / "out", against=tmp_path / "silvar")
    assert [e.image_id for e in read(tmp_path / "out" / "test.parquet")] == ["xmlab8", "xmlab9"]


def test_an_option_of_another_source_is_refused(silvar: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--answers says nothing to slake; leave it out"):
        prepare_dataset("slake", silvar, tmp_path / "out", choices=Choices(answers="x"))
    with pytest.raises(UserError, match="nowhere: no such"):
        prepare_dataset("silvar-med", silvar, tmp_path / "out", choices=Choices(answers="nowhere"))
