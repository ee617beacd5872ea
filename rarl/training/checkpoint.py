"""What a continued run needs: adapter, optimizer and step. Data and seeds follow from the step alone."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import ray.train
import torch
from peft import PeftModel
from ray.train import Checkpoint

from rarl.grpo.policy import load_adapter, save_adapter


def report_checkpoint(
    policy: PeftModel, optimizer: torch.optim.Optimizer, scheduler: Any, step: int, metrics: dict[str, Any]
) -> None:
    """Hands the state after `step` finished steps to Ray Train, which stores it in the run directory."""
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(policy, Path(folder) / "adapter")
        torch.save({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}, f"{folder}/optimizer.pt")
        (Path(folder) / "state.json").write_text(json.dumps({"step": step}))
        ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder), checkpoint_dir_name=f"step_{step:06d}")


def restore_checkpoint(policy: PeftModel, optimizer: torch.optim.Optimizer, scheduler: Any) -> int:
    """Restores the newest checkpoint that Ray Train knows of; returns the number of finished steps, 0 without one."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as folder:
        load_adapter(policy, Path(folder) / "adapter")
        state = torch.load(f"{folder}/optimizer.pt", weights_only=True)
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        return int(json.loads((Path(folder) / "state.json").read_text())["step"])


def publish_final_adapter(policy: PeftModel, folder: Path) -> None:
    """Puts the trained adapter at its final place, whole or not at all."""
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    save_adapter(policy, temporary)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
