"""Seeded faults over every format: each is an error that names it, or rows that are counted, listed
and left out. Never another exception, never a half-written output."""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from rarl.errors import UserError
from rarl.prepare.convert import prepare_dataset
from tests.pictures import picture, read, write_folder, write_hub_parquet, write_zip

ROWS = 6


def good_row(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "image": f"{number}.png",
        "question": f"What is in {number}?",
        "answer": "a mass",
    } | changes


def folder_with(path: Path, **changes: Any) -> Path:
    """Row 2 of six is changed."""
    return write_folder(
        path, [good_row(i, **(changes if i == 2 else {})) for i in range(ROWS)], ROWS
    )


def ignore(_: object) -> None:
    """Makes a function out of a lambda whose value nobody wants."""


def image_two(content: bytes, name: str = "2.png") -> Callable[[Path], None]:
    def build(path: Path) -> None:
        folder_with(path, image=name)
        (path / name).write_bytes(content)

    return build


def image_named_otherwise(path: Path) -> None:
    folder_with(path, image="img/case04.jpg")
    (path / "img").mkdir()
    (path / "img" / "CASE04.JPG").write_bytes(picture(2))


def row_two(**changes: Any) -> Callable[[Path], None]:
    return lambda path: ignore(folder_with(path, **changes))


def table(name: str, content: bytes) -> Callable[[Path], None]:
    def build(path: Path) -> None:
        folder_with(path)
        (path / "table.jsonl").unlink()
        (path / name).write_bytes(content)

    return build


def csv_lines(*lines: str) -> bytes:
    good = [f"{i}.png,What is in {i}?,a mass" for i in range(ROWS) if i != 2]
    return "\n".join(["image,question,answer", *good, *lines]).encode() + b"\n"


def bomb() -> bytes:
    """A PNG of a few bytes that says that it is 40,000 pixels wide and high."""
    out = bytearray(picture(0, "PNG"))
    out[16:24] = struct.pack(">II", 40_000, 40_000)
    out[29:33] = struct.pack(">I", zlib.crc32(out[12:29]))
    return bytes(out)


def even(value: int, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((60, 60), value, np.uint8)).save(out, kind)
    return out.getvalue()


def parquet_answers(path: Path) -> None:
    """A missing number in a Parquet column of answers."""
    folder_with(path)
    (path / "table.jsonl").unlink()
    rows = [{"image": f"{i}.png", "question": f"What is in {i}?"} for i in range(ROWS)]
    answers = [float(i) if i != 2 else float("nan") for i in range(ROWS)]
    pq.write_table(
        pa.Table.from_pylist(rows).append_column("answer", pa.array(answers)),
        path / "table.parquet",
    )


def latin_parquet(path: Path) -> None:
    folder_with(path)
    (path / "table.jsonl").unlink()
    questions = pa.array([b"What?", "Où?".encode("latin-1")] * 3, pa.binary()).view(pa.string())
    names, answers = [f"{i}.png" for i in range(ROWS)], ["a mass"] * ROWS
    pq.write_table(
        pa.table({"image": names, "question": questions, "answer": answers}), path / "table.parquet"
    )


def cut_parquet(path: Path) -> None:
    """The footer is there, the pages before it are not."""
    write_hub_parquet(
        path / "train-0.parquet", [(picture(i), "What?", "a mass") for i in range(40)]
    )
    whole = (path / "train-0.parquet").read_bytes()
    half = len(whole) // 2
    (path / "train-0.parquet").write_bytes(whole[:4] + bytes(half - 4) + whole[half:])


def empty_parquet(path: Path) -> None:
    path.mkdir()
    (path / "train-0.parquet").touch()


def empty_images(path: Path) -> None:
    rows = [(picture(i) if i != 2 else b"", "What?", "a mass") for i in range(ROWS)]
    write_hub_parquet(path / "train-0.parquet", rows)


def slake_rows(path: Path, **changes: Any) -> None:
    known = {"q_lang": "en", "answer_type": "OPEN", "question": "What?", "answer": "a mass"}
    rows = [
        known | {"qid": i, "img_name": f"x{i}/s.jpg"} | (changes if i == 2 else {})
        for i in range(ROWS)
    ]
    path.mkdir()
    (path / "train.json").write_text(json.dumps(rows))


