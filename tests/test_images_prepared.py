"""Several images of a question, a series, and questions of text, from a folder of one's own."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import generate_uid

from rarl.errors import UserError
from rarl.prepare.convert import prepare_dataset
from rarl.prepare.dicom import render
from rarl.prepare.files import Fault, ImageFile
from rarl.prepare.rows import Choices
from rarl.prepare.series import Slice, evenly, in_order
from rarl.schema import Example
from tests.pictures import picture, read, real, write_folder


def row(**changes: Any) -> dict[str, Any]:
    return {"image": "0.png", "question": "What is it?", "answer": "a mass"} | changes


def prepared(tmp_path: Path, rows: list[dict[str, Any]], *maps: str) -> tuple[list[Example], str]:
    folder = write_folder(tmp_path / "mine", rows, images=6)
    report = prepare_dataset("folder", folder, tmp_path / "out", choices=Choices(map=maps))
    return read(tmp_path / "out" / "train.parquet"), report


def numbers(example: Example) -> list[int]:
    """Which of the folder's pictures an example has."""
    known = [picture(number, "PNG") for number in range(6)]
    return [known.index(image) for image in example.images]


def test_several_columns_or_a_list_are_several_images_in_order(tmp_path: Path) -> None:
    rows = [
        row(id="columns", image="3.png", image_2="1.png", image_3="4.png"),
        row(id="gap", image="3.png", image_2="", image_3="4.png"),
        row(id="list", image=["4.png", "1.png"], image_labels=["now", "before"]),
        row(id="text", image='["4.png", "2.png"]', image_labels="now|before"),
        row(id="one", image_labels="frontal"),
    ]
    found, _ = prepared(tmp_path, rows)
    assert {one.id: (numbers(one), one.image_labels) for one in found} == {
        "columns": ([3, 1, 4], None),
        "gap": ([3, 4], None),
        "list": ([4, 1], ("now", "before")),
        "text": ([4, 2], ("now", "before")),
        "one": ([0], ("frontal",)),
    }
    assert len({one.image_id for one in found}) == 5


def test_columns_of_other_names_are_the_labels(tmp_path: Path) -> None:
    rows = [
        {"Current": f"{n}.png", "Prior": f"{n + 1}.png", "question": "New?", "answer": "yes"}
        for n in (0, 2)
    ]
    found, _ = prepared(tmp_path, rows, "image=Current", "image_2=Prior")
    assert [(numbers(one), one.image_labels) for one in found] == [
        ([0, 1], ("Current", "Prior")),
        ([2, 3], ("Current", "Prior")),
    ]


def test_faults_of_one_among_several_images_name_row_and_image(tmp_path: Path) -> None:
    sound = [row(id=f"sound {n}", image=f"{n % 6}.png") for n in range(9)]
    rows = [
        row(image="0.png", image_2="broken.png", image_3="1.png"),
        row(image="0.png", image_2="none.png"),
        row(image="0.png", image_2="1.png", image_labels=["a", "b", "c"]),
        row(image="0.png", image_2="1.png", image_3="0.png"),
        row(image=[f"{n}.png" for n in range(6)] * 3),
        row(image="0.png", image_2="1.png", frame=1),
        row(image=[]),
    ]
    folder = write_folder(tmp_path / "mine", [*rows, *sound], images=6)
    (folder / "broken.png").write_bytes(picture(9, "PNG")[:300])
    prepare_dataset("folder", folder, tmp_path / "out")
    lines = (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()
    told = [json.loads(line) for line in lines]
    expected = [
        "image 2 of 3 cannot be decoded",
        "image 'none.png' is nowhere below the source folder",
        "2 images but 3 image_labels",
        "image 3 is the same as image 1",
        "18 images are more than 16",
        "frame 1 is asked for, but there are 2 images",
        "image is empty",
    ]
    for number, (line, reason) in enumerate(zip(told, expected, strict=True), start=1):
        assert line["where"].endswith(f"line {number}")
        assert reason in line["reason"]


def test_questions_of_text(tmp_path: Path) -> None:
    rows = [
        {"question": f"Which organ, {n}?", "answer": "liver", "options": ["liver", "lung"]}
        | {"rationale": "It lies on the right."}
        for n in range(4)
    ]
    (tmp_path / "mine").mkdir()
    table = tmp_path / "mine" / "table.jsonl"
    table.write_text("".join(json.dumps(one) + "\n" for one in rows))
    prepare_dataset("text", tmp_path / "mine", tmp_path / "out", split="image-disjoint")
    found = [one for name in ("train", "test") for one in read(tmp_path / f"out/{name}.parquet")]
    assert all(one.images == () and one.options == ("liver", "lung") for one in found)
    assert {one.question for one in found} == {one["question"] for one in rows}
    assert {one.rationale for one in found} == {"It lies on the right."}
    assert len({one.image_id for one in found}) == 4
    table.write_text(json.dumps(rows[0] | {"image": "0.png"}) + "\n")
    report = prepare_dataset("text", tmp_path / "mine", tmp_path / "out")
    assert "1 rows have images, which the source text does not read" in report
    with pytest.raises(UserError, match="'image' is none of question, answer"):
        choices = Choices(map=("image=file",))
        prepare_dataset("text", tmp_path / "mine", tmp_path / "out", choices=choices)


def slice_of(position: float | None, instance: int, series: str, **tags: Any) -> bytes:
    """A real CT slice at another place, moved by the instance number."""
    dataset = pydicom.dcmread(io.BytesIO(real("CT_small")))
    dataset.PixelData = np.roll(dataset.pixel_array, instance, axis=0).tobytes()
    dataset.SeriesInstanceUID, dataset.InstanceNumber = series, instance
    del dataset.ImagePositionPatient
    if "SliceLocation" in dataset:
        del dataset.SliceLocation
    if position is not None:
        dataset.ImagePositionPatient = [5.0, -7.0, position]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    for name, value in tags.items():
        setattr(dataset, name, value)
    out = io.BytesIO()
    dataset.save_as(out)
    return out.getvalue()


def shown(image: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image)))


