"""Test records never get into the training split without a word: the forms in which data sets are
passed on, for every source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rarl.data.parquet import ParquetRows
from rarl.errors import UserError
from rarl.prepare.convert import prepare_dataset
from rarl.prepare.files import Files
from tests.pictures import picture, read, write_folder, write_hub_parquet
from tests.published_rows import CHOICES, omni_row, slake_row, write_csv

UNTOLD = (
    "nothing tells the split of 2 questions, neither their records nor train, validation or test"
)


def splits_of(out: Path) -> dict[str, list[str]]:
    """The questions of each split."""
    paths = sorted(out.glob("*.parquet"))
    return {path.stem: ParquetRows(path).column("question") for path in paths}


def prepare(source: str, src: Path, **asked: Any) -> tuple[dict[str, list[str]], str]:
    """The questions of each split that `rarl prepare` makes, and its report."""
    out = src.parent / f"{src.name}-out"
    report = prepare_dataset(source, src, out, **asked)
    return splits_of(out), report


def write_vqa_rad(path: Path, first: int, phrases: tuple[str, ...]) -> None:
    """One JSON file of VQA-RAD beside images, a question for each phrase type."""
    images = path.parent / "images"
    images.mkdir(parents=True, exist_ok=True)
    records = []
    for number, phrase in enumerate(phrases, start=first):
        (images / f"synpic{number}.jpg").write_bytes(picture(number))
        known = {"answer": "Yes", "answer_type": "CLOSED", "image_organ": "HEAD", "qid": number}
        asked = {"question": f"{number}?", "image_name": f"synpic{number}.jpg"}
        records.append(known | asked | {"phrase_type": phrase})
    path.write_text(json.dumps(records))


PLAIN = ("freeform", "para")


@pytest.mark.parametrize(
    "names",
    [
        ("trainset.json", "testset.json"),
        ("train.json", "test.json"),
        ("VQA_RAD_Train.json", "VQA_RAD_Test.json"),
        ("vqaRadTrainSet.json", "vqaRadTestSet.json"),
    ],
)
def test_vqa_rad_as_most_groups_pass_it_on(names: tuple[str, str], tmp_path: Path) -> None:
    """All phrase types are plain: only the names of the files tell the test records."""
    src = tmp_path / "src"
    write_vqa_rad(src / names[0], 0, PLAIN)
    write_vqa_rad(src / names[1], 2, PLAIN)
    found, _ = prepare("vqa-rad", src)
    assert found == {"train": ["0?", "1?"], "test": ["2?", "3?"]}
    assert json.loads((tmp_path / "src-out" / "dataset.json").read_text())["split"] == "official"
    # One file that is named is of its split too.
    prepare_dataset("vqa-rad", src / names[1], tmp_path / "named")
    assert splits_of(tmp_path / "named") == {"test": ["2?", "3?"]}


def test_vqa_rad_in_folders_that_are_called_as_the_splits(tmp_path: Path) -> None:
    for first, split in ((0, "train"), (2, "val"), (4, "test")):
        write_vqa_rad(tmp_path / "src" / split / "questions.json", first, PLAIN)
    found, _ = prepare("vqa-rad", tmp_path / "src")
    assert found == {"train": ["0?", "1?"], "validation": ["2?", "3?"], "test": ["4?", "5?"]}
    prepare_dataset("vqa-rad", tmp_path / "src" / "test", tmp_path / "named")
    assert splits_of(tmp_path / "named") == {"test": ["4?", "5?"]}


def test_vqa_rad_with_the_authors_phrase_types(tmp_path: Path) -> None:
    """There the records tell, whatever the file is called."""
    told = (*PLAIN, "test_freeform", "test_para")
    write_vqa_rad(tmp_path / "src" / "VQA_RAD Dataset Public.json", 0, told)
    found, _ = prepare("vqa-rad", tmp_path / "src")
    assert found == {"train": ["0?", "1?"], "test": ["2?", "3?"]}
    write_vqa_rad(tmp_path / "other" / "trainset.json", 0, told)
    assert prepare("vqa-rad", tmp_path / "other")[0] == found


@pytest.mark.parametrize("name", ["all.json", "train_and_test.json", "latest.json"])
def test_vqa_rad_of_which_nothing_tells_the_split_is_refused(name: str, tmp_path: Path) -> None:
    src = tmp_path / "src"
    write_vqa_rad(src / name, 0, PLAIN)
    with pytest.raises(UserError, match=f"src: {UNTOLD} .*--split image-disjoint") as caught:
        prepare("vqa-rad", src)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "src-out").exists()
    found, _ = prepare("vqa-rad", src, split="image-disjoint", test_share=0.5)
    assert sorted(found["train"] + found["test"]) == ["0?", "1?"]
    card = json.loads((tmp_path / "src-out" / "dataset.json").read_text())
    assert card["split"] == "image-disjoint, seed 0, test share 0.5"


def test_a_validation_split_is_drawn_beside_the_test_split_which_stays(tmp_path: Path) -> None:
    write_vqa_rad(tmp_path / "src" / "trainset.json", 0, ("freeform",) * 10)
    ways = {"split": "image-disjoint", "test_share": 0.2, "seed": 3}
    without, _ = prepare("vqa-rad", tmp_path / "src", **ways)
    found, report = prepare("vqa-rad", tmp_path / "src", **ways, validation_share=0.3)
    assert [len(found[name]) for name in ("train", "validation", "test")] == [5, 3, 2]
    assert found["test"] == without["test"]
    assert sorted(found["train"] + found["validation"]) == sorted(without["train"])
    assert "validation.parquet: 3 questions" in report
    card = json.loads((tmp_path / "src-out" / "dataset.json").read_text())
    assert card["split"] == "image-disjoint, seed 3, test share 0.2, validation share 0.3"


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"test_share": 1.0}, "--test-share 1.0: expected a share between 0 and 1"),
        ({"test_share": 0.6, "validation_share": 0.4}, "0.4: expected a share that leaves some to"),
        ({"validation_share": -0.1}, "-0.1: expected a share that leaves some"),
        ({"validation_share": 0.1, "split": "official"}, "goes with --split image-disjoint or pat"),
        ({"validation_share": 0.1, "split": "site:A"}, "0.1: goes with --split image-disjoint or "),
    ],
)
def test_shares_that_cannot_be_are_refused(
    how: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write_vqa_rad(tmp_path / "src" / "trainset.json", 0, PLAIN)
    with pytest.raises(UserError, match=message):
        prepare("vqa-rad", tmp_path / "src", **{"split": "image-disjoint", **how})


def test_an_image_disjoint_split_says_that_it_trains_on_the_published_test_split(
    tmp_path: Path,
) -> None:
    write_vqa_rad(tmp_path / "src" / "trainset.json", 0, PLAIN)
    write_vqa_rad(tmp_path / "src" / "testset.json", 2, PLAIN)
    found, report = prepare("vqa-rad", tmp_path / "src", split="image-disjoint", test_share=0.25)
    count = sum(question in ("2?", "3?") for question in found["train"])
    assert count
    assert f"{count} questions of the published test split are in train" in report


@pytest.mark.parametrize("source", ["vqa-rad", "path-vqa"])
@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("data/train-00000-of-00001-abc.parquet", "data/test-00000-of-00001-abc.parquet"),
        ("train.parquet", "test.parquet"),
        ("default/train/0000.parquet", "default/test/0000.parquet"),
        ("default/partial-train/0000.parquet", "default/test/0000.parquet"),
        ("vqa_train.parquet", "vqa_test.parquet"),
    ],
)
def test_hub_parquet(source: str, train: str, test: str, tmp_path: Path) -> None:
    write_hub_parquet(tmp_path / "src" / train, [(picture(0), "0?", "yes")])
    write_hub_parquet(tmp_path / "src" / test, [(picture(1), "1?", "no")])
    assert prepare(source, tmp_path / "src")[0] == {"train": ["0?"], "test": ["1?"]}


@pytest.mark.parametrize("source", ["vqa-rad", "path-vqa"])
def test_hub_parquet_of_which_nothing_tells_the_split_is_refused(
    source: str, tmp_path: Path
) -> None:
    write_hub_parquet(tmp_path / "src" / "0000.parquet", [(picture(0), "0?", "yes")])
    with pytest.raises(UserError, match="its name should begin with train, validation, test"):
        prepare(source, tmp_path / "src")


def test_slake_as_its_authors_and_as_the_hub_name_its_files(tmp_path: Path) -> None:
    for validation in ("validation", "validate"):
        src = tmp_path / validation
        for number, name in enumerate(("train", validation, "test")):
            (src / f"xmlab{number}").mkdir(parents=True)
            (src / f"xmlab{number}" / "source.jpg").write_bytes(picture(number))
            row = slake_row(number, number, question=f"{number}?")
            (src / f"{name}.json").write_text(json.dumps([row]))
            # The authors' archive has such files beside each image.
            (src / f"xmlab{number}" / "question.json").write_text(json.dumps([row]))
        found, _ = prepare("slake", src)
        assert found == {"train": ["0?"], "validation": ["1?"], "test": ["2?"]}
    (src / "test.json").rename(src / "testset.json")
    assert "test" not in prepare("slake", src)[0]
    with pytest.raises(UserError, match=r"holds none of train\.json"):
        prepare_dataset("slake", src / "testset.json", tmp_path / "out")


def pmc(path: Path, **more: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in range(2):
        (path.parent / f"PMC{number}.jpg").write_bytes(picture(number))
    rows = [
        {"Figure_path": f"PMC{i}.jpg", "Question": f"{i}?", "Answer": "B", **CHOICES} | more
        for i in range(2)
    ]
    write_csv(path, rows)


def test_pmc_vqa_of_a_file_that_is_named(tmp_path: Path) -> None:
    for number, (name, split) in enumerate(
        {"test_clean.csv": "test", "train_2.csv": "train", "my_train.csv": "train"}.items()
    ):
        src = tmp_path / str(number) / name
        pmc(src)
        assert prepare("pmc-vqa", src)[0] == {split: ["0?", "1?"]}, name
    for name in ("train_test.csv", "pmc.csv"):
        pmc(tmp_path / name / name)
        with pytest.raises(UserError, match=UNTOLD):
            prepare("pmc-vqa", tmp_path / name / name)
    pmc(tmp_path / "told" / "pmc.csv", split="test")
    assert prepare("pmc-vqa", tmp_path / "told" / "pmc.csv")[0] == {"test": ["0?", "1?"]}


def test_omnimedvqa_is_for_testing_whatever_its_files_are_called(tmp_path: Path) -> None:
    src = tmp_path / "omni"
    (src / "Images" / "ACRIMA").mkdir(parents=True)
    for number, name in enumerate(("train.json", "ACRIMA.json")):
        (src / "Images" / "ACRIMA" / f"Im{number}.png").write_bytes(picture(number, "PNG"))
        (src / name).write_text(json.dumps([omni_row(number, ["Yes", "No"], "No", "CT")]))
    assert list(prepare("omnimedvqa", src)[0]) == ["test"]


def test_medxpertqa_has_nothing_to_train_on(tmp_path: Path) -> None:
    src = tmp_path / "expert"
    src.mkdir()
    known = {"question": "What?", "options": {"A": "Rest", "B": "Splint"}, "label": "A"}
    for number, name in enumerate(("dev", "test", "train")):
        (src / f"{number}.png").write_bytes(picture(number, "PNG"))
        record = known | {"id": f"MM-{number}", "images": [f"{number}.png"]}
        (src / f"{name}.jsonl").write_text(json.dumps(record) + "\n")
    assert list(prepare("medxpertqa", src)[0]) == ["test", "validation"]


ROWS = [{"image": f"{i}.png", "question": f"{i}?", "answer": "a mass"} for i in range(4)]


@pytest.mark.parametrize(
    ("name", "split"),
    [("test.jsonl", "test"), ("my_val.jsonl", "validation"), ("dev.jsonl", "validation")],
)
def test_a_table_of_your_own_is_of_the_split_that_its_name_tells(
    name: str, split: str, tmp_path: Path
) -> None:
    src = write_folder(tmp_path / "src", ROWS)
    (src / "table.jsonl").rename(src / name)
    found, report = prepare("folder", src)
    assert found == {split: ["0?", "1?", "2?", "3?"]}
    assert "says otherwise" not in report


def test_a_table_of_your_own_that_names_no_split_is_for_training_and_the_report_says_so(
    tmp_path: Path,
) -> None:
    told = "questions are in train since neither a column `split` nor the table's name says"
    found, report = prepare("folder", write_folder(tmp_path / "src", ROWS))
    assert found == {"train": ["0?", "1?", "2?", "3?"]}
    assert f"4 {told} otherwise" in report
    card = json.loads((tmp_path / "src-out" / "dataset.json").read_text())
    assert card["split"] == "as the table says"
    some = [row | ({"split": "Test"} if i else {}) for i, row in enumerate(ROWS)]
    found, report = prepare("folder", write_folder(tmp_path / "some", some))
    assert found == {"train": ["0?"], "test": ["1?", "2?", "3?"]}
    assert f"1 {told} otherwise" in report
    full = [row | {"split": "val"} for row in ROWS]
    found, report = prepare("folder", write_folder(tmp_path / "full", full))
    assert list(found) == ["validation"]
    assert told not in report


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train/test.json", "test"),  # the file's own name comes first
        ("test/train/a.json", "train"),
        ("test2017.json", "test"),
        ("VALIDATION.json", "validation"),
        ("contest.json", ""),
        ("pretrain.json", ""),
        ("trainval.json", ""),
        ("train/train_test.json", ""),
        ("a.test.json", "test"),
    ],
)
def test_what_the_name_of_a_file_tells(name: str, split: str, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    assert Files(tmp_path / "src").split_of(name) == split


def test_the_real_vqa_rad_with_a_test_set_beside_it(vqa_rad: Path, tmp_path: Path) -> None:
    """Its last 451 records stand for the test set, which is not at hand."""
    records = json.loads((vqa_rad / "trainset.json").read_text())
    src = tmp_path / "src"
    src.mkdir()
    (src / "images").symlink_to(vqa_rad / "images")
    (src / "trainset.json").write_text(json.dumps(records[:300]))
    (src / "testset.json").write_text(json.dumps(records[-451:]))
    prepare_dataset("vqa-rad", src, tmp_path / "out")
    held_out = [r for r in records[-451:] if r["phrase_type"] in PLAIN]
    found = {example.id for example in read(tmp_path / "out" / "test.parquet")}
    assert found == {f"vqa-rad-{record['qid']}" for record in held_out}
    assert not found & set(ParquetRows(tmp_path / "out" / "train.parquet").column("id"))
