"""What both kinds of training begin with: policy, optimizer, schedule, and the state of the last
checkpoint."""

from __future__ import annotations

import math

import torch
from peft import PeftModel

from rarl.config import Config
from rarl.distribution import SamplingDistribution
from rarl.errors import UserError
from rarl.grpo.group import Group
from rarl.grpo.policy import adapter_parameters, load_adapter, load_policy
from rarl.grpo.self_check import Chosen, choose_forward
from rarl.grpo.shared_prefix import SharedPrefixForward
from rarl.training.checkpoint import restore_checkpoint, save_checkpoint
from rarl.training.inputs import LoopInputs
from rarl.training.state import Learner, Progress
from rarl.training.team import Team


def start_learner(inputs: LoopInputs, team: Team) -> Learner:
    """A fresh or given adapter, or the newest checkpoint of this run."""
    config = inputs.config
    if inputs.device == "cpu":
        torch.set_num_threads(team.threads())  # the samplers wait while the policy trains
    lora = config.model.lora
    policy = load_policy(
        inputs.model_path, inputs.dtype, inputs.device, lora.rank, lora.alpha, config.seed
    )
    if inputs.start_adapter is not None:
        load_adapter(policy, inputs.start_adapter)
    optimizer = torch.optim.AdamW(
        adapter_parameters(policy), lr=config.train.learning_rate, weight_decay=0.0
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, config))
    progress = restore_checkpoint(inputs.run_dir.checkpoints, policy, optimizer, scheduler)
    if team.max(progress.step) + team.max(-progress.step) != 0:
        raise UserError(
            f"{inputs.run_dir.checkpoints}: the train workers do not see the same checkpoints; run_dir must be on "
            "storage that all nodes share"
        )
    return Learner(policy, optimizer, scheduler, progress)


def rate_factor(step: int, config: Config) -> float:
    """Learning rate of step + 1 over the configured one: linear warm-up, then constant or cosine to
    zero."""
    warmup, steps = config.train.warmup_steps, config.train.steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.train.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def self_check(
    inputs: LoopInputs, policy: PeftModel, group: Group, distribution: SamplingDistribution
) -> Chosen:
    """Decides once per worker which forward pass it trains with."""
    chosen = choose_forward(
        policy, group, distribution, SharedPrefixForward(inputs.config.train.gradient_checkpointing)
    )
    print(
        f"shared-prefix pass: {chosen.shared}, difference from the plain pass: {chosen.difference}",
        flush=True,
    )
    return chosen


def keep_progress(
    inputs: LoopInputs, learner: Learner, progress: Progress, score: float | None
) -> bool:
    """Saves a checkpoint where one is due; True when the run has been asked to end here."""
    train = inputs.config.train
    stop = inputs.run_dir.stop_request.exists() and progress.step < train.steps
    if stop or progress.step % train.checkpoint_every == 0 or progress.step == train.steps:
        save_checkpoint(
            inputs.run_dir.checkpoints, learner, progress, score, train.keep_checkpoints
        )
    return stop
