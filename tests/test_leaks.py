"""The leak report against counts made another way, over real VQA-RAD and over made pictures."""

from __future__ import annotations

import io
import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from rarl.data.convert import prepare_dataset
from rarl.data.fingerprint import NEAR, image_groups, image_print, near_pairs
from rarl.data.leaks import check_datasets
from rarl.data.parquet import write_examples
from rarl.data.sources.record import Choices
from rarl.errors import UserError
from rarl.schema import Example
from tests.conftest import VQA_RAD
from tests.pictures import picture, read, write_folder

COPIES = 12  # images that are near copies of others, planted
TWINS = 25  # questions of the training side that are asked on the other one again, planted


def plain(text: str) -> str:
    """Case, punctuation and blanks aside: written otherwise than the checks do it."""
    kept = "".join(" " if c in string.punctuation else c for c in str(text).lower())
    return " ".join(kept.split())


def reencoded(path: Path) -> bytes:
    """The same radiograph, smaller, brighter and compressed again."""
    image = Image.open(path).convert("RGB")
    image = image.resize((round(image.width * 0.7), round(image.height * 0.7)))
    out = io.BytesIO()
    ImageEnhance.Brightness(image).enhance(1.1).save(out, "JPEG", quality=60)
    return out.getvalue()


@pytest.fixture(scope="module")
def random_halves(tmp_path_factory: Any) -> dict[str, Any]:
    """VQA-RAD's records, split by question as one should not, with near copies of images planted in the test half."""
    source = VQA_RAD.resolve()
    folder = tmp_path_factory.mktemp("halves")
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
    for number in rng.permutation(len(learnt))[:TWINS].tolist():  # asked again on the other side, in capitals
        row = learnt[number]
        again = {"id": f"{row['id']}-again", "split": "test", "question": f" {row['question'].upper()}?!"}
        rows.append(row | again)
    in_both = sorted({r["image"] for r in rows if r["split"] == "test"} & {r["image"] for r in learnt})
    copied = {name: f"copy-{Path(name).name}" for name in rng.permutation(in_both)[:COPIES].tolist()}
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
    twins = [r for r in shared if (r["original"], plain(r["question"]), plain(r["answer"])) in about]
    alike = [r for r in test if (plain(r["question"]), plain(r["answer"])) in texts]
    return {
        "same_images": len({r["image"] for r in test if r["image"] in known}),
        "near_images": len({r["image"] for r in shared if r["image"] not in known}),
        "questions": len(shared),
        "twins": len(twins),
        "same_text": len(alike) - len(twins),
    }


@pytest.mark.slow
def test_every_shared_image_near_image_and_twin_of_a_random_split_is_found(random_halves: dict[str, Any]) -> None:
    card = json.loads((random_halves["folder"] / "out" / "dataset.json").read_text())
    (pair,) = card["checks"]["leaks"]
    expected = count_by_name(random_halves["rows"])
    assert {name: pair[name] for name in expected} == expected
    assert expected["same_images"] > 100
    assert expected["near_images"] == COPIES
    assert expected["twins"] >= TWINS
    assert (pair["between"], pair["and"]) == ("train", "test")


@pytest.mark.slow
def test_an_image_disjoint_split_of_the_same_data_shares_nothing(random_halves: dict[str, Any]) -> None:
    folder = random_halves["folder"]
    prepare_dataset("folder", folder, folder / "apart", "image-disjoint", seed=1)
    card = json.loads((folder / "apart" / "dataset.json").read_text())
    (pair,) = card["checks"]["leaks"]
    assert {pair[name] for name in ("same_images", "near_images", "questions", "twins")} == {0}
    split_of = {e.id: name for name in ("train", "test") for e in read(folder / "apart" / f"{name}.parquet")}
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
    rows = [known | {"question": f"Is it {i}?", "image_name": f"synpic{i}.jpg", "phrase_type": "freeform", "qid": i}
            for i in range(shared + own)]  # fmt: skip
    rows += [row | {"phrase_type": "test_freeform", "qid": 100 + i, "question": f"{'IS' if i % 2 else 'Was'} it {i} ?"}
             for i, row in enumerate(rows[:shared])]  # fmt: skip
    (folder / "records.json").write_text(json.dumps(rows))


def test_an_official_pair_that_shares_all_its_test_images_is_reported(tmp_path: Path) -> None:
    official_pair(tmp_path / "src", shared=7, own=4)
    report = prepare_dataset("vqa-rad", tmp_path / "src", tmp_path / "out")
    told = "LEAK: 7 images are in more than one split, and 0 nearly so: train and test share them, of the latter's 7."
    assert told in report
    assert "7 of its 7 questions are about them, 3 with the same question and answer" in report
    for paths in ([tmp_path / "out"], [tmp_path / "out" / "train.parquet", tmp_path / "out" / "test.parquet"]):
        checked, sound = check_datasets(paths)
        assert not sound
        assert "LEAK: 7 images are in more than one split" in checked
    prepare_dataset("vqa-rad", tmp_path / "src", tmp_path / "apart", "image-disjoint")
    checked, sound = check_datasets([tmp_path / "apart"])
    assert sound, checked
    assert "train and test: no image is in more than one split, nor nearly so" in checked


