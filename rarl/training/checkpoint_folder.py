"""The folder of checkpoints: which are whole, which is the newest and the best, what is deleted."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rarl.training.inputs import Progress

HASHES = "sha256.json"


@dataclass(frozen=True)
class Found:
    """The newest checkpoint that is whole, and what is wrong with newer ones."""

    path: Path | None
    damaged: list[str]


def find_checkpoint(folder: Path) -> Found:
    damaged: list[str] = []
    for path in reversed(checkpoints_in(folder)):
        fault = fault_of(path)
        if fault is None:
            return Found(path, damaged)
        damaged.append(f"{path}: {fault}")
    return Found(None, damaged)


def read_progress(path: Path) -> Progress:
    state = json.loads((path / "state.json").read_text())
    return Progress(state["step"], state["batches"])


def fault_of(path: Path) -> str | None:
    """What is wrong with a checkpoint; None when every file is as it was written."""
    try:
        expected: dict[str, str] = json.loads((path / HASHES).read_text())
        for name, digest in expected.items():
            if sha256(path / name) != digest:
                return f"{name} is damaged"
    except (OSError, ValueError, AttributeError) as error:
        return f"cannot be read ({error})"
    return None


def prune(folder: Path, newest: Path, keep: int) -> None:
    """Deletes all but the last `keep` up to `newest` and the one of them with the highest score.
    What is newer than `newest` was damaged, or it would have been continued: its steps are made
    anew."""
    for path in checkpoints_in(folder):
        if path.name > newest.name:
            shutil.rmtree(path)
    paths = checkpoints_in(folder)
    best = max(paths, key=lambda path: (score_of(path), path.name), default=None)
    for path in paths[:-keep]:
        if path != best:
            shutil.rmtree(path)


def score_of(path: Path) -> float:
    try:
        score = json.loads((path / "state.json").read_text())["score"]
    except (OSError, ValueError, KeyError):
        return float("-inf")
    return float("-inf") if score is None else float(score)


def checkpoints_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("step_*"))


def files_of(folder: Path) -> Iterator[str]:
    return (str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file())


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(folder: Path) -> None:
    """To the disk, so that a power cut after the renaming leaves whole files."""
    for name in files_of(folder):
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
    flush_folder(folder)


def flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
