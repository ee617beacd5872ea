"""DICOM pictures against renderings computed here from the raw bytes, over real files that come
with pydicom."""

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
from numpy.typing import NDArray
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from rarl.data.images import BadImage
from rarl.prepare.convert import prepare_dataset
from rarl.prepare.dicom import identifying, render
from tests.pictures import read, write_folder
from tests.runs import REPOSITORY, environment


def real(name: str) -> bytes:
    return Path(str(get_testdata_file(f"{name}.dcm"))).read_bytes()


def stored(dataset: Any, dtype: str) -> NDArray[Any]:
    """The pixels as they lie in the file: none of pydicom's own decoding."""
    return np.frombuffer(dataset.PixelData, dtype)[: dataset.Rows * dataset.Columns].reshape(
        dataset.Rows, dataset.Columns
    )


def saved(dataset: Any) -> bytes:
    out = io.BytesIO()
    dataset.save_as(out)
    return out.getvalue()


def by_range(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Linear to 0…255, pixel by pixel, in plain Python floats."""
    shown = [min(255.0, max(0.0, (float(v) - low) / (high - low) * 255)) for v in values.ravel()]
    return np.array([round(v) for v in shown], np.uint8).reshape(values.shape)


def test_ct_is_rescaled_and_shown_by_its_own_range() -> None:
    """128x128, signed 16 bits, slope 1, intercept -1024, no window, padding -2000 (not in this
    picture)."""
    dataset = pydicom.dcmread(io.BytesIO(real("CT_small")))
    hounsfield = stored(dataset, "<i2").astype(float) * 1 - 1024
    picture = render(real("CT_small"))
    assert picture.mode == "L"
    assert (np.asarray(picture) == by_range(hounsfield, hounsfield.min(), hounsfield.max())).all()


def test_padding_does_not_count_for_the_range() -> None:
    dataset = pydicom.dcmread(io.BytesIO(real("CT_small")))
    pixels = stored(dataset, "<i2").copy()
    seen = pixels[5:]
    pixels[:5] = -2000
    dataset.PixelData = pixels.tobytes()
    expected = by_range(pixels, seen.min(), seen.max())
    assert (np.asarray(render(saved(dataset))) == expected).all()


def test_mr_is_windowed_as_the_standard_says() -> None:
    """64x64, signed 16 bits, centre 600, width 1600: PS3.3 C.11.2.1.2.1."""
    dataset = pydicom.dcmread(io.BytesIO(real("MR_small")))
    pixels = stored(dataset, "<i2")
    low, high = 600 - 0.5 - (1600 - 1) / 2, 600 - 0.5 + (1600 - 1) / 2
    assert (np.asarray(render(real("MR_small"))) == by_range(pixels, low, high)).all()
    assert (pixels > high).any(), "the window cuts something off in this picture"


@pytest.mark.parametrize(
    "name", ["MR_small_RLE", "MR_small_bigendian", "MR_small_implicit", "MR_small_jp2klossless"]
)
def test_other_encodings_of_the_same_picture_look_the_same(name: str) -> None:
    assert (np.asarray(render(real(name))) == np.asarray(render(real("MR_small")))).all()


@pytest.mark.parametrize("function", ["LINEAR_EXACT", "SIGMOID"])
def test_other_window_functions(function: str) -> None:
    dataset = pydicom.dcmread(io.BytesIO(real("MR_small")))
    dataset.VOILUTFunction = function
    pixels = stored(dataset, "<i2")
    if function == "LINEAR_EXACT":
        expected = by_range(pixels, 600 - 800, 600 + 800)
    else:
        bright = [255 / (1 + np.exp(-4 * (float(v) - 600) / 1600)) for v in pixels.ravel()]
        expected = np.rint(bright).astype(np.uint8).reshape(pixels.shape)
    assert (np.asarray(render(saved(dataset))) == expected).all()


def test_the_first_of_several_windows_counts() -> None:
    """examples_overlay: centres 450 and 200, widths 790 and 443; 12 of 16 bits."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(io.BytesIO(real("examples_overlay")))
    pixels = stored(dataset, "<u2")
    low, high = 450 - 0.5 - (790 - 1) / 2, 450 - 0.5 + (790 - 1) / 2
    assert (np.asarray(render(real("examples_overlay"))) == by_range(pixels, low, high)).all()


@pytest.mark.parametrize("written", ["US", "OW"])
@pytest.mark.parametrize("bits", [8, 12])
def test_a_voi_lut_is_scaled_by_its_own_bits(bits: int, written: str) -> None:
    """The table maps -5 to 20, -4 to 21 and so on, and is used up to 200 of its 255 or 4095."""
    dataset = pydicom.dcmread(io.BytesIO(real("MR_small")))
    entries = [20 + i % 180 for i in range(3000)]
    lut = Dataset()
    lut.add_new("LUTDescriptor", "SS", [len(entries), -5, bits])
    lut.add_new(
        "LUTData", written, entries if written == "US" else np.array(entries, "<u2").tobytes()
    )
    dataset.VOILUTSequence = [lut]
    places = np.clip(stored(dataset, "<i2").astype(int) + 5, 0, len(entries) - 1)
    expected = by_range(np.array(entries)[places], 0, 2**bits - 1)
    assert (np.asarray(render(saved(dataset))) == expected).all()


def group(**sequences: dict[str, Any]) -> Dataset:
    """A functional group: macro sequences of one item each."""
    found = Dataset()
    for name, values in sequences.items():
        item = Dataset()
        for key, value in values.items():
            setattr(item, key, value)
        setattr(found, name, [item])
    return found


def test_enhanced_files_are_shown_by_the_values_of_the_frame_then_by_shared_ones() -> None:
    """Two frames: the first has its own window, the second its own rescale."""
    dataset = pydicom.dcmread(io.BytesIO(real("MR_small")))
    pixels = stored(dataset, "<i2")
    dataset.PixelData, dataset.NumberOfFrames = pixels.tobytes() * 2, 2
    shared = (
        {"WindowCenter": 600, "WindowWidth": 1600},
        {"RescaleIntercept": -100, "RescaleSlope": 2},
    )
    dataset.SharedFunctionalGroupsSequence = [
        group(FrameVOILUTSequence=shared[0], PixelValueTransformationSequence=shared[1])
    ]
    dataset.PerFrameFunctionalGroupsSequence = [
        group(
            FrameVOILUTSequence={
                "WindowCenter": 900,
                "WindowWidth": 700,
                "VOILUTFunction": "LINEAR_EXACT",
            }
        ),
        group(PixelValueTransformationSequence={"RescaleIntercept": 50, "RescaleSlope": 1}),
    ]
    dataset.WindowCenter, dataset.WindowWidth = 1, 2  # of no frame
    first, second = (np.asarray(render(saved(dataset), frame)) for frame in (0, 1))
    assert (first == by_range(pixels.astype(float) * 2 - 100, 900 - 350, 900 + 350)).all()
    assert (
        second == by_range(pixels.astype(float) + 50, 600 - 0.5 - 1599 / 2, 600 - 0.5 + 1599 / 2)
    ).all()


def test_monochrome1_is_inverted() -> None:
    dataset = pydicom.dcmread(io.BytesIO(real("MR_small")))
    dataset.PhotometricInterpretation = "MONOCHROME1"
    assert (
        np.asarray(render(saved(dataset))) == 255 - np.asarray(render(real("MR_small"))).astype(int)
    ).all()


def test_rescale_with_a_slope_moves_the_window() -> None:
    dataset = pydicom.dcmread(io.BytesIO(real("MR_small")))
    dataset.RescaleSlope, dataset.RescaleIntercept = 2, -100
    values = stored(dataset, "<i2").astype(float) * 2 - 100
    low, high = 600 - 0.5 - (1600 - 1) / 2, 600 - 0.5 + (1600 - 1) / 2
    assert (np.asarray(render(saved(dataset))) == by_range(values, low, high)).all()


def test_colour_ultrasound_keeps_its_colours() -> None:
    """320x240 RGB, uncompressed: the bytes of the file are the picture."""
    dataset = pydicom.dcmread(io.BytesIO(real("examples_rgb_color")))
    assert dataset.Modality == "US"
    raw = np.frombuffer(dataset.PixelData, np.uint8)[: 240 * 320 * 3]
    expected = (
        raw.reshape(240, 320, 3)
        if dataset.PlanarConfiguration == 0
        else raw.reshape(3, 240, 320).transpose(1, 2, 0)
    )
    picture = render(real("examples_rgb_color"))
    assert picture.mode == "RGB"
    assert (np.asarray(picture) == expected).all()
    assert (expected[..., 0] != expected[..., 2]).any(), "there is colour in this picture"


def test_palette_ultrasound_is_looked_up() -> None:
    """800x350, 8 bits, a palette of 16-bit entries in three tables."""
    dataset = pydicom.dcmread(io.BytesIO(real("examples_palette")))
    index = np.frombuffer(dataset.PixelData, np.uint8)[: 350 * 800].reshape(350, 800)
    first = dataset.RedPaletteColorLookupTableDescriptor[1]
    tables = [
        np.frombuffer(dataset[f"{name}PaletteColorLookupTableData"].value, "<u2")
        for name in ("Red", "Green", "Blue")
    ]
    channels = [t[np.clip(index.astype(int) - first, 0, len(t) - 1)] for t in tables]
    expected = np.rint(np.stack(channels, axis=-1) / 65535 * 255).astype(np.uint8)
    assert (np.asarray(render(real("examples_palette"))) == expected).all()


def test_a_chosen_frame_of_a_compressed_colour_film() -> None:
    """30 JPEG frames in YBR: each is a JPEG of its own, which Pillow decodes here."""
    dataset = pydicom.dcmread(io.BytesIO(real("examples_ybr_color")))
    frames = list(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=30))
    for number in (0, 7, 29):
        expected = np.asarray(Image.open(io.BytesIO(frames[number])).convert("RGB")).astype(int)
        found = np.asarray(render(real("examples_ybr_color"), number)).astype(int)
        assert np.abs(found - expected).max() <= 3, number  # two roundings of the colour conversion
    assert (
        np.asarray(render(real("examples_ybr_color"), 0))
        != np.asarray(render(real("examples_ybr_color"), 29))
    ).any()