def test_a_series_is_ordered_by_position_then_by_instance(tmp_path: Path) -> None:
    series = generate_uid()
    # Instance numbers run against the positions, and names against both.
    placed = {f"z{n}.dcm": slice_of(5.0 * n, 90 - n, series) for n in range(10)}
    untold = {f"a{9 - n}.dcm": slice_of(None, n + 1, series) for n in range(10)}
    rows = [row(id="placed", image="placed"), row(id="untold", image="untold")]
    folder = write_folder(tmp_path / "mine", rows, images=0)
    for name, files in (("placed", placed), ("untold", untold)):
        (folder / name).mkdir()
        (folder / name / "readme.txt").write_text("not a slice")
        for file, content in files.items():
            (folder / name / file).write_bytes(content)
    prepare_dataset("folder", folder, tmp_path / "out", choices=Choices(slices="4"))
    by_id = {one.id: one for one in read(tmp_path / "out" / "train.parquet")}
    order = {"placed": [*placed.values()], "untold": [*untold.values()]}
    for name, example in by_id.items():
        chosen = evenly(10, 4)
        assert chosen == [1, 3, 6, 8]
        for image, place in zip(example.images, chosen, strict=True):
            assert np.array_equal(shown(image), np.asarray(render(order[name][place])))
    assert by_id["placed"].image_labels == tuple(f"slice {n} of 10" for n in (2, 4, 7, 9))
    assert by_id["untold"].image_labels == tuple(f"frame {n} of 10" for n in (2, 4, 7, 9))
    assert by_id["placed"].study is not None
    prepare_dataset("folder", folder, tmp_path / "all", choices=Choices(slices="all"))
    assert {len(one.images) for one in read(tmp_path / "all" / "train.parquet")} == {10}


def test_a_series_with_some_positions_is_ordered_by_instance_or_a_fault() -> None:
    image = ImageFile(lambda: b"", "one.dcm")
    positions = (30.0, None, 10.0, None)
    mixed = [Slice(image, place, 4 - n) for n, place in enumerate(positions)]
    assert [one.instance for one in in_order(mixed, "ct")] == [1, 2, 3, 4]
    for instance in (0, 2):
        spoilt = [*mixed[:3], Slice(image, None, instance)]
        with pytest.raises(Fault, match="series 'ct' has a position in 2 of 4 images"):
            in_order(spoilt, "ct")


def test_faults_of_a_series(tmp_path: Path) -> None:
    one, other = generate_uid(), generate_uid()
    groups = {
        "mixed": [slice_of(1.0, 1, one), slice_of(2.0, 2, other)],
        "long": [slice_of(float(n), n, one) for n in range(17)],
        "empty": [b"no DICOM"],
    }
    rows = [row(image=name) for name in (*groups, "nowhere")]
    rows += [row(id=f"sound {n}", image="sound") for n in range(5)]
    folder = write_folder(tmp_path / "mine", rows, images=0)
    for name, contents in (groups | {"sound": [slice_of(1.0, 1, one)]}).items():
        (folder / name).mkdir()
        for number, content in enumerate(contents):
            (folder / name / f"{number}.dcm").write_bytes(content)
    prepare_dataset("folder", folder, tmp_path / "out", choices=Choices(slices="all"))
    lines = (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()
    for line, reason in zip(
        lines,
        [
            "'mixed' holds 2 DICOM series",
            "series 'long' has 17 images, and --slices all takes at most 16",
            "series 'empty' holds no DICOM file",
            "image 'nowhere' is nowhere below the source folder",
        ],
        strict=True,
    ):
        assert reason in json.loads(line)["reason"]
    with pytest.raises(UserError, match="--slices 17: expected a number from 1 to 16, or all"):
        prepare_dataset("folder", folder, tmp_path / "out", choices=Choices(slices="17"))


def test_frames_of_one_file_are_a_series(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "mine", [row(image="film.dcm")], images=0)
    film = real("examples_ybr_color")
    (folder / "film.dcm").write_bytes(film)
    prepare_dataset("folder", folder, tmp_path / "out", choices=Choices(slices="3"))
    (found,) = read(tmp_path / "out" / "train.parquet")
    assert found.image_labels == ("frame 6 of 30", "frame 16 of 30", "frame 26 of 30")
    for image, frame in zip(found.images, (5, 15, 25), strict=True):
        assert np.array_equal(shown(image), np.asarray(render(film, frame)))
