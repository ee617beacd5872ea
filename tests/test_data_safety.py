"""What `rarl prepare` leaves behind: whole data sets or nothing, and one line where it cannot do
what was asked."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rarl.cli import main
from rarl.commands.resolve import find_data
from rarl.data.parquet import ParquetRows, parquet_files
from rarl.errors import UserError
from rarl.prepare.convert import prepare_dataset
from tests.pictures import read, write_folder
from tests.runs import REPOSITORY, environment
from tests.spoilt_sources import ROWS, folder_with, good_row


def test_what_does_no_harm_is_counted_and_kept(tmp_path: Path) -> None:
    """A mark at the beginning of the table, a wrong ending, blanks around texts."""
    src = folder_with(tmp_path / "src", image="2.jpg", answer=" a mass ")
    (src / "2.png").rename(src / "2.jpg")
    lines = (src / "table.jsonl").read_text()
    (src / "table.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    report = prepare_dataset("folder", src, tmp_path / "out")
    assert [e.answer for e in read(tmp_path / "out" / "train.parquet")] == ["a mass"] * ROWS
    assert "1 image files are of another format than their names say" in report


def test_more_bad_rows_than_good_ones_are_an_error(tmp_path: Path) -> None:
    rows = [good_row(i, image=f"{i}.png" if i < 2 else "none.png") for i in range(ROWS)]
    src = write_folder(tmp_path / "src", rows, ROWS)
    with pytest.raises(
        UserError, match="4 of 6 records cannot be used, so something is wrong with all of them"
    ):
        prepare_dataset("folder", src, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_else_is_not_touched(tmp_path: Path) -> None:
    src = folder_with(tmp_path / "src")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="holds files that are no data set of `rarl prepare`"):
        prepare_dataset("folder", src, tmp_path / "out")
    with pytest.raises(UserError, match="is a file; OUT is the folder"):
        prepare_dataset("folder", src, tmp_path / "out" / "thesis.txt")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


NNUNET = '{"name": "Task01", "labels": {"0": "background"}, "files": []}'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("dataset.json", NNUNET),
        ("notes.txt", "mine"),
        ("train.parquet/notes.txt", "mine"),
        ("images", None),
    ],
)
def test_what_is_not_ours_is_never_replaced(
    name: str, content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program's dataset.json, or a file or folder of yours within a data set of ours."""
    out = prepared_in_shards(tmp_path, monkeypatch).parent
    (out / "out-examples.png").touch()
    (out / "train-examples.png").touch()
    prepare_dataset("folder", tmp_path / "src", out)  # all of it is ours
    foreign = out / name
    foreign.mkdir() if content is None else foreign.write_text(content)
    with pytest.raises(UserError, match=f"holds files that are no data set .*, such as {name}"):
        prepare_dataset("folder", tmp_path / "src", out)
    assert content is None or foreign.read_text() == content
    assert (out / "train.parquet").is_dir()


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError])
def test_the_earlier_data_set_comes_back_where_the_new_one_cannot_take_its_place(
    failure: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    src, out = folder_with(tmp_path / "src"), tmp_path / "made" / "out"
    prepare_dataset("folder", src, out)
    before, rename, calls = contents(out), Path.rename, []

    def failing(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == 2:  # the first moved the earlier data set aside
            raise failure
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises((KeyboardInterrupt, UserError)):
        prepare_dataset("folder", folder_with(tmp_path / "new", answer="a cyst"), out)
    assert len(calls) == 3
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    assert contents(out) == before


@pytest.mark.parametrize("there", [False, True])
def test_what_a_kill_left_aside_comes_back_or_goes(there: bool, tmp_path: Path) -> None:
    """The state that SIGKILL leaves before the new data set is in place, and after it."""
    src, out = folder_with(tmp_path / "src"), tmp_path / "made" / "out"
    aside = out.parent / ".out.replaced"
    prepare_dataset("folder", src, aside)
    before = contents(aside)
    if there:
        prepare_dataset("folder", folder_with(tmp_path / "new", answer="a cyst"), tmp_path / "kept")
        (tmp_path / "kept").rename(out)
        before = contents(out)
    (src / "table.jsonl").write_text("[")  # this run writes nothing
    with pytest.raises(UserError):
        prepare_dataset("folder", src, out)
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    assert contents(out) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def prepared_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("rarl.data.parquet.SHARD_BYTES", 4_000)
    prepare_dataset("folder", folder_with(tmp_path / "src"), tmp_path / "out")
    return tmp_path / "out" / "train.parquet"


def test_shards_are_read_as_one_and_a_broken_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = prepared_in_shards(tmp_path, monkeypatch)
    shards = parquet_files(split)
    assert len(shards) > 2
    assert [e.id for e in read(split)] == [f"row-{i + 1}" for i in range(ROWS)]
    assert len(ParquetRows(tmp_path / "out")) == ROWS
    kept = shards[1].read_bytes()
    shards[1].write_bytes(b"")
    with pytest.raises(UserError, match=r"00001\.parquet: not a readable Parquet file"):
        ParquetRows(split)
    shards[1].unlink()
    with pytest.raises(
        UserError, match=r"00001\.parquet: is missing, though .*dataset\.json names it"
    ):
        ParquetRows(split)
    shards[1].write_bytes(kept)
    assert len(ParquetRows(split)) == ROWS


def rarl(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rarl", *arguments]
    env = environment() | variables
    return subprocess.run(
        command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=300, check=False
    )


def test_the_command_line_says_it_in_one_line_and_by_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In the process of the tests, from the entry point on."""

    def rarl(*arguments: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["rarl", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        code = int(ended.value.code or 0)
        return subprocess.CompletedProcess(arguments, code, *capfd.readouterr())

    src, out = folder_with(tmp_path / "src", answer=""), tmp_path / "out"
    done = rarl("prepare", "folder", str(src), str(out))
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 records cannot be used and were left out" in done.stdout
    done = rarl("data", "check", str(out))
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "sound")
    done = rarl("data", "check", str(out), str(out / "train.parquet"))
    assert (done.returncode, done.stdout.splitlines()[-1]) == (1, "NOT SOUND")
    (src / "table.jsonl").write_text("[")
    done = rarl("prepare", "folder", str(src), str(tmp_path / "again"))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: ")


@pytest.mark.slow
def test_a_hub_id_without_a_network_is_one_line(tmp_path: Path) -> None:
    """A port where nothing answers stands for the hub."""
    hub = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hub")}
    done = rarl("prepare", "slake", "BoKelvin/SLAKE", str(tmp_path / "out"), **hub)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line]
    assert len(lines) == 1, done.stderr
    assert (
        "BoKelvin/SLAKE: no such folder here, and the hub's data set of that id could not be "
        "downloaded" in lines[0]
    )
    assert not (tmp_path / "out").exists()


def test_a_path_that_is_not_there_is_no_hub_id(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no/such/folder: no such folder or file, and not a hub id"):
        prepare_dataset("slake", "no/such/folder", tmp_path / "out")


def start_and_kill(src: Path, out: Path) -> None:
    """Kills a `prepare` as soon as it has begun to write."""
    command = [sys.executable, "-m", "rarl", "prepare", "folder", str(src), str(out)]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, env=environment(), stdout=subprocess.DEVNULL
    )
    try:
        while not list(out.parent.glob(f".{out.name}.partial-*/*staged.parquet*")):
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_a_killed_prepare_leaves_nothing_that_could_be_taken_for_whole(tmp_path: Path) -> None:
    many = write_folder(
        tmp_path / "many", [good_row(i % ROWS, id=str(i)) for i in range(20_000)], ROWS
    )
    few, out = folder_with(tmp_path / "few"), tmp_path / "made" / "out"
    start_and_kill(many, out)
    assert not out.exists()
    assert len(list(out.parent.iterdir())) == 1  # hidden, and removed by the next attempt
    with pytest.raises(UserError, match="no such Parquet file"):
        ParquetRows(out)

    prepare_dataset("folder", few, out)
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    start_and_kill(many, out)
    # the data set that was there is still whole
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    prepare_dataset("folder", few, out)
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    assert json.loads((out / "dataset.json").read_text())["records"] == ROWS


def test_held_out_splits_are_not_trained_on_by_naming_their_folder(tmp_path: Path) -> None:
    rows = [good_row(i, split="test" if i > 3 else "train") for i in range(ROWS)]
    out = tmp_path / "out"
    prepare_dataset("folder", write_folder(tmp_path / "src", rows, ROWS), out)
    (tmp_path / "whole.yaml").write_text("out: 1\n")
    (tmp_path / "named.yaml").write_text("out/train.parquet: 1\n")
    message = (
        r"out as a whole includes its test split; name the split file, such as .*out/train\.parquet"
    )
    for key, path in (("data.train", out), ("data.train", tmp_path / "whole.yaml")):
        with pytest.raises(UserError, match=message):
            find_data(key, str(path))
    for name in ("named.yaml", "out/train.parquet", "out/test.parquet"):
        find_data("data.train", str(tmp_path / name))
    find_data("data.eval.mine", str(out))
    (out / "dataset.json").unlink()
    find_data("data.train", str(out))