def slake_zip(edit: Callable[[Path], None] | None = None, **changes: Any) -> Callable[[Path], None]:
    def build(path: Path) -> None:
        slake_rows(path, **changes)
        write_zip(path / "imgs.zip", {f"imgs/x{i}/s.jpg": picture(i) for i in range(ROWS)})
        if edit is not None:
            edit(path / "imgs.zip")

    return build


def add_member(name: str, encrypted: bool = False) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, b"x")
        if encrypted:  # the flag in the central directory, of the last entry
            content = bytearray(path.read_bytes())
            content[content.rindex(b"PK\x01\x02") + 8] |= 1
            path.write_bytes(content)

    return edit


def break_member(path: Path) -> None:
    """One byte of the third picture is another: its checksum fails."""
    content = bytearray(path.read_bytes())
    content[content.index(picture(2)) + 200] ^= 255
    path.write_bytes(content)


def in_directory(
    offset: int, value: int, also: tuple[int, int] | None = None
) -> Callable[[Path], None]:
    """Bytes of the first entry of a zip's central directory are others."""

    def edit(path: Path) -> None:
        content = bytearray(path.read_bytes())
        start = content.index(b"PK\x01\x02")
        content[start + offset] = value
        if also is not None:
            content[start + also[0]] = also[1]
        path.write_bytes(content)

    return edit


