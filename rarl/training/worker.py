"""What Ray Train runs in its workers: the loop of the configured method, or the part of those
beside the leader."""

from __future__ import annotations

from dataclasses import dataclass

from rarl.errors import UserError, storage_fault
from rarl.system.imports import quick_imports
from rarl.system.processes import log_output_to
from rarl.training.inputs import LoopInputs


@dataclass(frozen=True)
class LoopOutcome:
    """`steps` are finished, fewer than configured where the run was asked to end. `error` is None,
    or what the user is to be told."""

    steps: int
    error: str | None = None


def train_worker(settings: dict[str, LoopInputs]) -> LoopOutcome:
    """Entry point for Ray Train. Errors that a user can cause are returned, since a restart would
    only repeat them; but one that this worker has alone is raised, for the others wait for it: Ray
    Train ends them."""
    # Here, not above: the driver and Ray Train's controller import this module too, and PEFT costs
    # each 4 s.
    with quick_imports():
        import torch

        from rarl.training.follow import follow
        from rarl.training.loop import train_grpo
        from rarl.training.sft import train_sft
        from rarl.training.team import Team

    inputs = settings["inputs"]
    team = Team.join()
    log_output_to(inputs.run_dir.logs / f"train-worker{'' if team.leads else f'-{team.rank}'}.log")
    loop = follow if not team.leads else train_sft if inputs.config.method == "sft" else train_grpo
    alone = False
    try:
        outcome = LoopOutcome(loop(inputs, team))
    except UserError as error:
        outcome = LoopOutcome(0, str(error))
        alone = not team.leads and not team.together
    except torch.cuda.OutOfMemoryError as error:
        outcome = LoopOutcome(0, out_of_memory(inputs, error))
        alone = team.size > 1
    except OSError as error:
        fault = storage_fault(error, inputs.run_dir.path)
        if fault is None:
            raise
        outcome = LoopOutcome(0, fault)
        alone = not team.leads
    if alone:
        raise UserError(outcome.error)
    if team.leads:
        team.dismiss()
    return outcome


def out_of_memory(inputs: LoopInputs, error: Exception) -> str:
    train = inputs.config.train
    return (
        f"the GPU's memory did not suffice ({str(error).splitlines()[0]}). Halve train.micro_batch_tokens (now "
        f"{train.micro_batch_tokens}), set train.gradient_checkpointing=true, or lower rollout.gpu_memory_share (now "
        f"{inputs.config.rollout.gpu_memory_share}), and the same command goes on; `rarl plan` estimates"
    )
