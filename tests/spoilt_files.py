"""Faults of whole files, of tables and of archives."""

from __future__ import annotations

import json

from tests.pictures import write_hub_parquet
from tests.spoilt_sources import (
    ROWS,
    Fault,
    add_member,
    break_lzma,
    break_member,
    csv_lines,
    cut_file,
    cut_parquet,
    empty_parquet,
    folder_with,
    good_row,
    in_directory,
    latin_parquet,
    row_two,
    slake_rows,
    slake_zip,
    table,
)

TABLES: dict[str, Fault] = {
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
}

ARCHIVES: dict[str, Fault] = {
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
