"""Patients, studies and sites: splits that none straddles, hashes in place of names, intervals over
patients."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.data import get_testdata_file

from rarl.data.parquet import ParquetRows
from rarl.errors import UserError
from rarl.evaluation.results import results
from rarl.prepare.convert import prepare_dataset
from rarl.prepare.fingerprint import ImagePrint, Side
from rarl.prepare.leaks import check_datasets
from rarl.prepare.people import banded, hashed, is_date, may_name, read_salt
from rarl.prepare.rows import Choices
from rarl.prepare.splitting import Splitting, own_split
from rarl.samples import Sample
from rarl.schema import Example
from tests.records import graded

PLANTED = ("MRN-7700123", "ACC-55501", "Smith^John", "1931-05-17")


@pytest.fixture(autouse=True)
def salt(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A salt of the test's own: the user's stays as it is."""
    place = tmp_path_factory.mktemp("salt") / "salt"
    monkeypatch.setenv("RARL_SALT_FILE", str(place))
    return place


def picture(number: int) -> bytes:
    shades = np.random.default_rng(number).integers(0, 255, (48, 48), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(shades).save(out, format="PNG")
    return out.getvalue()


def write_folder(folder: Path, header: str, rows: list[str]) -> Path:
    """A table of a user's own, and 12 pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(12):
        (folder / f"{number}.png").write_bytes(picture(number))
    (folder / "table.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder


def read(path: Path) -> list[Example]:
    rows = ParquetRows(path)
    return rows.read(range(len(rows)))


@settings(max_examples=1000)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 12), st.one_of(st.none(), st.integers(0, 6))),
        min_size=2,
        max_size=30,
    ),
    share=st.floats(0.05, 0.9),
    validation=st.sampled_from([0.0, 0.01, 0.09]),
    seed=st.integers(0, 99),
)
def test_no_patient_and_no_image_straddles_a_split(
    rows: list[tuple[int, int | None]], share: float, validation: float, seed: int
) -> None:
    side = Side("all")
    for image, patient in rows:
        look = np.random.default_rng(image).integers(0, 2**63, 4, dtype=np.uint64)
        name = None if patient is None else f"p{patient}"
        side.add([ImagePrint(f"i{image}", look)], "What?", "a", patient=name)
    try:
        splits, _ = own_split(
            side,
            [None] * len(rows),
            np.full(len(rows), "train", dtype="U10"),
            Splitting("patient-disjoint", share, seed, validation),
        )
    except UserError as error:
        few = "only 2 patients differ" if validation else "all is of one patient"
        known = (f"{few}: there is", "all is of one patient: there is", "--split patient-disjoint")
        assert str(error).startswith(known)
        return
    assert set(splits.tolist()) == {"train", "test"} | ({"validation"} if validation else set())
    for place in (0, 1):
        homes: dict[int, set[str]] = {}
        for row, split in zip(rows, splits.tolist(), strict=True):
            unit = row[place]
            if unit is not None:
                homes.setdefault(unit, set()).add(split)
        assert all(len(found) == 1 for found in homes.values())


def test_a_table_that_names_patients_is_split_by_them_and_keeps_no_name(tmp_path: Path) -> None:
    header = "image,question,answer,PatientID,Accession No,Patient Name,Birth Date,Age,Patient Sex"
    rows = [
        f"{number}.png,What is seen in {number}?,thing {number},MRN-770012{number // 3},"
        f"ACC-5550{number},Smith^John,1931-05-17,{88 + number // 3},F"
        for number in range(12)
    ]
    src = write_folder(tmp_path / "src", header, rows)
    report = prepare_dataset("folder", src, tmp_path / "unsplit")
    assert "if 'PatientID' is that, add --map patient=PatientID" in report
    assert "may name a patient and do not go along" in report
    assert set(read(tmp_path / "unsplit/train.parquet")[0].extra) == {"Age", "Patient Sex"}

    choices = Choices(map=("patient=PatientID", "study=Accession No"))
    with pytest.raises(UserError, match="--split patient-disjoint: nothing tells the patients"):
        prepare_dataset("folder", src, tmp_path / "none", "patient-disjoint")
    report = prepare_dataset(
        "folder", src, tmp_path / "out", "patient-disjoint", 0.5, choices=choices
    )
    train, test = (read(tmp_path / f"out/{name}.parquet") for name in ("train", "test"))
    sides = [{one.patient for one in own} for own in (train, test)]
    assert [len(one) for one in sides] == [2, 2] and not sides[0] & sides[1]
    assert {one.patient for one in (*train, *test)} == {
        hashed("patient", f"MRN-770012{number}") for number in range(4)
    }
    assert len({one.study for one in (*train, *test)}) == 12
    assert {one.extra["Age"] for one in (*train, *test)} == {"88", "89", "90+"}
    assert "test.parquet: 6 questions (6 open) about 6 images of 2 patients" in report
    assert "None of its 2 patients is in train" in report
    for out in ("out", "unsplit"):
        for file in (tmp_path / out).rglob("*"):
            content = file.read_bytes() if file.is_file() else b""
            assert not [name for name in PLANTED if name.encode() in content], file
    assert not [name for name in PLANTED if name in report]


def test_patients_on_both_sides_are_a_leak(tmp_path: Path) -> None:
    rows = [
        f"{number}.png,What is {number}?,thing {number},p{number % 3},{split}"
        for number, split in enumerate(["train"] * 8 + ["test"] * 4)
    ]
    src = write_folder(tmp_path / "src", "image,question,answer,patient,split", rows)
    report = prepare_dataset("folder", src, tmp_path / "out")
    told = "LEAK: 3 of its 3 patients are in train, too"
    assert told in report
    again, sound = check_datasets([tmp_path / "out"])
    assert told in again and not sound


def test_a_site_is_the_test_split(tmp_path: Path) -> None:
    rows = [f"{n}.png,What is {n}?,thing {n},{'St. Mary' if n < 4 else 'Uni'}" for n in range(12)]
    src = write_folder(tmp_path / "src", "image,question,answer,site", rows)
    prepare_dataset("folder", src, tmp_path / "out", "site:st. mary")
    assert {one.site for one in read(tmp_path / "out/test.parquet")} == {"St. Mary"}
    assert {one.site for one in read(tmp_path / "out/train.parquet")} == {"Uni"}
    with pytest.raises(UserError, match=r"no row is of that site; there are St\. Mary, Uni"):
        prepare_dataset("folder", src, tmp_path / "none", "site:Elsewhere")
    with pytest.raises(UserError, match="name the site, as in"):
        prepare_dataset("folder", src, tmp_path / "none", "site:")


def test_dicom_tells_patient_study_and_site(tmp_path: Path) -> None:
    src = tmp_path / "src"
    src.mkdir()
    for number in range(4):
        dataset = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
        dataset.PatientID = f"MRN-770012{number // 2}"
        dataset.StudyInstanceUID = f"1.2.3.{number}"
        dataset.InstitutionName = "Uni"
        dataset.PixelData = (dataset.pixel_array + 40 * number).astype(np.int16).tobytes()
        dataset.save_as(src / f"{number}.dcm")
    rows = [f"{number}.dcm,What is {number}?,thing {number}" for number in range(4)]
    (src / "table.csv").write_text("\n".join(["image,question,answer", *rows]) + "\n")
    prepare_dataset("folder", src, tmp_path / "out")
    found = read(tmp_path / "out/train.parquet")
    assert [one.patient for one in found] == [
        hashed("patient", f"MRN-770012{number}") for number in (0, 0, 1, 1)
    ]
    assert len({one.study for one in found}) == 4
    assert {one.site for one in found} == {"Uni"}


def test_the_salt_is_made_once_for_this_user_alone(salt: Path) -> None:
    first = hashed("patient", "7")
    assert first == hashed("patient", " 7 ") != hashed("study", "7")
    assert salt.stat().st_mode & 0o777 == 0o600
    salt.write_bytes(b"s" * 32)
    read_salt.cache_clear()
    assert hashed("patient", "7") != first, "another salt, other hashes"
    salt.write_bytes(b"short")
    read_salt.cache_clear()
    with pytest.raises(UserError, match="holds no salt of 32 bytes"):
        hashed("patient", "7")


@pytest.mark.parametrize(
    ("column", "names"),
    [
        *((name, True) for name in ("PatientID", "patient_id", "MRN", "Subject", "StudyUID")),
        *((name, True) for name in ("Date of Birth", "patientName", "accession")),
        *((name, False) for name in ("ward", "Patient Age", "PatientSex", "scanner", "pidgin")),
    ],
)
def test_columns_that_may_name_a_patient(column: str, names: bool) -> None:
    assert may_name(column) == names


@pytest.mark.parametrize(
    ("value", "kept"), [("89", "89"), ("90", "90+"), ("103Y", "90+"), ("045Y", "045Y"), ("?", "?")]
)
def test_the_oldest_are_one_band(value: str, kept: str) -> None:
    assert banded("Patient Age", value) == kept
    assert banded("dose", value) == value


@pytest.mark.parametrize(
    ("columns", "names"),
    [
        ("patientid PATIENTID patientname lastname dateofbirth birthdate accessionnumber", True),
        ("subjectid mrnumber_mrn studyuid Patientid", True),
        ("view_name update birthmark patientage patientsex inpatient subjective studytype", False),
        ("birthweight pidgin organ_name rapid", False),
    ],
)
def test_names_without_marks_tell_patients_and_spare_others(columns: str, names: bool) -> None:
    assert [one for one in columns.split() if may_name(one) != names] == []


def test_texts_that_are_dates_and_folded_ages_are_told() -> None:
    for text in ("2020-12-31", "2020-12-31 10:05", "31.12.2020", "12/31/2020", "31/12/2020"):
        assert is_date("taken", text), text
    assert is_date("studydate", "20201231") and not is_date("update", "20201231")
    for text in ("20201231", "1.2.3", "99.99.2020", "12/31", "2020", "1-2-2020-5"):
        assert not is_date("count", text), text
    assert banded("patientage", "95") == "90+"
    assert banded("stage", "95") == banded("dosage", "95") == "95"


def test_dates_and_names_of_a_csv_do_not_go_along(tmp_path: Path) -> None:
    header = "image,question,answer,patientid,taken,update,patientage"
    rows = [f"{n}.png,What is {n}?,thing {n},MRN-77,31.12.2020,new,95" for n in range(12)]
    prepare_dataset("folder", write_folder(tmp_path / "src", header, rows), tmp_path / "out")
    extra = read(tmp_path / "out/train.parquet")[0].extra
    assert extra == {"update": "new", "patientage": "90+"}


def with_patient(sample: Sample, patient: str | None) -> Sample:
    return replace(sample, example=replace(sample.example, patient=patient))


def test_intervals_are_over_patients_where_they_are_known() -> None:
    """160 images of 40 patients, each of whom is always right or always wrong: of their mean, no
    more is known than 40 images would tell."""
    samples = [graded(number, (number // 4) % 2 == 0) for number in range(160)]
    by_image = results({("m", "d"): {0: samples}}).iloc[0]
    patients = [with_patient(one, f"p{number // 4}") for number, one in enumerate(samples)]
    by_patient = results({("m", "d"): {0: patients}}).iloc[0]
    assert by_patient["mean"] == by_image["mean"] == 0.5
    widths = [one["high"] - one["low"] for one in (by_image, by_patient)]
    assert widths[1] == pytest.approx(2 * widths[0], rel=0.1)
