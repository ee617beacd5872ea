"""`rarl prepare vqa-rad`: made fixtures in the published layouts, and the real data where it is at
hand."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from rarl.cli import app
from rarl.data.parquet import ParquetRows
from rarl.errors import UserError
from rarl.prepare.convert import prepare_dataset
from rarl.prepare.rows import Choices
from rarl.schema import Example


def picture(number: int) -> bytes:
    """Coarse noise, another for each number: pictures that no hash takes for one another."""
    shades = np.random.default_rng(number).integers(0, 255, (6, 6), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(shades).resize((60, 90)).save(out, format="JPEG")
    return out.getvalue()


def record(qid: int, image: int, **changes: Any) -> dict[str, Any]:
    return {
        "qid": qid,
        "image_name": f"synpic{image}.jpg",
        "image_organ": "CHEST",
        "answer": "Yes",
        "answer_type": "CLOSED",
        "question_type": "PRES",
        "question": "Is there a mass? ",
        "phrase_type": "freeform",
    } | changes


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """The authors' layout: one JSON, a folder of images."""
    folder = tmp_path / "original"
    (folder / "images").mkdir(parents=True)
    for image in range(4):
        (folder / "images" / f"synpic{image}.jpg").write_bytes(picture(image))
    records = [
        record(1, 0),
        record(
            2,
            0,
            answer="right lower lobe",
            answer_type="OPEN",
            phrase_type="para",
            image_organ="ABD",
        ),
        record(3, 1, answer_type="CLOSED "),
        record(4, 2, phrase_type="frame"),
        record(5, 2, answer=3, answer_type="OPEN", phrase_type="test_freeform"),
        record(6, 3, phrase_type="test_para"),
    ]
    (folder / "records.json").write_text(json.dumps(records))
    return folder


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """The hub's layout: Parquet files with image {bytes, path}, question, answer."""
    folder = tmp_path / "hub" / "data"
    folder.mkdir(parents=True)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for split, answers in {"train": ["yes", "no", "left lung"], "test": ["no"]}.items():
        images = pa.array([{"bytes": picture(6), "path": None} for _ in answers], kind)
        table = pa.table({"image": images, "question": ["What?"] * len(answers), "answer": answers})
        pq.write_table(table, folder / f"{split}-00000-of-00001-abc.parquet")
    return folder.parent


def read(path: Path) -> list[Example]:
    rows = ParquetRows(path)
    return rows.read(list(range(len(rows))))


def test_the_authors_layout(original: Path, tmp_path: Path) -> None:
    report = prepare_dataset("vqa-rad", original, tmp_path / "out", "official")
    train, test = read(tmp_path / "out" / "train.parquet"), read(tmp_path / "out" / "test.parquet")
    assert [e.id for e in train] == ["vqa-rad-1", "vqa-rad-2", "vqa-rad-3"]
    assert [e.id for e in test] == ["vqa-rad-5", "vqa-rad-6"]
    assert all(e.extra == {"question_type": "PRES"} for e in (*train, *test))
    assert [(e.answer_type, e.answer, e.organ) for e in train] == [
        ("closed", "Yes", "chest"),
        ("open", "right lower lobe", "abdomen"),
        ("closed", "Yes", "chest"),
    ]
    assert train[0].question == "Is there a mass?"
    assert train[0].images[0] == (original / "images" / "synpic0.jpg").read_bytes()
    assert test[0].answer == "3"
    assert "6 records read, 5 of phrase type freeform or para kept" in report
    assert "1 answer types had a stray blank" in report
    assert "test: none of its 2 images is in train" in report


def test_the_authors_json_may_be_named_directly(original: Path, tmp_path: Path) -> None:
    prepare_dataset("vqa-rad", original / "records.json", tmp_path / "out")
    assert len(read(tmp_path / "out" / "train.parquet")) == 3


def test_images_of_one_name_in_two_folders_are_two_images(original: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("a/x.jpg", "b/x.jpg", "b/x.png")):
        (original / "images" / name).parent.mkdir(exist_ok=True)
        (original / "images" / name).write_bytes(picture(number))
    named = [
        record(i, 0, image_name=name)
        for i, name in enumerate(("a/x.jpg", "b/x.jpg", "b/x.png", "a/x.jpg"))
    ]
    (original / "records.json").unlink()
    (original / "trainset.json").write_text(json.dumps(named))
    prepare_dataset("vqa-rad", original, tmp_path / "out")
    first, second, third, again = (e.image_id for e in read(tmp_path / "out" / "train.parquet"))
    assert (first, second, again) == ("a/x", "b/x", "a/x")
    assert third not in (first, second)