def test_sixteen_bit_colour_is_scaled_by_its_bits() -> None:
    picture = np.asarray(render(real("SC_rgb_rle_16bit")))
    eight = np.asarray(render(real("SC_rgb_rle")))
    assert picture.dtype == np.uint8
    assert np.abs(picture.astype(int) - eight.astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("data", "frame", "reason"),
    [
        (b"hello", 0, "is not a DICOM file"),
        (b"", 0, "is not a DICOM file"),
        ("MR_small", 1, "has 1 frames, so there is no frame 1"),
        ("MR_small", -1, "there is no frame -1"),
        ("test-SR", 0, "without a picture"),
        ("reportsi", 0, "without a picture"),
        ("MR_truncated", 0, "cannot be decoded as DICOM"),
        ("JPEG2000-embedded-sequence-delimiter", 0, "cannot be decoded as DICOM"),
    ],
)
def test_what_cannot_be_shown_says_why(data: bytes | str, frame: int, reason: str) -> None:
    with pytest.raises(BadImage, match=reason) as caught:
        render(real(data) if isinstance(data, str) else data, frame)
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)


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
    assert [e.image[:8] for e in found] == [b"\x89PNG\r\n\x1a\n"] * 3
    assert (
        np.asarray(Image.open(io.BytesIO(found[0].image))) == np.asarray(render(real("CT_small")))
    ).all()
    assert (
        np.asarray(Image.open(io.BytesIO(found[1].image)))
        == np.asarray(render(real("examples_ybr_color"), 7))
    ).all()
    assert "3 DICOM files were rendered to PNG" in report
    person = pydicom.dcmread(io.BytesIO(real("CT_small")))
    secrets = [str(person.PatientName), str(person.StudyInstanceUID), "Doe^John"]
    everything = b"".join(p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file())
    everything += json.dumps([e.image_id + e.id for e in found]).encode() + b"".join(
        e.image for e in found
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