def break_lzma(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for number in range(ROWS):
            archive.writestr(f"imgs/x{number}/s.jpg", picture(number))
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("imgs/x2/s.jpg").header_offset
    content = bytearray(path.read_bytes())
    content[start + 60 : start + 160] = bytes(
        byte ^ 0xA5 for byte in content[start + 60 : start + 160]
    )
    path.write_bytes(content)


def cut_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def pmc_csv(answer: str, label: str) -> Callable[[Path], None]:
    def build(path: Path) -> None:
        folder_with(path)
        header = "Figure_path,Question,Answer,Choice A,Choice B,Choice C,Choice D,Answer_label\n"
        rows = [f"{i}.png,What?,MRI,A:CT,B:MRI,C:PET,D:US,B\n" for i in range(ROWS) if i != 2]
        (path / "train.csv").write_text(
            header + "".join(rows) + f"2.png,What?,{answer},A:CT,B:MRI,C:PET,D:US,{label}\n"
        )

    return build


def pmc_split(split: str) -> Callable[[Path], None]:
    def build(path: Path) -> None:
        folder_with(path)
        lines = [
            f"{i}.png,What?,MRI,A:CT,B:MRI,C:PET,D:US,{split if i == 2 else 'train'}\n"
            for i in range(ROWS)
        ]
        header = "Figure_path,Question,Answer,Choice A,Choice B,Choice C,Choice D,split\n"
        (path / "train.csv").write_text(header + "".join(lines))

    return build


def expert_row(**changes: Any) -> Callable[[Path], None]:
    def build(path: Path) -> None:
        folder_with(path)
        known: dict[str, Any] = {
            "question": "What?",
            "options": {"A": "Rest", "B": "Splint"},
            "label": "A",
        }
        rows = [
            known | {"id": f"MM-{i}", "images": [f"{i}.png"]} | (changes if i == 2 else {})
            for i in range(ROWS)
        ]
        (path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    return build


def real_dicom(name: str) -> bytes:
    return Path(str(get_testdata_file(name))).read_bytes()


JPEG = picture(2)
# name: (source, how it is built, "skip" or "error", what is said)
FAULTS: dict[str, tuple[str, Callable[[Path], None], str, str]] = {
    # images
    "truncated JPEG": (
        "folder",
        image_two(JPEG[: len(JPEG) // 2], "2.jpg"),
        "skip",
        "cannot be decoded",
    ),
    "truncated PNG": ("folder", image_two(picture(2, "PNG")[:300]), "skip", "cannot be decoded"),
    "text that is called PNG": ("folder", image_two(b"not a picture"), "skip", "cannot be decoded"),
    "empty image": ("folder", image_two(b""), "skip", "image '2.png' is empty"),
    "PNG bomb": (
        "folder",
        image_two(bomb()),
        "skip",
        r"40000x40000 pixels are more than|cannot be decoded",
    ),
    "black image": ("folder", image_two(even(0)), "skip", "is blank"),
    "grey JPEG": ("folder", image_two(even(77, "JPEG"), "2.jpg"), "skip", "is blank"),
    "one pixel": ("folder", image_two(picture(2, "PNG", (1, 1))), "skip", "only 1x1 pixels"),
    "truncated DICOM": (
        "folder",
        image_two(real_dicom("MR_truncated.dcm"), "2.dcm"),
        "skip",
        "decoded as DICOM",
    ),
    "DICOM without a picture": (
        "folder",
        image_two(real_dicom("test-SR.dcm"), "2.dcm"),
        "skip",
        "without a picture",
    ),
    "infinite frame": (
        "folder",
        row_two(frame=float("inf")),
        "skip",
        "frame 'inf' is not a number from 0",
    ),
    "half a frame": ("folder", row_two(frame=0.5), "skip", "frame '0.5' is not a number from 0"),
    "text that is called DICOM": (
        "folder",
        image_two(b"x" * 500, "2.dcm"),
        "skip",
        "not a DICOM file",
    ),
    "missing image": ("folder", row_two(image="none.png"), "skip", "image 'none.png' is nowhere"),
    "missing image of another case": (
        "folder",
        image_named_otherwise,
        "skip",
        r"did you mean 'img/CASE04\.JPG'\?",
    ),
    "path that leads outside": (
        "folder",
        row_two(image="../../etc/passwd"),
        "skip",
        "leads outside the source folder",
    ),
    "absolute path": (
        "folder",
        row_two(image="/etc/passwd"),
        "skip",
        "leads outside the source folder",
    ),
    "frame of a PNG": (
        "folder",
        row_two(frame=3),
        "skip",
        "frame 3 is asked for, but the image is not DICOM",
    ),
    "frame that is no number": (
        "folder",
        row_two(frame="last"),
        "skip",
        "frame 'last' is not a number",
    ),
    "image without bytes": ("path-vqa", empty_images, "skip", "image holds no bytes"),
    # texts
    "empty question": ("folder", row_two(question="  "), "skip", "question is empty"),
    "empty answer": ("folder", row_two(answer=""), "skip", "answer is empty"),
    "question that nobody sees": (
        "folder",
        row_two(question="\u200b\ufeff"),
        "skip",
        "question is empty",
    ),
    "half of a character": (
        "folder",
        row_two(question="\ud83d?"),
        "skip",
        r"half of a character \(.ud83d alone\)",
    ),
    "half of a character in options": (
        "folder",
        row_two(options='["a mass", "\\ud83d"]'),
        "skip",
        "look like a JSON",
    ),
    "null answer": ("folder", row_two(answer=None), "skip", "answer is empty"),
    "NaN answer": ("folder", row_two(answer=float("nan")), "skip", "answer is NaN"),
    "NaN answer in Parquet": ("folder", parquet_answers, "skip", "answer is NaN"),
    "the word nan": (
        "folder",
        row_two(answer="NaN"),
        "skip",
        "which programs write for a missing value",
    ),
    "truth value": ("folder", row_two(answer=True), "skip", "answer is of type bool"),
    "answer not among options": (
        "folder",
        row_two(options=["cyst", "stone"]),
        "skip",
        "not among the options",
    ),
    "options as one string": (
        "folder",
        row_two(options="a mass"),
        "skip",
        "options 'a mass' are one text",
    ),
    "options as broken JSON": (
        "folder",
        row_two(options='["a mass", '),
        "skip",
        "look like a JSON or Python list",
    ),
    "options as numbers in lists": (
        "folder",
        row_two(options=[["a mass"]]),
        "skip",
        "not a list of texts",
    ),
    "truth values as options": (
        "folder",
        row_two(options=[True, False]),
        "skip",
        "not a list of texts",
    ),
    "only option": ("folder", row_two(options=["a mass"]), "skip", "'a mass' is the only option"),
    "empty options": ("folder", row_two(options="a mass||"), "skip", "an option is empty"),
    "answer twice among options": (
        "folder",
        row_two(options=["a mass", "a mass"]),
        "skip",
        "is there twice",
    ),
    "unknown split": ("folder", row_two(split="later"), "skip", "split 'later' is not one of"),
    "split that leads outside": (
        "folder",
        row_two(split="../escaped"),
        "skip",
        "split '../escaped' is not one of",
    ),
    "split of a CSV that leads outside": (
        "pmc-vqa",
        pmc_split("../escaped"),
        "skip",
        "split '../escaped' is not",
    ),
    "label that is not an option": (
        "pmc-vqa",
        pmc_csv("MRI", "E"),
        "skip",
        "answer 'E' is not one of the letters",
    ),
    "label and answer disagree": (
        "pmc-vqa",
        pmc_csv("MRI", "C"),
        "skip",
        "not the option of Answer_label C",
    ),
    "no images": (
        "medxpertqa",
        expert_row(images=[]),
        "skip",
        "images is not a list of file names",
    ),
    "options as a list": (
        "medxpertqa",
        expert_row(options=["Rest"]),
        "skip",
        "options is not an object",
    ),
    "unknown answer type": (
        "slake",
        slake_zip(answer_type="MAYBE"),
        "skip",
        "neither CLOSED nor OPEN",
    ),
    "missing key": ("slake", slake_zip(q_lang=None), "skip", "q_lang is empty"),
    # tables
    "duplicate ids": ("folder", row_two(id="row-1"), "skip", "id 'row-1' is also that of"),
    "ragged row": (
        "folder",
        table("t.csv", csv_lines("2.png,What, is it?,a mass")),
        "skip",
        "has 4 cells where the header has 3; put texts with commas in quotes",
    ),
    "row that is cut off": (
        "folder",
        table("t.csv", csv_lines("2.png")),
        "skip",
        "has 1 cells where",
    ),
    "broken line of JSON": (
        "folder",
        table(
            "t.jsonl",
            b'{"image": \n'
            + b"\n".join(json.dumps(good_row(i)).encode() for i in range(ROWS) if i != 2),
        ),
        "skip",
        "not readable as JSON",
    ),
    "line that is no object": (
        "folder",
        table(
            "t.jsonl",
            b"[1]\n" + b"\n".join(json.dumps(good_row(i)).encode() for i in range(ROWS) if i != 2),
        ),
        "skip",
        "expected an object, found list",
    ),
    "open quote": (
        "folder",
        table("t.csv", csv_lines('2.png,"What is it?,a mass')),
        "error",
        "not valid CSV",
    ),
    "neither UTF-8 nor Windows-1252": (
        "folder",
        table(
            "t.csv",
            csv_lines("2.png,Où?,a mass").decode().encode("cp1252") + b"0.png,\x81?,a mass\n",
        ),
        "error",
        r"t\.csv: not UTF-8 \(byte 0xf9 in line 7\)",
    ),
    "UTF-8 and Windows-1252 in one table": (
        "folder",
        table(
            "t.csv",
            csv_lines("2.png,Où?,a mass").decode().encode("cp1252") + "0.png,Où?,x\n".encode(),
        ),
        "error",
        r"t\.csv: not UTF-8 \(byte 0xf9 in line 7\)",
    ),
    "UTF-16": (
        "folder",
        table("t.csv", csv_lines().decode().encode("utf-16")),
        "error",
        "not UTF-8",
    ),
    "empty table": (
        "folder",
        table("t.csv", b""),
        "error",
        "t.csv: is empty; its first line must name the columns",
    ),
    "table without rows": (
        "folder",
        table("t.csv", b"image,question,answer\n"),
        "error",
        "holds no rows",
    ),
    "missing column": (
        "folder",
        table("t.csv", b"image,question\n0.png,a\n"),
        "error",
        "column 'answer' is missing",
    ),
    "column twice": (
        "folder",
        table("t.csv", b"image,image,question,answer\n"),
        "error",
        "'image' is there twice",
    ),
    "JSON that is cut off": (
        "folder",
        table("t.json", b'[{"image"'),
        "error",
        "not readable as JSON",
    ),
    "JSON that is no list": (
        "folder",
        table("t.json", b'{"image": 1}'),
        "error",
        "expected a list of records",
    ),
    "deep JSON": ("folder", table("t.json", b"[" * 100_000), "error", "not readable as JSON"),
    "text that is called Parquet": (
        "folder",
        table("t.parquet", b"hello"),
        "error",
        "not a readable Parquet file",
    ),
    "0-byte Parquet": ("path-vqa", empty_parquet, "error", "not a readable Parquet file"),
    "Parquet with text that is not UTF-8": (
        "folder",
        latin_parquet,
        "error",
        "damaged after row 0: 'utf-8' codec",
    ),
    "damaged Parquet": ("path-vqa", cut_parquet, "error", "damaged after row 0"),
    "Parquet of an unknown split": (
        "path-vqa",
        lambda p: write_hub_parquet(p / "more-0.parquet", []),
        "error",
        "its name should begin with train, validation, test",
    ),
    "no table": (
        "folder",
        lambda p: (folder_with(p) / "table.jsonl").unlink(),
        "error",
        "holds no table",
    ),
    "workbook": (
        "folder",
        table("t.xlsx", b"PK"),
        "error",
        r"t\.xlsx: not a readable workbook .*; save it again as \.xlsx without a password",
    ),
    "workbook of another kind": (
        "folder",
        table("t.ods", b"PK"),
        "error",
        r"t\.ods: cannot be read; save it as \.xlsx",
    ),
    "two tables": (
        "folder",
        lambda p: (folder_with(p) / "t.csv").touch(),
        "error",
        "name the one that is meant",
    ),
    # archives
    "path traversal in a zip": (
        "slake",
        slake_zip(add_member("../../evil.jpg")),
        "error",
        "leads outside the archive",
    ),
    "absolute path in a zip": (
        "slake",
        slake_zip(add_member("/evil.jpg")),
        "error",
        "leads outside the archive",
    ),
    "encrypted member": (
        "slake",
        slake_zip(add_member("secret.jpg", True)),
        "error",
        "is encrypted",
    ),
    "zip that is cut off": ("slake", slake_zip(cut_file), "error", "not a readable zip archive"),
    "zip of a newer version": (
        "slake",
        slake_zip(in_directory(6, 99)),
        "error",
        "not a readable zip archive",
    ),
    "zip with a name of another encoding": (
        "slake",
        slake_zip(in_directory(46, 0xFF, (9, 8))),
        "error",
        "not a readable zip archive",
    ),
    "damaged LZMA member": (
        "slake",
        slake_zip(break_lzma),
        "skip",
        "cannot be read|cannot be decoded",
    ),
    "damaged member": (
        "slake",
        slake_zip(break_member),
        "skip",
        "cannot be read|cannot be decoded",
    ),
    "image that no archive holds": (
        "slake",
        slake_zip(img_name="x9/s.jpg"),
        "skip",
        "image 'x9/s.jpg' is nowhere",
    ),
    "no archive at all": ("slake", slake_rows, "error", "not one of the 6 records can be used"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_named_or_counted(name: str, tmp_path: Path) -> None:
    source, build, expected, message = FAULTS[name]
    src, out = tmp_path / "src", tmp_path / "made" / "out"
    build(src)
    if expected == "error":
        with pytest.raises(UserError, match=message) as caught:
            prepare_dataset(source, src, out)
        assert "\n" not in str(caught.value)
        assert str(src) in str(caught.value)
        assert not list((tmp_path / "made").glob("*"))
        return
    report = prepare_dataset(source, src, out)
    listed = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert len(listed) == 1
    assert str(src) in listed[0]["where"]
    assert re.search(message, listed[0]["reason"])
    assert "1 records cannot be used and were left out" in report
    kept = read(out / ("test.parquet" if source == "medxpertqa" else "train.parquet"))
    assert len(kept) == ROWS - 1
    assert json.loads((out / "dataset.json").read_text())["skipped"] == 1
    assert [p.name for p in (tmp_path / "made").iterdir()] == ["out"]


def test_there_are_thirty_kinds_and_more() -> None:
    assert len(FAULTS) >= 30
    assert {source for source, *_ in FAULTS.values()} >= {
        "folder",
        "slake",
        "path-vqa",
        "pmc-vqa",
        "medxpertqa",
    }
