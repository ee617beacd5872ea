"""A saved batch once more, group by group: which of them gives no number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoProcessor

from rarl.commands.resolve import resolve_model
from rarl.config import Config, load_config
from rarl.errors import UserError
from rarl.grpo.group import Group, SamplingDistribution
from rarl.grpo.policy import adapter_parameters, load_adapter, load_policy
from rarl.grpo.shared_prefix import SharedPrefixForward
from rarl.grpo.update import NotFinite, ScoredGroup, update_policy
from rarl.rollout.sampler import banned_token_ids
from rarl.system.device import resolve_device, resolve_dtype
from rarl.training.checkpoint import find_checkpoint, read_failure
from rarl.training.run_dir import RunDir
from rarl.training.settings import update_settings
from rarl.training.sft import imitate
from rarl.training.state import Learner, Progress


@dataclass(frozen=True)
class Replayed:
    """One group: its prompt and completions as text, and the loss and gradient norm that it gives
    alone; None where these are not finite."""

    prompt: str
    completions: list[str]
    loss: float | None
    grad_norm: float | None


def replay(path: Path) -> Iterator[Replayed]:
    """Raises UserError when `path` is no batch in a run directory."""
    run_dir = RunDir(path.resolve().parent.parent)
    if not run_dir.config.is_file():
        raise UserError(f"{path}: expected RUN/failures/step_….pkl; there is no {run_dir.config}")
    _, groups = read_failure(path)
    config = load_config(run_dir.config)
    model_path = resolve_model(config.model.path)
    learner = still_learner(config, run_dir, model_path)
    tokenizer = AutoProcessor.from_pretrained(model_path).tokenizer
    distribution = SamplingDistribution(config.rollout.temperature, banned_token_ids(tokenizer))
    for scored in groups:
        group: Group = scored.group if isinstance(scored, ScoredGroup) else scored
        prompt = tokenizer.decode(group.prompt_token_ids, skip_special_tokens=True)
        completions = [tokenizer.decode(ids, skip_special_tokens=True) for ids in group.completions]
        try:
            loss, grad_norm = gradient_of(config, learner, scored, distribution)
            yield Replayed(prompt, completions, loss, grad_norm)
        except NotFinite:
            yield Replayed(prompt, completions, None, None)


def still_learner(config: Config, run_dir: RunDir, model_path: str) -> Learner:
    """The policy as it was before the batch, with an optimizer that changes nothing."""
    device = resolve_device(config)
    lora = config.model.lora
    policy = load_policy(
        model_path, resolve_dtype(config, device), device, lora.rank, lora.alpha, config.seed
    )
    checkpoint = find_checkpoint(run_dir.checkpoints).path
    if checkpoint is not None:
        load_adapter(policy, checkpoint / "adapter")
    return Learner(
        policy, torch.optim.SGD(adapter_parameters(policy), lr=0.0), None, Progress(0, 0)
    )


def gradient_of(
    config: Config,
    learner: Learner,
    scored: ScoredGroup | Group,
    distribution: SamplingDistribution,
) -> tuple[float, float]:
    """Loss and gradient norm of one group alone. Raises NotFinite."""
    forward, train = SharedPrefixForward(config.train.gradient_checkpointing), config.train
    if isinstance(scored, Group):
        found = imitate(learner, [scored], forward, train.micro_batch_tokens, train.max_grad_norm)
        return found.loss, found.grad_norm
    settings = update_settings(config, shared_prefix=True)
    stats = update_policy(
        learner.policy, learner.optimizer, [scored], forward, distribution, settings
    )
    return stats.loss, stats.grad_norm
