"""The GRPO loop, run by a Ray Train worker. It reads top to bottom:

    take a batch from the Ray Data shard → ask the vLLM actors for rollouts → score → update → publish the adapter.

Each step is strictly on-policy: its rollouts come from the adapter that the step before it published. The sampler's
log-probs are compared with the policy's in every step, and the run stops when they part.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import torch
from peft import PeftModel

from rarl.config import Config
from rarl.data.order import sampling_seed
from rarl.data.prepare import PreparedExample, require_room
from rarl.data.stream import unpack
from rarl.errors import UserError
from rarl.grpo.advantages import group_advantages
from rarl.grpo.forward import Group, SamplingDistribution, plain_forward
from rarl.grpo.policy import adapter_arrays, adapter_config, adapter_parameters, load_policy
from rarl.grpo.update import ScoredGroup, UpdateSettings, UpdateStats, update_policy
from rarl.hardware import Device, Dtype
from rarl.rewards.registry import find_rewards, score_completions
from rarl.rollout.environment import log_output_to
from rarl.rollout.pool import SamplerPool
from rarl.rollout.sampler import SampleRequest, SamplingSettings
from rarl.schema import Rollout, Score
from rarl.training.checkpoint import publish_final_adapter, report_checkpoint, restore_checkpoint
from rarl.training.metrics import MetricsLog
from rarl.training.run_dir import RunDir
from rarl.training.samples import write_samples


@dataclass(frozen=True)
class LoopInputs:
    """Everything the driver resolved and started for the worker."""

    config: Config
    run_dir: RunDir
    model_path: str
    device: Device
    dtype: Dtype
    mismatch_bound: float
    banned_token_ids: list[int]
    pool: SamplerPool


@dataclass(frozen=True)
class LoopOutcome:
    """`error` is None when all steps were made; otherwise what the user is to be told."""

    steps: int
    error: str | None = None


def train_worker(settings: dict[str, LoopInputs]) -> LoopOutcome:
    """Entry point for Ray Train. Errors that a user can cause are returned, since a restart would only repeat them."""
    inputs = settings["inputs"]
    log_output_to(inputs.run_dir.logs / "train-worker.log")
    try:
        return LoopOutcome(steps=train(inputs))
    except UserError as error:
        return LoopOutcome(steps=0, error=str(error))


def train(inputs: LoopInputs) -> int:
    """Makes all steps that are not yet made; returns their total number."""
    config = inputs.config
    if inputs.device == "cpu":
        torch.set_num_threads(os.cpu_count() or 1)  # the samplers wait while the policy trains
    lora = config.model.lora
    policy = load_policy(inputs.model_path, inputs.dtype, inputs.device, lora.rank, lora.alpha, config.seed)
    optimizer = torch.optim.AdamW(adapter_parameters(policy), lr=config.train.learning_rate, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, config))
    rewards = find_rewards(config.rewards)
    done = restore_checkpoint(policy, optimizer, scheduler)
    publish(inputs.pool, policy, version=done)

    with MetricsLog(inputs.run_dir.metrics, inputs.run_dir.tensorboard, first_step=done + 1) as log:
        for step, batch in step_batches(config.train.prompts_per_step, first_step=done + 1):
            clock = Stopwatch()
            groups = sample(inputs, step, batch)
            clock.lap("rollout")
            scores = score(config, rewards, batch, groups)
            advantages = group_advantages([[s.total for s in group] for group in scores])
            clock.lap("reward")
            scored = [scored_group(*row) for row in zip(batch, groups, advantages, strict=True)]
            stats = update(inputs, policy, optimizer, scored)
            learning_rate = scheduler.get_last_lr()[0]
            scheduler.step()
            clock.lap("update")
            published = publish(inputs.pool, policy, version=step)
            clock.lap("publish")
            save_samples(inputs.run_dir.samples, step, batch, groups, scores, advantages)
            extra = {"learning_rate": learning_rate, "published_bytes": published}
            row = {"step": step, **reward_metrics(scores), **rollout_metrics(groups), **update_metrics(stats), **extra}
            log.write(row | clock.seconds())
            done = step
            if step % config.train.checkpoint_every == 0 or step == config.train.steps:
                report_checkpoint(policy, optimizer, scheduler, step, row)
    publish_final_adapter(policy, inputs.run_dir.adapter)
    return done


def rate_factor(step: int, config: Config) -> float:
    """Learning rate of step + 1 over the configured one: linear warm-up, then constant or cosine to zero."""
    warmup, steps = config.train.warmup_steps, config.train.steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.train.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def step_batches(prompts_per_step: int, first_step: int) -> Iterator[tuple[int, list[PreparedExample]]]:
    """(step, prompts) from this worker's shard, from `first_step` on; steps count from 1."""
    shard = ray.train.get_dataset_shard("train")
    for batch in shard.iter_batches(batch_size=prompts_per_step, batch_format="pyarrow", prefetch_batches=1):
        step = int(batch["step"][0].as_py()) + 1
        if step >= first_step:
            yield step, unpack(batch)


