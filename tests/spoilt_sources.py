"""Folders and published layouts with one thing wrong, each built by a function of the path."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pydicom.data import get_testdata_file

from tests.pictures import picture, write_folder, write_hub_parquet, write_zip

ROWS = 6
# Source, how it is built, "skip" or "error", what is said.
Fault = tuple[str, Callable[[Path], None], str, str]


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
