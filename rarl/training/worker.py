"""What Ray Train runs in its worker: the loop of the configured method."""

from __future__ import annotations

from dataclasses import dataclass

from rarl.errors import UserError
from rarl.rollout.environment import log_output_to
from rarl.training.inputs import LoopInputs


@dataclass(frozen=True)
class LoopOutcome:
    """`error` is None when all steps were made; otherwise what the user is to be told."""

    steps: int
    error: str | None = None


def train_worker(settings: dict[str, LoopInputs]) -> LoopOutcome:
    """Entry point for Ray Train. Errors that a user can cause are returned, since a restart would only repeat them."""
    # Here, not above: the driver and Ray Train's controller import this module too, and PEFT costs each 4 s.
    from rarl.training.loop import train_grpo
    from rarl.training.sft import train_sft

    inputs = settings["inputs"]
    log_output_to(inputs.run_dir.logs / "train-worker.log")
    loop = train_sft if inputs.config.method == "sft" else train_grpo
    try:
        return LoopOutcome(steps=loop(inputs))
    except UserError as error:
        return LoopOutcome(steps=0, error=str(error))