def sample(inputs: LoopInputs, step: int, batch: list[PreparedExample]) -> list[list[Rollout]]:
    """A group of rollouts per prompt. Raises UserError when sampler and trainer tokenise a prompt differently."""
    config = inputs.config
    size = config.rollout.group_size
    for prepared in batch:
        require_room(prepared, config.rollout.max_completion_tokens, config.rollout.max_model_length)
    seeds = [sampling_seed(config.seed, step, position, size) for position in range(len(batch))]
    requests = [SampleRequest(p.example.id, p.prompt, p.pixels, s) for p, s in zip(batch, seeds, strict=True)]
    settings = SamplingSettings(size, config.rollout.temperature, config.rollout.max_completion_tokens)
    groups = inputs.pool.generate(requests, settings)
    for prepared, group in zip(batch, groups, strict=True):
        if group[0].prompt_token_ids != prepared.prompt_token_ids.tolist():
            raise UserError(
                f"example '{prepared.example.id}': sampler and trainer disagree on the prompt's tokens "
                f"({len(group[0].prompt_token_ids)} and {len(prepared.prompt_token_ids)}); model and processor of "
                f"{inputs.model_path} do not fit together"
            )
    return groups


def score(config: Config, rewards: Any, batch: list[PreparedExample], groups: list[list[Rollout]]) -> list[list[Score]]:
    """Scores of all completions, in the shape of the groups."""
    size = config.rollout.group_size
    flat = score_completions(
        examples=[p.example for p in batch for _ in range(size)],
        prompts=[p.prompt for p in batch for _ in range(size)],
        completions=[rollout.text for group in groups for rollout in group],
        rewards=rewards,
        weights=config.rewards,
    )
    return [flat[start : start + size] for start in range(0, len(flat), size)]


def scored_group(prepared: PreparedExample, rollouts: list[Rollout], advantages: Any) -> ScoredGroup:
    completions = [rollout.completion_token_ids for rollout in rollouts]
    group = Group(prepared.prompt_token_ids, prepared.patches, prepared.grid, completions)
    return ScoredGroup(group, [rollout.sampler_logprobs for rollout in rollouts], advantages)


def update(
    inputs: LoopInputs, policy: PeftModel, optimizer: torch.optim.Optimizer, groups: list[ScoredGroup]
) -> UpdateStats:
    grpo, train = inputs.config.grpo, inputs.config.train
    settings = UpdateSettings(
        clip=grpo.clip,
        kl_beta=grpo.kl_beta,
        importance_cap=grpo.importance_cap,
        max_grad_norm=train.max_grad_norm,
        micro_batch_size=train.micro_batch_size,
        max_sampler_mismatch=inputs.mismatch_bound,
    )
    distribution = SamplingDistribution(inputs.config.rollout.temperature, inputs.banned_token_ids)
    return update_policy(policy, optimizer, groups, plain_forward, distribution, settings)


def publish(pool: SamplerPool, policy: PeftModel, version: int) -> int:
    """Loads the current adapter into every sampler; returns its bytes."""
    return pool.publish(version, adapter_arrays(policy), adapter_config(policy))


def save_samples(
    folder: Path,
    step: int,
    batch: list[PreparedExample],
    groups: list[list[Rollout]],
    scores: list[list[Score]],
    advantages: Any,
) -> None:
    examples = [p.example for p, group in zip(batch, groups, strict=True) for _ in group]
    rollouts = [rollout for group in groups for rollout in group]
    write_samples(folder, step, examples, rollouts, [s for group in scores for s in group], advantages.ravel().tolist())


def reward_metrics(scores: list[list[Score]]) -> dict[str, float | None]:
    """Means over the completions that could be scored, and the share of groups from which nothing can be learnt."""
    flat = [score for group in scores for score in group]
    metrics: dict[str, float | None] = {"reward/mean": float(np.mean([s.total for s in flat]))}
    for name in flat[0].rewards:
        values = [v for s in flat if (v := s.rewards[name]) is not None]
        metrics[f"reward/{name}"] = float(np.mean(values)) if values else None
    metrics["groups_without_spread"] = float(np.mean([len({s.total for s in group}) == 1 for group in scores]))
    return metrics


def rollout_metrics(groups: list[list[Rollout]]) -> dict[str, float]:
    flat = [rollout for group in groups for rollout in group]
    lengths = [len(rollout.completion_token_ids) for rollout in flat]
    truncated = [rollout.finish_reason == "length" for rollout in flat]
    return {
        "completion_tokens": float(np.mean(lengths)),
        "completion_tokens/total": float(np.sum(lengths)),
        "completion_truncated": float(np.mean(truncated)),
    }


def update_metrics(stats: UpdateStats) -> dict[str, float | None]:
    return {
        "loss": stats.loss,
        "grad_norm": stats.grad_norm,
        "kl": stats.kl,
        "clipped": stats.clipped,
        "sampler_mismatch": stats.sampler_mismatch,
        "sampler_mismatch/max": stats.mismatch_max,
    }


class Stopwatch:
    """Seconds per phase of a step; `seconds/step` is the whole."""

    def __init__(self) -> None:
        self.started = self.last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.laps[f"seconds/{phase}"] = now - self.last
        self.last = now

    def seconds(self) -> dict[str, float]:
        return self.laps | {"seconds/step": time.perf_counter() - self.started}
