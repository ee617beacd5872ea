"""Folders that are whole or not there: after a failure, after a kill, beside another writer."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rarl.files import file_hash, flush_folder, replacing_folder
from tests.runs import REPOSITORY, environment


def write(path: Path, text: str) -> None:
    """Makes `path` a folder with a file and a folder in it, through `replacing_folder`."""
    with replacing_folder(path) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "a.txt").write_text(text)


def content(path: Path) -> str:
    assert [p.name for p in path.parent.iterdir()] == [path.name], "something was left beside it"
    return (path / "inner" / "a.txt").read_text()


def test_a_folder_is_made_with_its_parents_and_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "made" / "out"
    write(path, "old")
    (path / "b.txt").write_text("only in the old one")
    write(path, "new")
    assert content(path) == "new"
    assert [p.name for p in path.iterdir()] == ["inner"]
    assert path.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("failure", [KeyboardInterrupt, ValueError, OSError])
def test_a_failure_leaves_the_old_folder_or_none(
    failure: type[BaseException], tmp_path: Path
) -> None:
    path = tmp_path / "made" / "out"
    for old in (False, True):
        if old:
            write(path, "old")
        with pytest.raises(failure), replacing_folder(path) as folder:
            (folder / "a.txt").write_text("half")
            raise failure
        assert (content(path) == "old") if old else not list(path.parent.iterdir())


def test_an_error_of_the_disk_names_the_folder_and_not_the_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "out"
    for filename in (True, False):
        with pytest.raises(OSError, match="No space left") as caught, replacing_folder(path) as new:
            raise OSError(errno.ENOSPC, "full", *([str(new / "a.txt")] if filename else []))
        assert caught.value.filename == str(path)
    with pytest.raises(FileNotFoundError) as missing, replacing_folder(path):
        (tmp_path / "none.txt").read_text()
    assert missing.value.filename == str(tmp_path / "none.txt")


@pytest.mark.parametrize("at", ["before", "between the renames", "after"])
def test_what_a_kill_leaves_is_cleared_away_by_the_next_call(at: str, tmp_path: Path) -> None:
    path = tmp_path / "made" / "out"
    write(path, "old")
    stop = {"before": 0, "between the renames": 1, "after": 2}[at]
    program = f"""
import os, signal
from pathlib import Path
from rarl.files import replacing_folder
rename, calls = Path.rename, []
def killed(self, target):
    if len(calls) == {stop}:
        os.kill(os.getpid(), signal.SIGKILL)
    calls.append(self)
    return rename(self, target)
Path.rename = killed
with replacing_folder(Path({str(path)!r})) as folder:
    (folder / "inner").mkdir()
    (folder / "inner" / "a.txt").write_text("new")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, env=environment(), check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert len(list(path.parent.iterdir())) == 2
    with pytest.raises(ValueError, match="stop"), replacing_folder(path):
        raise ValueError("stop")
    assert content(path) == ("new" if at == "after" else "old")


def test_a_folder_that_another_writer_is_filling_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "made" / "out"
    with replacing_folder(path) as first:
        (first / "first.txt").touch()
        write(path, "second")
        assert (first / "first.txt").exists()
    assert [p.name for p in path.iterdir()] == ["first.txt"]
    assert [p.name for p in path.parent.iterdir()] == ["out"]


def test_everything_is_flushed_and_a_hash_is_that_of_the_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: set[int] = set()
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.add(os.fstat(handle).st_ino))
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c.bin").write_bytes(b"content")
    (tmp_path / "a" / "link").symlink_to("nowhere")
    flush_folder(tmp_path / "a")
    wanted = (tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "c.bin")
    assert flushed == {path.stat().st_ino for path in wanted}
    assert file_hash(tmp_path / "a" / "b" / "c.bin") == hashlib.sha256(b"content").hexdigest()
