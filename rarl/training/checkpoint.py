"""What a continued run needs: adapter, optimizer, step and batches drawn. Data and seeds follow from the numbers."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray.train
import torch
from peft import PeftModel
from ray.train import Checkpoint

from rarl.grpo.policy import load_adapter, save_adapter
from rarl.training.state import Learner, Progress


def report_checkpoint(learner: Learner, progress: Progress, metrics: dict[str, Any]) -> None:
    """Hands the state after a finished step to Ray Train, which stores it in the run directory."""
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(learner.policy, Path(folder) / "adapter")
        state = {"optimizer": learner.optimizer.state_dict(), "scheduler": learner.scheduler.state_dict()}
        torch.save(state, f"{folder}/optimizer.pt")
        (Path(folder) / "state.json").write_text(json.dumps(asdict(progress)))
        name = f"step_{progress.step:06d}"
        ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder), checkpoint_dir_name=name)


def restore_checkpoint(policy: PeftModel, optimizer: torch.optim.Optimizer, scheduler: Any) -> Progress:
    """Restores the newest checkpoint that Ray Train knows of, if there is one."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return Progress(0, 0)
    with checkpoint.as_directory() as folder:
        load_adapter(policy, Path(folder) / "adapter")
        state = torch.load(f"{folder}/optimizer.pt", weights_only=True)
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        return Progress(**json.loads((Path(folder) / "state.json").read_text()))


def publish_final_adapter(policy: PeftModel, folder: Path) -> None:
    """Puts the trained adapter at its final place, whole or not at all."""
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    save_adapter(policy, temporary)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
