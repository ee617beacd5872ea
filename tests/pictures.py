"""Pictures and published layouts to prepare, made here."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageEnhance
from pydicom.data import get_testdata_file

from rarl.data.parquet import ParquetRows
from rarl.schema import Example

IMAGE_STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def picture(number: int, kind: str = "JPEG", size: tuple[int, int] = (60, 90)) -> bytes:
    """Coarse noise, another for each number: pictures that no hash takes for one another."""
    shades = np.random.default_rng(number).integers(0, 255, (6, 6), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(shades).resize(size).save(out, format=kind)
    return out.getvalue()


def write_zip(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def write_hub_parquet(path: Path, rows: list[tuple[bytes, str, str]]) -> None:
    """(image, question, answer) as the hub stores image data sets."""
    images = pa.array([{"bytes": image, "path": None} for image, _, _ in rows], IMAGE_STRUCT)
    table = pa.table(
        {"image": images, "question": [r[1] for r in rows], "answer": [r[2] for r in rows]}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def write_folder(path: Path, rows: list[dict[str, Any]], images: int = 4) -> Path:
    """A folder of your own, with the table as JSON lines."""
    path.mkdir(parents=True, exist_ok=True)
    for number in range(images):
        (path / f"{number}.png").write_bytes(picture(number, "PNG"))
    (path / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[Example]:
    rows = ParquetRows(path)
    return rows.read(list(range(len(rows))))


def reencoded(path: Path) -> bytes:
    """The same radiograph, smaller, brighter and compressed again."""
    image = Image.open(path).convert("RGB")
    image = image.resize((round(image.width * 0.7), round(image.height * 0.7)))
    out = io.BytesIO()
    ImageEnhance.Brightness(image).enhance(1.1).save(out, "JPEG", quality=60)
    return out.getvalue()


def make_pictures(folder: Path, count: int) -> None:
    """Noise that is fine enough for all bits of the hash to say something."""
    folder.mkdir()
    for number in range(count):
        shades = np.random.default_rng(number).integers(0, 255, (32, 32), dtype=np.uint8)
        Image.fromarray(shades).resize((240, 320)).save(folder / f"{number}.jpg")


def real(name: str) -> bytes:
    """A DICOM file that comes with pydicom."""
    return Path(str(get_testdata_file(f"{name}.dcm"))).read_bytes()


def saved(dataset: Any) -> bytes:
    """The DICOM file of a data set."""
    out = io.BytesIO()
    dataset.save_as(out)
    return out.getvalue()
