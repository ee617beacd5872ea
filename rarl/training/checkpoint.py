"""Checkpoints: all that the next step depends on, written whole or not at all, and verified before they are used.

`checkpoints/step_000012/` holds the adapter, the optimizer's state, the progress, and the SHA-256 of each file. Data
order and sampling seeds follow from the progress alone. The last few are kept, and the best.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from rarl.grpo.policy import load_adapter, save_adapter
from rarl.training.state import Learner, Progress

HASHES = "sha256.json"


@dataclass(frozen=True)
class Found:
    """The newest checkpoint that is whole, and what is wrong with newer ones."""

    path: Path | None
    damaged: list[str]


def save_checkpoint(folder: Path, learner: Learner, progress: Progress, score: float | None, keep: int) -> Path:
    """Writes the state after a finished step, then deletes what is older than the last `keep` and not the best.
    `score` is what the best is chosen by, higher being better."""
    final = folder / f"step_{progress.step:06d}"
    partial = folder / f".{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_adapter(learner.policy, partial / "adapter")
    state = {"optimizer": learner.optimizer.state_dict(), "scheduler": learner.scheduler.state_dict()}
    torch.save(state, partial / "optimizer.pt")
    (partial / "state.json").write_text(json.dumps(asdict(progress) | {"score": score}))
    (partial / HASHES).write_text(json.dumps({name: sha256(partial / name) for name in files_of(partial)}, indent=1))
    flush(partial)
    shutil.rmtree(final, ignore_errors=True)  # a damaged one of the same step
    partial.rename(final)
    flush_folder(folder)
    prune(folder, keep)
    return final


def find_checkpoint(folder: Path) -> Found:
    damaged: list[str] = []
    for path in reversed(checkpoints_in(folder)):
        fault = fault_of(path)
        if fault is None:
            return Found(path, damaged)
        damaged.append(f"{path}: {fault}")
    return Found(None, damaged)


def restore_checkpoint(folder: Path, policy: PeftModel, optimizer: torch.optim.Optimizer, scheduler: Any) -> Progress:
    """The state of the newest whole checkpoint, if there is one."""
    path = find_checkpoint(folder).path
    if path is None:
        return Progress(0, 0)
    load_adapter(policy, path / "adapter")
    state = torch.load(path / "optimizer.pt", weights_only=True)
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    return read_progress(path)


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


def prune(folder: Path, keep: int) -> None:
    """Deletes all but the last `keep` and the one with the highest score."""
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


def publish_final_adapter(policy: PeftModel, folder: Path) -> None:
    """Puts the trained adapter at its final place, whole or not at all."""
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    save_adapter(policy, temporary)
    flush(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
