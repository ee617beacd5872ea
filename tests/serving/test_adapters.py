"""Which adapters there are, what identifies them, and that an engine's copy is of one version."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rarl.cli import main
from rarl.errors import UserError
from rarl.serving.adapters import CONFIG, WEIGHTS, AdapterFolder, Snapshots, digest_of
from rarl.serving.requests import Refusal
from tests.runs import assert_one_line_error, rarl

BASE = "rarl.tiny.dataset:base_model"


def peft(folder: Path, weights: bytes = b"weights", rank: int = 8) -> Path:
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text(f'{{"r": {rank}}}')
    (folder / WEIGHTS).write_bytes(weights)
    return folder


def run(folder: Path, model: str = BASE, weights: bytes = b"weights") -> Path:
    peft(folder / "adapter", weights)
    (folder / "config.yaml").write_text(f"model: {{path: '{model}'}}")
    return folder


def test_runs_and_folders_of_this_base_are_listed(tmp_path: Path) -> None:
    run(tmp_path / "run-1")
    run(tmp_path / "of-another-base", model="Qwen/Qwen2-VL-2B-Instruct")
    peft(tmp_path / "plain")
    peft(tmp_path / ".hidden")
    peft(tmp_path / "a name with spaces")
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "config.yaml").write_text(f"model: {{path: '{BASE}'}}")
    (tmp_path / "broken").mkdir()
    folder = AdapterFolder(str(tmp_path), BASE, 16)
    assert folder.names() == ["plain", "run-1"]
    assert (
        AdapterFolder(str(tmp_path / "none"), BASE, 16).names()
        == AdapterFolder(None, BASE, 16).names()
        == []
    )
    assert folder.find("run-1").run == tmp_path / "run-1"
    assert folder.find("plain").run is None
    for name in (
        "of-another-base",
        ".hidden",
        "a name with spaces",
        "unfinished",
        "../" + tmp_path.name,
        "",
        "plain/",
    ):
        with pytest.raises(Refusal) as caught:
            folder.find(name)
        assert caught.value.status == 404


def test_the_identity_is_the_content(tmp_path: Path) -> None:
    run(tmp_path / "one")
    run(tmp_path / "two")
    folder = AdapterFolder(str(tmp_path), BASE, 16)
    first = folder.find("one")
    assert first.version == folder.find("one").version
    assert first.version.partition("@")[2] == folder.find("two").version.partition("@")[2]
    assert first.version == f"one@{digest_of((first.folder / CONFIG).read_bytes(), b'weights')}"
    (first.folder / WEIGHTS).write_bytes(b"wEights")
    assert folder.find("one").version != first.version
    (first.folder / WEIGHTS).write_bytes(b"weights")
    assert folder.find("one").version == first.version


def test_what_cannot_be_served_is_said(tmp_path: Path) -> None:
    peft(tmp_path / "large", rank=64)
    (peft(tmp_path / "broken") / CONFIG).write_text("{")
    folder = AdapterFolder(str(tmp_path), BASE, 16)
    with pytest.raises(Refusal, match="'large' has rank 64; this server takes 16"):
        folder.find("large")
    with pytest.raises(Refusal, match="'broken' is not a complete PEFT folder"):
        folder.find("broken")


def test_a_copy_is_of_the_version_that_was_asked(tmp_path: Path) -> None:
    run(tmp_path / "one")
    version = AdapterFolder(str(tmp_path), BASE, 16).find("one").version
    copies = Snapshots(str(tmp_path))
    copy = copies.take(version)
    assert (copy / WEIGHTS).read_bytes() == b"weights"
    (tmp_path / "one" / "adapter" / WEIGHTS).write_bytes(b"others")
    assert copies.take(version) == copy and (copy / WEIGHTS).read_bytes() == b"weights"
    with pytest.raises(UserError, match="'one' was replaced"):
        Snapshots(str(tmp_path)).take(version)
    shutil.rmtree(tmp_path / "one")
    with pytest.raises(UserError, match="'one' is gone"):
        Snapshots(str(tmp_path)).take(version)
    with pytest.raises(UserError, match="is gone"):
        Snapshots(str(tmp_path)).take("../one@0")


def test_no_copy_is_torn_while_versions_replace_each_other(tmp_path: Path) -> None:
    """Configuration and weights carry the same number; a writer replaces the folder as the trainer
    does."""
    folder = AdapterFolder(str(tmp_path), BASE, 10**6)
    stop = threading.Event()

    def replace() -> None:
        number = 1
        while not stop.is_set():
            made = peft(tmp_path / f".new-{number}", str(number).encode(), rank=number)
            if (tmp_path / "one").exists():
                (tmp_path / "one").rename(tmp_path / f".old-{number}")
            made.rename(tmp_path / "one")
            number += 1
            stop.wait(0.01)

    writer = threading.Thread(target=replace)
    writer.start()
    versions: set[str] = set()
    try:
        while len(versions) < 20:
            try:
                version, copies = folder.find("one").version, Snapshots(str(tmp_path))
                copy = copies.take(version)
            except (Refusal, UserError):
                continue
            assert (copy / CONFIG).read_text() == f'{{"r": {(copy / WEIGHTS).read_text()}}}'
            versions.add(version)
    finally:
        stop.set()
        writer.join()


@pytest.mark.slow
def test_what_cannot_be_served_ends_rarl_serve_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once in a process of its own, and then by the same entry point in this one."""

    def serve_here(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["rarl", "serve", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        code = ended.value.code if isinstance(ended.value.code, int) else 1
        return subprocess.CompletedProcess(sys.argv, code, said.out, said.err)

    monkeypatch.delenv("RARL_API_KEY", raising=False)
    missing = ("none: not a run directory", "rarl train")
    assert_one_line_error(rarl("serve", tmp_path / "none"), *missing)
    assert_one_line_error(serve_here(tmp_path / "none"), *missing)
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "config.yaml").write_text(
        f"run_dir: x\nmodel: {{path: '{BASE}'}}\ndata: {{train: x}}\n"
    )
    assert_one_line_error(serve_here(unfinished), "no adapter yet")
    peft(unfinished / "adapter")
    mistyped = serve_here(unfinished, "limits.concurent=3")
    assert_one_line_error(mistyped, "unknown key 'limits.concurent'")
    assert_one_line_error(serve_here(unfinished, "--host", "0.0.0.0"), "0.0.0.0", "RARL_API_KEY")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        in_use = serve_here(unfinished, "--port", str(port))
    assert_one_line_error(in_use, f"--port {port}: Address already in use", "choose another")
    config = "configs/judge/rules.yaml"
    assert_one_line_error(serve_here(config, "a=1"), "a=1: key=value goes with a run", config)
    no_file = unfinished / "config.yaml"
    assert_one_line_error(serve_here(no_file), f"{no_file}: not a file of Ray Serve's")
    spaced = unfinished.rename(tmp_path / "a name with spaces")
    assert_one_line_error(serve_here(spaced), "rename the folder")