def test_phrase_types_that_would_be_ignored_are_refused(
    original: Path, hub: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        UserError, match="--phrases 'nonsense': VQA-RAD's JSON has freeform, para, frame"
    ):
        prepare_dataset(
            "vqa-rad", original, tmp_path / "out", choices=Choices(("freeform", "nonsense"))
        )
    with pytest.raises(UserError, match="does not name phrase types; leave --phrases out"):
        prepare_dataset("vqa-rad", hub, tmp_path / "out", choices=Choices(("frame",)))
    arguments = [
        "prepare",
        "vqa-rad",
        str(original),
        str(tmp_path / "out"),
        "--phrases",
        "freeform, para",
    ]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert [e.id for e in read(tmp_path / "out" / "train.parquet")] == [
        "vqa-rad-1",
        "vqa-rad-2",
        "vqa-rad-3",
    ]


def test_the_hubs_layout_and_its_shared_images(hub: Path, tmp_path: Path) -> None:
    report = prepare_dataset("vqa-rad", hub, tmp_path / "out", "official")
    train = read(tmp_path / "out" / "train.parquet")
    assert [(e.answer, e.answer_type, e.split) for e in train] == [
        ("yes", "closed", "train"),
        ("no", "closed", "train"),
        ("left lung", "open", "train"),
    ]
    assert "test: 1 of its 1 images are in train" in report


def test_an_image_disjoint_split_shares_no_image(original: Path, tmp_path: Path) -> None:
    prepare_dataset("vqa-rad", original, tmp_path / "out", "image-disjoint", 0.5, 3)
    images = [
        {e.image_id for e in read(tmp_path / "out" / f"{split}.parquet")}
        for split in ("train", "test")
    ]
    assert not images[0] & images[1]
    assert len(images[1]) == 2
    again = tmp_path / "again"
    prepare_dataset("vqa-rad", original, again, "image-disjoint", 0.5, 3)
    assert (again / "test.parquet").read_bytes() == (tmp_path / "out" / "test.parquet").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"image_name": "none.jpg"},
            "record 0: image 'none.jpg' is nowhere below the source folder",
        ),
        ({"answer_type": "MAYBE"}, "record 0: answer_type 'MAYBE' is neither CLOSED nor OPEN"),
        ({"phrase_type": "frame"}, "none of the 1 records is left"),
    ],
)
def test_faulty_records_are_named(
    original: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    (original / "records.json").write_text(json.dumps([record(1, 0, **change)]))
    with pytest.raises(UserError) as caught:
        prepare_dataset("vqa-rad", original, tmp_path / "out", "official")
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_missing_keys_columns_files_and_wrong_names_are_named(
    original: Path, hub: Path, tmp_path: Path
) -> None:
    def error(source: str, src: Path, split: str = "official") -> str:
        with pytest.raises(UserError) as caught:
            prepare_dataset(source, src, tmp_path / "out", split)
        return str(caught.value)

    assert "source 'vqarad' is unknown; known are vqa-rad" in error("vqarad", original)
    assert "split 'random' is unknown" in error("vqa-rad", original, "random")
    assert "no such folder" in error("vqa-rad", tmp_path / "none")
    (tmp_path / "bare").mkdir()
    assert "holds neither a JSON file" in error("vqa-rad", tmp_path / "bare")
    (original / "records.json").write_text('[{"qid": 1}]')
    assert "record 0: keys 'image_name', 'question', 'answer'" in error("vqa-rad", original)
    (original / "records.json").write_text("{")
    assert "not readable as JSON" in error("vqa-rad", original)
    pq.write_table(pa.table({"question": ["q"]}), hub / "data" / "train-0.parquet")
    assert "columns 'image', 'answer' are missing (it has: question)" in error("vqa-rad", hub)


def test_the_real_vqa_rad(vqa_rad: Path, tmp_path: Path) -> None:
    report = prepare_dataset("vqa-rad", vqa_rad, tmp_path / "out", "official")
    assert "3,064 records read, 1,797 of phrase type freeform or para kept" in report
    assert "2 answer types had a stray blank" in report
    examples = read(tmp_path / "out" / "train.parquet")
    assert len(examples) == 1797
    assert Counter(e.answer_type for e in examples) == {"closed": 1027, "open": 770}
    everything = prepare_dataset(
        "vqa-rad",
        vqa_rad,
        tmp_path / "all",
        "image-disjoint",
        choices=Choices(("freeform", "para", "frame")),
    )
    assert "3,064 records read\n" in everything
    assert (
        len(read(tmp_path / "all" / "train.parquet")) + len(read(tmp_path / "all" / "test.parquet"))
        == 3064
    )
    assert "images is in train, nor nearly so" in everything
