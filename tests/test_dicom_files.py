"""DICOM files as they come: every file of pydicom, its encodings, absurd sizes, and what says who
the patient is."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image

from rarl.data.images import BadImage
from rarl.prepare.convert import prepare_dataset
from rarl.prepare.dicom import identifying, render
from tests.pictures import read, real, saved, write_folder
from tests.runs import REPOSITORY, environment

# Files that come with pydicom and hold pixels that cannot be shown: why not.
NO_PICTURE = {
    # The codestream is cut off by a delimiter of sequences within it, and so are the pixels.
    "JPEG2000-embedded-sequence-delimiter.dcm": "cannot be decoded as DICOM",
    "MR_truncated.dcm": "bytes of pixel data is less than expected",
    "badVR.dcm": "cannot be decoded as DICOM",  # a number that is none
    "meta_missing_tsyntax.dcm": "has the photometric interpretation not given",
    "nested_priv_SQ.dcm": "has the photometric interpretation not given",
}
DATA = Path(pydicom.__file__).parent / "data"
RENDER_ALL = """
import sys
from pathlib import Path
from rarl.data.images import BadImage
from rarl.prepare.dicom import identifying, render
for path in map(Path, sys.stdin.read().splitlines()):
    try:
        identifying(path.read_bytes())
        print(f"{path}\t{render(path.read_bytes()).size}")
    except BadImage as error:
        print(f"{path}\t{error}")