def test_against_removes_what_another_data_set_has_too(tmp_path: Path) -> None:
    near = io.BytesIO()
    Image.open(io.BytesIO(picture(2))).resize((50, 75)).save(near, "PNG")
    rows = [{"image": f"{i}.png", "question": f"What is {i}?", "answer": "a mass"} for i in range(4)]
    mine = write_folder(tmp_path / "mine", rows)
    held_out = write_folder(tmp_path / "theirs", [row | {"question": "Which?"} for row in rows[1:3]])
    (held_out / "2.png").write_bytes(near.getvalue())
    prepare_dataset("folder", held_out, tmp_path / "test")
    report = prepare_dataset("folder", mine, tmp_path / "train", against=tmp_path / "test")
    assert [e.id for e in read(tmp_path / "train" / "train.parquet")] == ["row-0", "row-3"]
    assert "2 questions were removed" in report
    _, sound = check_datasets([tmp_path / "train" / "train.parquet", tmp_path / "test" / "train.parquet"])
    assert sound
    with pytest.raises(UserError, match="nothing is left"):
        prepare_dataset("folder", held_out, tmp_path / "none", against=tmp_path / "test")
    with pytest.raises(UserError, match="no such Parquet file"):
        prepare_dataset("folder", mine, tmp_path / "none", against=tmp_path / "nowhere")


def test_near_pairs_are_those_of_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (40, 256), dtype=np.uint8)
    for i in range(20):  # pairs that differ in 13 to 51 bits
        bits[20 + i] = bits[i]
        bits[20 + i, rng.permutation(256)[: 13 + 2 * i]] ^= 1
    looks = np.packbits(bits, axis=1).view(np.uint64)
    found = {(int(i), int(j)) for i, j in near_pairs(looks, looks)}
    assert found == {(i, j) for i in range(40) for j in range(40) if (bits[i] != bits[j]).sum() <= NEAR}
    assert {(0, 20), (9, 29)} <= found
    assert (10, 30) not in found
    groups = image_groups(looks)
    assert groups[0] == groups[20]
    assert len(set(groups.tolist())) == 30


def test_copies_are_near_and_different_radiographs_are_not(vqa_rad: Path) -> None:
    files = sorted((vqa_rad / "images").iterdir())[:24]
    originals = [Image.open(path).convert("RGB") for path in files]
    looks = np.stack([image_print(b"", image).look for image in originals])
    assert len(near_pairs(looks, looks)) == len(files)  # each with itself alone
    copies = np.stack([image_print(b"", Image.open(io.BytesIO(reencoded(p))).convert("RGB")).look for p in files])
    assert near_pairs(looks, copies).tolist() == [[i, i] for i in range(len(files))]


def test_repetitions_contradictions_and_languages_are_reported(tmp_path: Path) -> None:
    def row(number: int, image: int, question: str, answer: str) -> Example:
        return Example(str(number), picture(image), str(image), question, answer, "open")

    german = "Gibt es eine Läsion in der linken Lunge, und welche Ursache hat sie wahrscheinlich?"
    english = "Is there a lesion in the left lung of this patient, and which cause is likely?"
    rows = [row(0, 0, english, "a mass"), row(1, 0, english.upper(), "A mass."), row(2, 0, english, "a cyst")]
    rows += [row(3, 1, german, "nein")]
    write_examples(tmp_path / "a.parquet", rows)
    report, sound = check_datasets([tmp_path / "a.parquet"])
    assert sound
    assert f"{tmp_path / 'a.parquet'}: 1 rows repeat another one" in report
    assert f"{tmp_path / 'a.parquet'}: 1 questions are asked twice about the same image" in report
    assert "3 en, 1 de" in report


def test_bad_rows_and_changed_files_are_not_sound(tmp_path: Path) -> None:
    rows = [Example(str(i), picture(i), str(i), "What?", "a mass", "open") for i in range(4)]
    bad = [rows[0], Example("0", picture(9), "9", " ", "x", "open"), Example("2", b"x", "2", "What?", "x", "open")]
    write_examples(tmp_path / "bad.parquet", bad)
    report, sound = check_datasets([tmp_path / "bad.parquet"])
    assert not sound
    assert "3 bad rows: row 1: id '0' is also that of row 0; row 1: example '0': the question is empty" in report
    src = write_folder(tmp_path / "src", [{"image": "0.png", "question": "What?", "answer": "a mass"}])
    prepare_dataset("folder", src, tmp_path / "out", choices=Choices())
    assert check_datasets([tmp_path / "out"])[1]
    write_examples(tmp_path / "out" / "train.parquet", rows)
    report, sound = check_datasets([tmp_path / "out"])
    assert not sound
    assert "train.parquet: is not as it was prepared" in report
