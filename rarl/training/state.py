"""What training changes: the adapter in its policy, the optimizer, the schedule, and how far they
have come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from peft import PeftModel


@dataclass(frozen=True)
class Progress:
    """Finished steps, and batches of prompts that they drew: more than steps where groups were
    refilled."""

    step: int
    batches: int


@dataclass(frozen=True)
class Learner:
    """`progress` is what was done before this worker began."""

    policy: PeftModel
    optimizer: torch.optim.Optimizer
    scheduler: Any
    progress: Progress

    def step_scheduler(self) -> float:
        """Moves on; returns the learning rate of the update just made."""
        rate: float = self.scheduler.get_last_lr()[0]
        self.scheduler.step()
        return rate
