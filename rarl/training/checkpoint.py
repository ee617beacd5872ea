"""Checkpoints: all that the next step depends on, written whole or not at all, and verified before
they are used.

`checkpoints/step_000012/` holds the adapter, the optimizer's state, the progress, and the SHA-256
of each file. Data order and sampling seeds follow from the progress alone. The last few are kept,
and the best.
"""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel

from rarl.grpo.policy import load_adapter, save_adapter
from rarl.training.checkpoint_folder import (
    HASHES,
    files_of,
    find_checkpoint,
    flush,
    flush_folder,
    prune,
    read_progress,
    sha256,
)
from rarl.training.inputs import Progress

if TYPE_CHECKING:
    from rarl.training.learner import Learner


def save_checkpoint(
    folder: Path, learner: Learner, progress: Progress, score: float | None, keep: int
) -> Path:
    """Writes the state after a finished step, then deletes all but the last `keep` and the best.
    `score` is what the best is chosen by, higher being better."""
    final = folder / f"step_{progress.step:06d}"
    partial = folder / f".{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_adapter(learner.policy, partial / "adapter")
    state = {
        "optimizer": learner.optimizer.state_dict(),
        "scheduler": learner.scheduler.state_dict(),
    }
    (partial / "optimizer.pt").write_bytes(serialized(state))
    (partial / "state.json").write_text(json.dumps(asdict(progress) | {"score": score}))
    (partial / HASHES).write_text(
        json.dumps({name: sha256(partial / name) for name in files_of(partial)}, indent=1)
    )
    flush(partial)
    shutil.rmtree(final, ignore_errors=True)  # a damaged one of the same step
    partial.rename(final)
    flush_folder(folder)
    prune(folder, final, keep)
    return final


def serialized(state: dict[str, Any]) -> bytes:
    """Not written by torch itself, which calls every failure of the disk a RuntimeError."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def restore_checkpoint(
    folder: Path, policy: PeftModel, optimizer: torch.optim.Optimizer, scheduler: Any
) -> Progress:
    """The state of the newest whole checkpoint, if there is one."""
    path = find_checkpoint(folder).path
    if path is None:
        return Progress(0, 0)
    load_adapter(policy, path / "adapter")
    state = torch.load(path / "optimizer.pt", weights_only=True)
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    return read_progress(path)


def publish_final_adapter(policy: PeftModel, folder: Path) -> None:
    """Puts the trained adapter at its final place, whole or not at all."""
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    save_adapter(policy, temporary)
    flush(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
