"""The leak report against counts made another way, over real VQA-RAD and over made pictures."""

from __future__ import annotations

import io
import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rarl.data.parquet import ParquetRows, write_examples
from rarl.errors import UserError
from rarl.prepare.convert import prepare_dataset
from rarl.prepare.fingerprint import ImagePrint, Side
from rarl.prepare.leaks import check_datasets
from rarl.prepare.rows import Choices
from rarl.schema import Example
from tests.pictures import make_pictures, picture, read, reencoded, write_folder

COPIES = 12  # images that are near copies of others, planted
TWINS = 25  # questions of the training side that are asked on the other one again, planted


def plain(text: str) -> str:
    """Case, punctuation and blanks aside: written otherwise than the checks do it."""
    kept = "".join(" " if c in string.punctuation else c for c in str(text).lower())
    return " ".join(kept.split())


def made_records(folder: Path) -> list[dict[str, Any]]:
    """Six questions about each of 190 pictures, in the authors' layout."""
    make_pictures(folder, 190)
    asked = ("Is there a mass?", "Is it large?", "Which organ?", "Which side?", "What?", "Where?")
    answers = ("yes", "no", "lung", "left", "an effusion", "upper lobe")
    return [
        {
            "qid": 6 * number + place,
            "image_name": f"{number}.jpg",
            "question": question if number % 3 else f"{number}: {question}",
            "answer": answers[(number + place) % 6],
        }
        for number in range(190)
        for place, question in enumerate(asked)
    ]


