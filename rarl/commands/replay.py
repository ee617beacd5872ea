"""`rarl replay`: a batch that gave no number once more, group by group, to see which of them it
is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoProcessor

from rarl.config import Config, load_config
from rarl.distribution import SamplingDistribution, banned_token_ids
from rarl.errors import UserError
from rarl.grpo.group import TokenGroup
from rarl.grpo.policy import adapter_parameters, load_adapter, load_policy
from rarl.grpo.shared_prefix import SharedPrefixForward
from rarl.grpo.update import NotFinite, UpdateSettings, imitate, update_policy
from rarl.system.device import resolve_device, resolve_dtype
from rarl.system.models import resolve_model
from rarl.training.checkpoint import find_checkpoint
from rarl.training.learner import read_failure
from rarl.training.run_dir import RunDir


@dataclass(frozen=True)
class Replayed:
    """One group: its prompt and completions as text, and the loss and gradient norm that it gives
    alone; None if these are not finite."""

    prompt: str
    completions: list[str]
    loss: float | None
    grad_norm: float | None


def replay(path: Path) -> Iterator[Replayed]:
    """Yields the groups of a saved batch, each computed alone with the policy as it was before the
    batch. Raises UserError if `path` is no batch in a run directory."""
    run_dir = RunDir(path.resolve().parent.parent)
    if not run_dir.config.is_file():
        raise UserError(f"{path}: expected RUN/failures/step_….pkl; there is no {run_dir.config}")
    groups = read_failure(path)
    config = load_config(run_dir.config)
    model_path, device = resolve_model(config.model.path), resolve_device(config)
    lora, dtype = config.model.lora, resolve_dtype(config, device)
    policy = load_policy(model_path, dtype, device, lora.rank, lora.alpha, config.seed)
    checkpoint = find_checkpoint(run_dir.checkpoints).path
    if checkpoint is not None:
        load_adapter(policy, checkpoint / "adapter")
    optimizer = torch.optim.SGD(adapter_parameters(policy), lr=0.0)  # changes nothing
    tokenizer = AutoProcessor.from_pretrained(model_path).tokenizer
    distribution = SamplingDistribution(config.rollout.temperature, banned_token_ids(tokenizer))
    for group in groups:
        prompt = tokenizer.decode(group.prompt_token_ids, skip_special_tokens=True)
        completions = [tokenizer.decode(ids, skip_special_tokens=True) for ids in group.completions]
        try:
            loss, grad_norm = gradient_of(config, policy, optimizer, group, distribution)
            yield Replayed(prompt, completions, loss, grad_norm)
        except NotFinite:
            yield Replayed(prompt, completions, None, None)


def gradient_of(
    config: Config,
    policy: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    group: TokenGroup,
    distribution: SamplingDistribution,
) -> tuple[float, float]:
    """Returns loss and gradient norm of one group alone. Raises NotFinite."""
    forward, train = SharedPrefixForward(config.train.gradient_checkpointing), config.train
    if config.method == "sft":
        found = imitate(
            policy, optimizer, [group], forward, train.micro_batch_tokens, train.max_grad_norm
        )
        return found.loss, found.grad_norm
    settings = UpdateSettings.of(config, shared_prefix=True)
    stats = update_policy(policy, optimizer, [group], forward, distribution, settings)
    return stats.loss, stats.grad_norm