"""


def files_with_pixels() -> list[Path]:
    """All files on disk that come with pydicom and hold pixels."""
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in sorted(p for p in DATA.rglob("*") if p.is_file()):
            if path.suffix in ("", ".dcm") and path.read_bytes()[128:132] == b"DICM":
                dataset = pydicom.dcmread(path, force=True)
                names = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
                found += [path] if any(name in dataset for name in names) else []
    return found


def test_every_file_of_pydicom_gives_a_picture_or_one_line_and_the_terminal_stays_clean() -> None:
    """In a process of its own: nothing of what Python's warnings, pydicom's log and the native
    decoders say gets there."""
    files = files_with_pixels()
    assert len(files) > 90
    program = [sys.executable, "-W", "always", "-c", RENDER_ALL]
    done = subprocess.run(
        program,
        cwd=REPOSITORY,
        env=environment(),
        input="\n".join(map(str, files)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [path for path, _ in lines] == [str(path) for path in files]
    bad = {Path(path).name: said for path, said in lines if not said.startswith("(")}
    assert {name: said for name, said in bad.items() if name not in NO_PICTURE} == {}
    for name, reason in NO_PICTURE.items():
        assert reason in bad[name]


def test_jpeg_of_twelve_bits_is_decoded() -> None:
    """A bone scan, shown by its own range of 0 to 264. The two values are those that pydicom's own
    tests know of this file."""
    picture = np.asarray(render(real("JPEG-lossy")))
    assert picture.shape == (1024, 256)
    assert (picture[420, 140], picture[230, 120]) == (round(244 / 264 * 255), round(95 / 264 * 255))
    assert (np.asarray(render(real("JPGExtended"))) == picture).all()
    dataset = pydicom.dcmread(io.BytesIO(real("JPEG-lossy")))
    frame = pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
    dataset.PixelData = pydicom.encaps.encapsulate([frame[: len(frame) // 10]])
    with pytest.raises(BadImage, match="damaged JPEG of 12 bits"):
        render(saved(dataset))


@pytest.mark.parametrize("name", ["MR_small", "CT_small", "examples_rgb_color"])
def test_jpeg_ls_is_the_same_picture(name: str) -> None:
    dataset = pydicom.dcmread(io.BytesIO(real(name)))
    dataset.compress(pydicom.uid.JPEGLSLossless, encoding_plugin="pyjpegls")
    assert (np.asarray(render(saved(dataset))) == np.asarray(render(real(name)))).all()


@pytest.mark.parametrize("kind", ["JPEGLosslessProcess14", "JPEGLosslessProcess14_1"])
@pytest.mark.parametrize("name", ["MR_small", "CT_small", "examples_rgb_color"])
def test_jpeg_lossless_is_the_same_picture(name: str, kind: str, tmp_path: Path) -> None:
    """Transfer syntaxes 1.2.840.10008.1.2.4.57 and .70, written by GDCM."""
    import gdcm

    (tmp_path / "plain.dcm").write_bytes(real(name))
    reader, change = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax()
    reader.SetFileName(str(tmp_path / "plain.dcm"))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, kind)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(tmp_path / "coded.dcm"))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    syntax = pydicom.dcmread(tmp_path / "coded.dcm").file_meta.TransferSyntaxUID
    assert syntax == f"1.2.840.10008.1.2.4.{'70' if kind.endswith('_1') else '57'}"
    coded = np.asarray(render((tmp_path / "coded.dcm").read_bytes()))
    assert (coded == np.asarray(render(real(name)))).all()


def test_threads_that_decode_at_once_leave_stderr_and_warnings_as_they_were() -> None:
    filters, where, level = list(warnings.filters), os.fstat(2), pydicom.config.logger.level
    names = ["JPEG-lossy", "MR_small_RLE", "JPEG2000-embedded-sequence-delimiter"] * 8

    def size(name: str) -> Any:
        try:
            return render(real(name)).size
        except BadImage as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(size, names))
    assert found[:3] * 8 == found
    assert list(warnings.filters) == filters
    assert os.path.samestat(os.fstat(2), where)
    assert pydicom.config.logger.level == level


def test_a_picture_of_absurd_size_is_refused_before_it_is_decoded() -> None:
    dataset = pydicom.dcmread(io.BytesIO(real("MR_small")))
    dataset.Rows, dataset.Columns = 65535, 65535
    with pytest.raises(BadImage, match="65535x65535 pixels are more than"):
        render(saved(dataset))


def test_a_deflated_file_is_measured_before_it_is_inflated(monkeypatch: pytest.MonkeyPatch) -> None:
    assert render(real("image_dfl")).size == (512, 512)
    dataset = pydicom.dcmread(io.BytesIO(real("image_dfl")))
    dataset.PixelData = bytes(64 << 20)
    bomb = saved(dataset)
    del dataset
    monkeypatch.setattr("rarl.prepare.dicom.MAX_INFLATED_BYTES", 4 << 20)
    assert len(bomb) < 1 << 20
    tracemalloc.start()
    for look in (render, identifying):
        with pytest.raises(BadImage, match="is deflated DICOM of more than 4 MiB"):
            look(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_prepared_dicom_is_a_png_that_knows_no_patient(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {
            "image": "a/Doe^John.dcm",
            "question": "Which organ?",
            "answer": "chest",
            "modality": "CT",
        },
        {"image": "film", "question": "Is this ultrasound?", "answer": "yes", "frame": 7},
        {"image": "plain.dcm", "question": "Is this MR?", "answer": "yes"},
    ]
    folder = write_folder(tmp_path / "mine", rows, images=0)
    (folder / "a").mkdir()
    (folder / "a" / "Doe^John.dcm").write_bytes(real("CT_small"))
    (folder / "film").write_bytes(real("examples_ybr_color"))  # known by its content, not its name
    (folder / "plain.dcm").write_bytes(real("MR_small"))
    report = prepare_dataset("folder", folder, tmp_path / "out")
    found = read(tmp_path / "out" / "train.parquet")
    assert [e.images[0][:8] for e in found] == [b"\x89PNG\r\n\x1a\n"] * 3
    assert (
        np.asarray(Image.open(io.BytesIO(found[0].images[0])))
        == np.asarray(render(real("CT_small")))
    ).all()
    assert (
        np.asarray(Image.open(io.BytesIO(found[1].images[0])))
        == np.asarray(render(real("examples_ybr_color"), 7))
    ).all()
    assert "3 DICOM files were rendered to PNG" in report
    person = pydicom.dcmread(io.BytesIO(real("CT_small")))
    secrets = [str(person.PatientName), str(person.StudyInstanceUID), "Doe^John"]
    everything = b"".join(p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file())
    everything += json.dumps([e.image_id + e.id for e in found]).encode() + b"".join(
        e.images[0] for e in found
    )
    for secret in secrets:
        assert len(secret) > 4
        assert secret.encode() not in everything


def test_files_are_counted_and_those_that_may_show_who_the_patient_is_are_named(
    tmp_path: Path,
) -> None:
    """Several questions about a file, and two names for it, are one file."""
    rows = [
        {"image": image, "question": f"Is it {n}?", "answer": "yes"}
        for n, image in enumerate(
            ["burned.dcm", "burned.dcm", "scan.dcm", "plain.dcm", f"{tmp_path}/mine/plain.dcm"]
        )
    ]
    folder = write_folder(tmp_path / "mine", rows, images=0)
    for name, source, burned in (
        ("burned", "MR_small", "YES"),
        ("scan", "CT_small", None),
        ("plain", "examples_rgb_color", "NO"),
    ):
        dataset = pydicom.dcmread(io.BytesIO(real(source)))
        if burned:
            dataset.BurnedInAnnotation = burned
        if name == "scan":
            dataset.ConversionType = "SD"
        (folder / f"{name}.dcm").write_bytes(saved(dataset))
    report = prepare_dataset("folder", folder, tmp_path / "out").splitlines()
    assert "3 DICOM files were rendered to PNG" in report
    burned = "1 DICOM files say that text is burned into the picture, which may name the patient"
    scanned = "1 DICOM files are scans or screenshots, which may have the patient's name in the"
    assert f"{burned}: burned.dcm" in report
    assert f"{scanned} picture: scan.dcm" in report
    listed = (tmp_path / "out" / "doubts.jsonl").read_text().splitlines()
    assert [json.loads(line)["where"] for line in listed] == ["burned.dcm", "scan.dcm"]


@pytest.mark.parametrize(
    ("tags", "says"),
    [
        ({}, None),
        ({"BurnedInAnnotation": "NO", "ConversionType": "SD"}, None),
        ({"RecognizableVisualFeatures": "YES"}, "can be recognised"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.2"}, "scans or screenshots"),
    ],
)
def test_what_a_file_says_of_its_picture(tags: dict[str, str], says: str | None) -> None:
    dataset = pydicom.dcmread(io.BytesIO(real("MR_small")))
    for name, value in tags.items():
        setattr(dataset, name, value)
    found = identifying(saved(dataset))
    assert found is None if says is None else says in str(found)