@pytest.fixture(scope="module", params=["made", pytest.param("real", marks=pytest.mark.real_data)])
def random_halves(request: pytest.FixtureRequest, tmp_path_factory: Any) -> dict[str, Any]:
    """Records of VQA-RAD, or such that are made here, split by question as one should not, with
    near copies of images planted in the test half."""
    folder = tmp_path_factory.mktemp("halves")
    if request.param == "made":
        records = made_records(folder / "images")
    else:
        source = request.getfixturevalue("vqa_rad")
        (folder / "images").symlink_to(source / "images")
        records = json.loads((source / "trainset.json").read_text())
        records = [r for r in records if r["phrase_type"] in ("freeform", "para")]
    rng = np.random.default_rng(0)
    rng.shuffle(records)
    rows = [
        {
            "id": str(r["qid"]),
            "image": f"images/{r['image_name']}",
            "question": str(r["question"]),
            "answer": str(r["answer"]),
            "split": "test" if i % 4 == 0 else "train",
        }
        for i, r in enumerate(records)
    ]
    learnt = [row for row in rows if row["split"] == "train"]
    # asked again on the other side, in capitals
    for number in rng.permutation(len(learnt))[:TWINS].tolist():
        row = learnt[number]
        again = {
            "id": f"{row['id']}-again",
            "split": "test",
            "question": f" {row['question'].upper()}?!",
        }
        rows.append(row | again)
    in_both = sorted(
        {r["image"] for r in rows if r["split"] == "test"} & {r["image"] for r in learnt}
    )
    copied = {
        name: f"copy-{Path(name).name}" for name in rng.permutation(in_both)[:COPIES].tolist()
    }
    for name, copy in copied.items():
        (folder / copy).write_bytes(reencoded(folder / name))
    for row in rows:
        row["original"] = row["image"]
        if row["split"] == "test" and row["image"] in copied:
            row["image"] = copied[row["image"]]
    (folder / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare_dataset("folder", folder, folder / "out")
    return {"folder": folder, "rows": rows}


def count_by_name(rows: list[dict[str, str]]) -> dict[str, int]:
    """What the two sides share, by the names of the files, and by comparing all texts."""
    train, test = ([r for r in rows if r["split"] == split] for split in ("train", "test"))
    known, originals = {r["image"] for r in train}, {r["original"] for r in train}
    about = {(r["original"], plain(r["question"]), plain(r["answer"])) for r in train}
    texts = {(question, answer) for _, question, answer in about}
    shared = [r for r in test if r["original"] in originals]
    twins = [
        r for r in shared if (r["original"], plain(r["question"]), plain(r["answer"])) in about
    ]
    alike = [r for r in test if (plain(r["question"]), plain(r["answer"])) in texts]
    return {
        "same_images": len({r["image"] for r in test if r["image"] in known}),
        "near_images": len({r["image"] for r in shared if r["image"] not in known}),
        "questions": len(shared),
        "twins": len(twins),
        "same_text": len(alike) - len(twins),
    }


@pytest.mark.slow
def test_every_shared_image_near_image_and_twin_of_a_random_split_is_found(
    random_halves: dict[str, Any],
) -> None:
    card = json.loads((random_halves["folder"] / "out" / "dataset.json").read_text())
    (pair,) = card["checks"]["leaks"]
    expected = count_by_name(random_halves["rows"])
    assert {name: pair[name] for name in expected} == expected
    assert expected["same_images"] > 100
    assert expected["near_images"] == COPIES
    assert expected["twins"] >= TWINS
    assert (pair["between"], pair["and"]) == ("train", "test")


@pytest.mark.slow
def test_an_image_disjoint_split_of_the_same_data_shares_nothing(
    random_halves: dict[str, Any],
) -> None:
    folder = random_halves["folder"]
    prepare_dataset("folder", folder, folder / "apart", "image-disjoint", seed=1)
    card = json.loads((folder / "apart" / "dataset.json").read_text())
    (pair,) = card["checks"]["leaks"]
    assert {pair[name] for name in ("same_images", "near_images", "questions", "twins")} == {0}
    split_of = {
        e.id: name for name in ("train", "test") for e in read(folder / "apart" / f"{name}.parquet")
    }
    rows = [row | {"split": split_of[row["id"]]} for row in random_halves["rows"]]
    expected = count_by_name(rows)
    assert {expected[name] for name in ("same_images", "near_images", "questions", "twins")} == {0}
    assert sum(name == "test" for name in split_of.values()) > 200


def official_pair(folder: Path, shared: int, own: int) -> None:
    """Records in the authors' layout: every test image is a training image as well."""
    (folder / "images").mkdir(parents=True)
    for number in range(shared + own):
        (folder / "images" / f"synpic{number}.jpg").write_bytes(picture(number))
    known = {"answer": "Yes", "answer_type": "CLOSED", "image_organ": "HEAD"}
    plain = {"phrase_type": "freeform"}
    rows = [
        known | plain | {"question": f"Is it {i}?", "image_name": f"synpic{i}.jpg", "qid": i}
        for i in range(shared + own)
    ]
    for i, row in enumerate(rows[:shared]):
        asked = {"question": f"{'IS' if i % 2 else 'Was'} it {i} ?", "qid": 100 + i}
        rows.append(row | asked | {"phrase_type": "test_freeform"})
    (folder / "records.json").write_text(json.dumps(rows))


def test_an_official_pair_that_shares_all_its_test_images_is_reported(tmp_path: Path) -> None:
    official_pair(tmp_path / "src", shared=7, own=4)
    report = prepare_dataset("vqa-rad", tmp_path / "src", tmp_path / "out")
    told = "LEAK: test: 7 of its 7 images are in train, and 0 nearly so; 7 of its 7 questions are"
    assert f"{told} about them, 3 with the same question and answer" in report
    for paths in (
        [tmp_path / "out"],
        [tmp_path / "out" / "train.parquet", tmp_path / "out" / "test.parquet"],
    ):
        checked, sound = check_datasets(paths)
        assert not sound
        assert "test: 7 of its 7 images are in" in checked.replace(".parquet", "")
    prepare_dataset("vqa-rad", tmp_path / "src", tmp_path / "apart", "image-disjoint")
    checked, sound = check_datasets([tmp_path / "apart"])
    assert sound, checked
    assert "test: none of its 2 images is in train, nor nearly so" in checked


def test_against_removes_what_another_data_set_has_too(tmp_path: Path) -> None:
    near = io.BytesIO()
    Image.open(io.BytesIO(picture(2))).resize((50, 75)).save(near, "PNG")
    rows = [
        {"image": f"{i}.png", "question": f"What is {i}?", "answer": "a mass"} for i in range(4)
    ]
    mine = write_folder(tmp_path / "mine", rows)
    held_out = write_folder(
        tmp_path / "theirs", [row | {"question": "Which?"} for row in rows[1:3]]
    )
    (held_out / "2.png").write_bytes(near.getvalue())
    prepare_dataset("folder", held_out, tmp_path / "test")
    report = prepare_dataset("folder", mine, tmp_path / "train", against=tmp_path / "test")
    assert [e.id for e in read(tmp_path / "train" / "train.parquet")] == ["row-1", "row-4"]
    listed = tmp_path / "train" / "removed.jsonl"
    assert (
        f"--against {tmp_path / 'test'}: 2 questions removed, listed in {listed}: 1 about an image "
        "that --against has, 1 about a near copy of one that --against has"
    ) in report
    assert [json.loads(line) for line in listed.read_text().splitlines()] == [
        {"where": f"{mine}/table.jsonl: line {line}", "reason": f"about {what} that --against has"}
        for line, what in ((2, "an image"), (3, "a near copy of one"))
    ]
    _, sound = check_datasets(
        [tmp_path / "train" / "train.parquet", tmp_path / "test" / "train.parquet"]
    )
    assert sound
    with pytest.raises(UserError, match="nothing is left"):
        prepare_dataset("folder", held_out, tmp_path / "none", against=tmp_path / "test")
    with pytest.raises(UserError, match="no such Parquet file"):
        prepare_dataset("folder", mine, tmp_path / "none", against=tmp_path / "nowhere")


def test_against_counts_images_of_bad_rows_and_refuses_those_it_cannot_read(tmp_path: Path) -> None:
    rows = [
        {"image": f"{i}.png", "question": f"What is {i}?", "answer": "a mass"} for i in range(3)
    ]
    mine, theirs = write_folder(tmp_path / "mine", rows), tmp_path / "theirs.parquet"
    write_examples(theirs, [Example("0", (picture(0, "PNG"),), "0", " ", "a mass", "open")])
    prepare_dataset("folder", mine, tmp_path / "out", against=theirs)
    assert [e.id for e in read(tmp_path / "out" / "train.parquet")] == ["row-2", "row-3"]
    write_examples(theirs, [Example("0", (b"no picture",), "0", "What?", "a mass", "open")])
    with pytest.raises(
        UserError, match=r"theirs\.parquet: row 0: example '0': image cannot .*; mend or delete"
    ):
        prepare_dataset("folder", mine, tmp_path / "again", against=theirs)


def test_twins_may_differ_in_their_wrong_options(tmp_path: Path) -> None:
    rows = [
        {
            "image": "0.png",
            "question": "Which?",
            "answer": "x",
            "options": ["x", wrong],
            "split": split,
        }
        for wrong, split in (("y", "train"), ("z", "test"))
    ]
    report = prepare_dataset("folder", write_folder(tmp_path / "src", rows), tmp_path / "out")
    assert "1 of its 1 questions are about them, 1 with the same question and answer" in report


def test_repetitions_contradictions_and_languages_are_reported(tmp_path: Path) -> None:
    def row(number: int, image: int, question: str, answer: str) -> Example:
        return Example(str(number), (picture(image),), str(image), question, answer, "open")

    german = "Gibt es eine Läsion in der linken Lunge, und welche Ursache hat sie wahrscheinlich?"
    english = "Is there a lesion in the left lung of this patient, and which cause is likely?"
    rows = [
        row(0, 0, english, "a mass"),
        row(1, 0, english.upper(), "A mass."),
        row(2, 0, english, "a cyst"),
    ]
    rows += [row(3, 1, german, "nein")]
    write_examples(tmp_path / "a.parquet", rows)
    report, sound = check_datasets([tmp_path / "a.parquet"])
    assert sound
    assert f"{tmp_path / 'a.parquet'}: 1 rows repeat another one" in report
    assert f"{tmp_path / 'a.parquet'}: 1 questions are asked twice about the same image" in report
    assert "3 en, 1 de" in report


def test_bad_rows_and_changed_files_are_not_sound(tmp_path: Path) -> None:
    rows = [Example(str(i), (picture(i),), str(i), "What?", "a mass", "open") for i in range(4)]
    bad = [
        rows[0],
        Example("0", (picture(9),), "9", " ", "x", "open"),
        Example("2", (b"x",), "2", "What?", "x", "open"),
    ]
    write_examples(tmp_path / "bad.parquet", bad)
    report, sound = check_datasets([tmp_path / "bad.parquet"])
    assert not sound
    assert (
        "3 bad rows: row 1: id '0' is also that of row 0; row 1: example '0': the question is empty"
        in report
    )
    src = write_folder(
        tmp_path / "src", [{"image": "0.png", "question": "What?", "answer": "a mass"}]
    )
    prepare_dataset("folder", src, tmp_path / "out", choices=Choices())
    assert check_datasets([tmp_path / "out"])[1]
    write_examples(tmp_path / "out" / "train.parquet", rows)
    report, sound = check_datasets([tmp_path / "out"])
    assert not sound
    assert "train.parquet: is not as it was prepared" in report
    (tmp_path / "out" / "train.parquet").unlink()
    write_examples(tmp_path / "out" / "test.parquet", rows)
    report, _ = check_datasets([tmp_path / "out"])
    assert "train.parquet: is missing, though" in report
    assert "not as it was prepared" not in report


def test_folders_beside_each_other_are_compared_split_by_split(tmp_path: Path) -> None:
    for name, images in (("a", (0, 1, 1)), ("b", (2, 3, 4))):
        for place, split in enumerate(("train", "train", "test")):
            number = images[place]
            example = Example(
                str(place), (picture(number),), str(number), f"What is {place}?", "a mass", "open"
            )
            path = tmp_path / name / f"{split}.parquet"
            write_examples(path, [*(read(path) if path.exists() else []), example])
    a, b = tmp_path / "a", tmp_path / "b"
    report, sound = check_datasets([a, b])
    assert not sound
    assert report.count("LEAK") == 1
    assert f"LEAK: {a}/test: 1 of its 1 images are in {a}/train" in report
    assert f"{b}/test: none of its 1 images is in {a}/train" in report
    with pytest.raises(UserError, match="named twice"):
        check_datasets([a, a])
    assert check_datasets([b, b.parent / "a" / "train.parquet"])[1]


def test_a_folder_without_a_parquet_file_is_told_from_one_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match="bare: holds no Parquet file"):
        ParquetRows(tmp_path / "bare")
    (tmp_path / "mixture.yaml").write_text("none/train.parquet: 1")
    with pytest.raises(UserError, match="paths are relative to the mixture's own folder"):
        ParquetRows(tmp_path / "mixture.yaml")


def test_yes_in_another_language_repeats_a_yes_and_contradicts_a_no() -> None:
    side, image = Side("own"), ImagePrint("an image", np.zeros(4, np.uint64))
    for answer in ("yes", "Ja", "oui", "Nein"):
        side.add([image], "Is there a mass?", answer)
    assert side.repeats() == {1: 0, 2: 0}
    assert side.contradictions() == [[0, 1, 2, 3]]
