"""Seeded faults over every format: each is an error that names it, or rows that are counted, listed
and left out. Never another exception, never a half-written output."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rarl.errors import UserError
from rarl.prepare.convert import prepare_dataset
from tests.pictures import read
from tests.spoilt_files import ARCHIVES, TABLES
from tests.spoilt_rows import IMAGES, TEXTS
from tests.spoilt_sources import ROWS

FAULTS = {**IMAGES, **TEXTS, **TABLES, **ARCHIVES}


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
