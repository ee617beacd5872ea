"""Checkpoints, written whole or not at all and verified before they are used: the adapter, the
optimizer's state, the progress, from which learning rate, data order and seeds follow, and the
SHA-256 of each file. PyTorch is imported inside, since the driver imports this module too."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rarl.files import file_hash, replacing_folder
from rarl.training.inputs import Progress

if TYPE_CHECKING:
    from peft import PeftModel
    from torch.optim import Optimizer

    from rarl.training.learner import Learner

HASHES = "sha256.json"


@dataclass(frozen=True)
class Found:
    """The newest checkpoint that is whole, and what is wrong with newer ones."""

    path: Path | None
    damaged: list[str]


def save_checkpoint(
    folder: Path, learner: Learner, progress: Progress, score: float | None, keep: int
) -> Path:
    """Writes the state after a finished step, then deletes all but the last `keep` and the best.
    `score` is what the best is chosen by, higher being better. Returns the checkpoint's folder."""
    import torch

    from rarl.grpo.policy import save_adapter

    final = folder / f"step_{progress.step:06d}"
    # Not written by torch itself, which calls every failure of the disk a RuntimeError.
    state = io.BytesIO()
    torch.save({"optimizer": learner.optimizer.state_dict()}, state)
    # It takes the place of a damaged one of the same step.
    with replacing_folder(final) as partial:
        save_adapter(learner.policy, partial / "adapter")
        (partial / "optimizer.pt").write_bytes(state.getvalue())
        (partial / "state.json").write_text(json.dumps(asdict(progress) | {"score": score}))
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        hashes = {str(path.relative_to(partial)): file_hash(path) for path in files}
        (partial / HASHES).write_text(json.dumps(hashes, indent=1))
    prune(folder, final, keep)
    return final


def restore_checkpoint(folder: Path, policy: PeftModel, optimizer: Optimizer) -> Progress:
    """Loads the newest whole checkpoint, if there is one. Returns its progress, or that of a run
    that has not begun."""
    import torch

    from rarl.grpo.policy import load_adapter

    path = find_checkpoint(folder).path
    if path is None:
        return Progress(0, 0)
    load_adapter(policy, path / "adapter")
    # To the CPU first: the device that wrote it may not be here, or be another worker's.
    state = torch.load(path / "optimizer.pt", weights_only=True, map_location="cpu")
    optimizer.load_state_dict(state["optimizer"])
    return read_progress(path)


def find_checkpoint(folder: Path) -> Found:
    """Returns the newest checkpoint whose files are all as they were written."""
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
    """Returns what is wrong with a checkpoint; None when every file is as it was written."""
    try:
        expected: dict[str, str] = json.loads((path / HASHES).read_text())
        for name, digest in expected.items():
            if file_hash(path / name) != digest:
                return f"{name} is damaged"
    except (OSError, ValueError, AttributeError) as error:
        return f"cannot be read ({error})"
    return None


def prune(folder: Path, newest: Path, keep: int) -> None:
    """Deletes all but the last `keep` up to `newest` and the one of them with the highest score.
    What is newer than `newest` was damaged, or it would have been continued: its steps are made
    anew. So was what earlier versions of this file left behind when they were killed."""
    for path in [*checkpoints_in(folder), *folder.glob(".step_*.partial")]:
        if path.name > newest.name or path.name.startswith("."):
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
