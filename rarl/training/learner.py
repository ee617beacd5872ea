"""What GRPO and supervised fine-tuning share: policy, optimizer, schedule, where the run stands,
and how it is saved."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from rarl.adapters.origin import trained_origin
from rarl.config import Config
from rarl.distribution import MODEL_SOFTMAX
from rarl.errors import UserError
from rarl.files import replacing, replacing_folder
from rarl.grpo.forward import ForwardChoice, choose_forward
from rarl.grpo.group import TokenGroup
from rarl.grpo.movement import Movement
from rarl.grpo.policy import adapter_parameters, load_adapter, load_policy, save_adapter
from rarl.grpo.shared_prefix import SharedPrefixForward
from rarl.grpo.update import NotFinite
from rarl.grpo.workers import Workers
from rarl.training.checkpoint import fault_of, restore_checkpoint, save_checkpoint
from rarl.training.inputs import Progress, TrainInputs
from rarl.training.log import read_metrics


@dataclass
class Learner:
    """The adapter in its policy, its optimizer and schedule. `progress` is what was done before
    this process began; `forward` is chosen when the first group is there."""

    policy: PeftModel
    optimizer: torch.optim.Optimizer
    scheduler: Any
    progress: Progress
    forward: ForwardChoice | None = None

    @cached_property
    def movement(self) -> Movement:
        """How far the adapter has moved the layers."""
        return Movement(self.policy)

    @classmethod
    def load(cls, inputs: TrainInputs) -> Learner:
        """Begins with a fresh or given adapter, or with the newest checkpoint of this run."""
        config, lora = inputs.config, inputs.config.model.lora
        policy = load_policy(
            inputs.model_path, inputs.dtype, inputs.device, lora.rank, lora.alpha, config.seed
        )
        if inputs.start_adapter is not None:
            load_adapter(policy, inputs.start_adapter)
        parameters = adapter_parameters(policy)
        optimizer = torch.optim.AdamW(parameters, lr=config.train.learning_rate, weight_decay=0.0)
        progress = restore_checkpoint(inputs.run_dir.checkpoints, policy, optimizer)
        # Of the step alone, and not from the checkpoint: the run may have more steps than it had.
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: rate_factor(step, config), last_epoch=progress.step - 1
        )
        return cls(policy, optimizer, scheduler, progress)

    def require_same_progress(self, inputs: TrainInputs, workers: Workers) -> None:
        """Raises UserError if the workers do not continue from the same checkpoint."""
        if workers.max(self.progress.step) + workers.max(-self.progress.step) != 0:
            raise UserError(
                f"{inputs.run_dir.checkpoints}: the train workers do not see the same checkpoints; "
                "run_dir must be on storage that all nodes share"
            )

    @property
    def uses_shared_prefix(self) -> float | None:
        """1 or 0, for the metrics; None until it is known."""
        return None if self.forward is None else float(self.forward.shared)

    def forward_for(self, inputs: TrainInputs, groups: list[TokenGroup]) -> ForwardChoice:
        """Returns the forward pass to train with. The first group decides, once for each worker:
        the shared-prefix pass, if it agrees with the plain one."""
        fast = SharedPrefixForward(inputs.config.train.gradient_checkpointing)
        if self.forward is None and groups:
            distribution = MODEL_SOFTMAX if inputs.config.method == "sft" else inputs.distribution
            self.forward = choose_forward(self.policy, groups[0], distribution, fast)
            shared, difference = self.forward.shared, self.forward.difference
            told = f"shared-prefix pass: {shared}, difference from the plain pass: {difference}"
            print(told, flush=True)
        # A worker without a single group has nothing to pass forward.
        return self.forward or ForwardChoice(fast, True, None)

    def step_scheduler(self) -> float:
        """Moves on; returns the learning rate of the update just made."""
        rate: float = self.scheduler.get_last_lr()[0]
        self.scheduler.step()
        return rate

    def save(
        self,
        inputs: TrainInputs,
        progress: Progress,
        score: float | None,
        workers: Workers,
        measured: bool = False,
    ) -> bool:
        """Writes a checkpoint if one is due, or the step was `measured`; returns True if the run
        was asked to end here. `score` is what the best checkpoint is chosen by, higher being
        better. Rank 0 writes and decides."""
        train, asked = inputs.config.train, False
        with workers.local():
            if workers.rank == 0:
                last = progress.step == train.steps
                asked = inputs.run_dir.stop_request.exists() and not last
                if asked or last or measured or progress.step % train.checkpoint_every == 0:
                    folder = inputs.run_dir.checkpoints
                    save_checkpoint(folder, self, progress, score, train.keep_checkpoints)
        return bool(workers.max(float(asked)))

    def finish(self, inputs: TrainInputs, workers: Workers, best: int | None = None) -> None:
        """Puts the trained adapter and its origin at their final place, whole or not at all: as it
        is, or as it was after the step `best`. Raises UserError where that step's checkpoint is
        damaged."""
        with workers.local():
            if workers.rank != 0:
                return
            if best is not None:
                path = inputs.run_dir.checkpoints / f"step_{best:06d}"
                if fault := fault_of(path):
                    raise UserError(f"{path}: the best checkpoint on the validation data: {fault}")
                load_adapter(self.policy, path / "adapter")
            config, rows = inputs.config, read_metrics(inputs.run_dir.metrics)
            steps = best if best is not None else max((row["step"] for row in rows), default=0)
            base = (config.model.path, inputs.model_path)
            with replacing_folder(inputs.run_dir.adapter) as temporary:
                save_adapter(self.policy, temporary)
                trained_origin(*base, config.method, rows, steps).write(temporary)


def rate_factor(step: int, config: Config) -> float:
    """Returns the learning rate of step + 1 over the configured one: linear warm-up, then constant
    or cosine to zero."""
    warmup, steps = config.train.warmup_steps, config.train.steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.train.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@contextmanager
def saving_failures(folder: Path, step: int, groups: list[TokenGroup], rank: int) -> Iterator[None]:
    """Turns NotFinite into a UserError that names the file with the step's groups, for
    `rarl replay`."""
    try:
        yield
    except NotFinite as error:
        path = folder / f"step_{step:06d}{f'-worker{rank}' if rank else ''}.pkl"
        with replacing(path) as temporary:
            temporary.write_bytes(pickle.dumps(groups))
        raise UserError(
            f"step {step}: {error}. `rarl replay {path}` shows which group of its batch it is"
        ) from None


def read_failure(path: Path) -> list[TokenGroup]:
    """Reads the groups of a step that `saving_failures` kept. They are pickled, so this is for
    files of one's own only. Raises UserError."""
    try:
        groups: list[TokenGroup] = pickle.loads(path.read_bytes())
        return groups
    except (OSError, ValueError, pickle.UnpicklingError, EOFError) as error:
        raise UserError(f"{path}: not a batch that a run has saved: {error}") from None
