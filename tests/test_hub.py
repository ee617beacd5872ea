"""`rarl prepare SOURCE owner/name OUT`: from the hub, as far as the source reads it, once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rarl.errors import UserError
from rarl.prepare.hub import locate
from rarl.prepare.rows import Choices
from rarl.prepare.sources import SOURCES
from tests.hub_of_data import COMMIT, Hub, HubData, serve_hub
from tests.pictures import picture, read, write_zip
from tests.published_rows import slake_row
from tests.runs import environment


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """SLAKE as it lies on the hub, a gated copy of it, and nothing else."""
    write_zip(tmp_path / "imgs.zip", {f"imgs/xmlab{i}/source.jpg": picture(i) for i in range(2)})
    files = {
        "README.md": b"# SLAKE",
        "train.json": json.dumps([slake_row(0, 0)]).encode(),
        "test.json": json.dumps([slake_row(0, 1)]).encode(),
        "imgs.zip": (tmp_path / "imgs.zip").read_bytes(),
        "KG.zip": b"what no source reads",
    }
    data = {"BoKelvin/SLAKE": HubData(files), "closed/SLAKE": HubData(files, gated=True)}
    with serve_hub(data) as served:
        yield served


def run(hub: Hub, folder: Path, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs a program that looks at this hub, with a cache of its own in `folder`."""
    known = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "0"}
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment() | known | env,
        capture_output=True,
        text=True,
        check=False,
    )


LOCATE = """
import sys
from rarl.errors import UserError
from rarl.prepare.hub import locate
for src in sys.argv[1:]:
    try:
        print(locate(src, ("*.json", "*imgs.zip")))
    except UserError as error:
        print(error)
"""


@pytest.mark.slow
def test_a_hub_id_is_downloaded_once_and_its_revision_is_in_the_card(
    hub: Hub, tmp_path: Path
) -> None:
    done = run(hub, tmp_path, "-m", "rarl", "prepare", "slake", "BoKelvin/SLAKE", "out")
    assert done.returncode == 0, done.stderr
    assert sorted(hub.fetched) == ["imgs.zip", "test.json", "train.json"]
    card = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert (card["read_from"], card["revision"]) == ("BoKelvin/SLAKE", COMMIT)
    assert f"2 records of revision {COMMIT} read" in done.stdout
    assert [one.images[0] for one in read(tmp_path / "out" / "train.parquet")] == [picture(0)]

    hub.fetched.clear()
    sources = ("BoKelvin/SLAKE", f"BoKelvin/SLAKE@{COMMIT}", "closed/SLAKE")
    again = run(hub, tmp_path, "-c", LOCATE, *sources, HF_HUB_OFFLINE="1")
    assert hub.fetched == [], "what is in the cache is not fetched, nor is a network needed"
    first, second, absent = again.stdout.splitlines()
    assert f"revision='{COMMIT}'" in first and f"revision='{COMMIT}'" in second
    assert (
        "closed/SLAKE: no such folder here, and the hub's data set of that id could not" in absent
    )


@pytest.mark.slow
def test_what_the_hub_refuses_is_one_line_each(hub: Hub, tmp_path: Path) -> None:
    done = run(hub, tmp_path, "-c", LOCATE, "nobody/none", "closed/SLAKE", "BoKelvin/SLAKE@v9")
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and done.returncode == 0, done.stderr
    assert "nobody/none: no such folder here, and the hub knows no data set of that id" in lines[0]
    assert "closed/SLAKE: is gated: accept its conditions" in lines[1]
    assert "the hub's data set BoKelvin/SLAKE has no revision 'v9'" in lines[2]


def test_a_folder_of_that_name_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "BoKelvin" / "SLAKE").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    found = locate("BoKelvin/SLAKE", ("*.json",))
    assert (found.path, found.revision) == (Path("BoKelvin/SLAKE"), None)
    for src in ("a/b/c", "only-a-name", "../a", "a/b@"):
        with pytest.raises(UserError, match="no such folder or file, and not a hub id"):
            locate(src, None)


def test_figures_of_pmc_vqa_are_fetched_of_one_version_alone() -> None:
    """All of both are tens of gigabytes, of which the source reads one and asks which."""
    reads = {v: SOURCES["pmc-vqa"].reads(Choices(version=v)) for v in (None, 1, 2)}
    assert reads[None] == ("train.csv", "test.csv", "train_2.csv", "test_2.csv")
    assert reads[1] == ("train.csv", "test.csv", "images.zip")
    assert reads[2] == ("train_2.csv", "test_2.csv", "images_2.zip")
