"""One optimizer step on one batch of groups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rarl.errors import UserError
from rarl.grpo.forward import ForwardPass, Group, SamplingDistribution
from rarl.grpo.loss import LossInputs, grpo_loss


@dataclass(frozen=True)
class ScoredGroup:
    """A group, what its sampler thought of each token, and the (G,) advantages."""

    group: Group
    sampler_logprobs: list[list[float]]
    advantages: NDArray[np.float32]


@dataclass(frozen=True)
class UpdateSettings:
    clip: float
    kl_beta: float
    importance_cap: float
    max_grad_norm: float
    micro_batch_size: int
    max_sampler_mismatch: float


@dataclass(frozen=True)
class UpdateStats:
    """Means over the step's completion tokens, but for `loss` (over completions) and `mismatch_max`. `kl` is None when
    its weight is 0: the reference pass is skipped."""

    loss: float
    grad_norm: float
    sampler_mismatch: float
    mismatch_max: float
    kl: float | None
    clipped: float


class SamplerMismatch(UserError):
    """The sampler's log-probs are not the policy's: it samples from other weights."""


def update_policy(
    policy: PeftModel,
    optimizer: torch.optim.Optimizer,
    groups: list[ScoredGroup],
    forward: ForwardPass,
    distribution: SamplingDistribution,
    settings: UpdateSettings,
) -> UpdateStats:
    """Accumulates the gradient over micro-batches and steps the optimizer once.

    Raises SamplerMismatch before the weights change.
    """
    completions = sum(len(g.group.completions) for g in groups)
    tokens = sum(len(c) for g in groups for c in g.group.completions)
    loss_sum = mismatch_sum = mismatch_max = kl_sum = clipped_sum = 0.0
    optimizer.zero_grad()
    for batch in micro_batches(groups, settings.micro_batch_size):
        inputs = loss_inputs(policy, batch, forward, distribution, with_reference=settings.kl_beta > 0)
        out = grpo_loss(inputs, settings.clip, settings.kl_beta, settings.importance_cap)
        (out.loss / completions).backward()
        difference = (inputs.old_logprobs - inputs.sampler_logprobs).abs()[inputs.mask]
        loss_sum += out.loss.item()
        kl_sum += out.kl.item()
        clipped_sum += out.clipped.item()
        mismatch_sum += difference.sum().item()
        mismatch_max = max(mismatch_max, difference.max().item())
    check_mismatch(mismatch_sum / tokens, mismatch_max, settings.max_sampler_mismatch)
    parameters = [p for p in policy.parameters() if p.requires_grad]
    grad_norm = torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
    if not torch.isfinite(grad_norm):
        raise UserError("the gradient is not finite; the weights were left as they were. Lower train.learning_rate")
    optimizer.step()
    return UpdateStats(
        loss=loss_sum / completions,
        grad_norm=grad_norm.item(),
        sampler_mismatch=mismatch_sum / tokens,
        mismatch_max=mismatch_max,
        kl=kl_sum / tokens if settings.kl_beta > 0 else None,
        clipped=clipped_sum / tokens,
    )


def micro_batches(groups: list[ScoredGroup], size: int) -> Iterator[list[ScoredGroup]]:
    """Cuts the step into parts of at most `size` completions; a group may be spread over parts."""
    part: list[ScoredGroup] = []
    room = size
    for scored in groups:
        start = 0
        total = len(scored.group.completions)
        while start < total:
            stop = min(total, start + room)
            group = replace(scored.group, completions=scored.group.completions[start:stop])
            part.append(ScoredGroup(group, scored.sampler_logprobs[start:stop], scored.advantages[start:stop]))
            room -= stop - start
            start = stop
            if room == 0:
                yield part
                part, room = [], size
    if part:
        yield part


def loss_inputs(
    policy: PeftModel,
    batch: list[ScoredGroup],
    forward: ForwardPass,
    distribution: SamplingDistribution,
    with_reference: bool,
) -> LossInputs:
    """Runs the policy, and the base model where the KL has a weight, on one micro-batch."""
    groups = [scored.group for scored in batch]
    logprobs = forward(policy, groups, distribution)
    reference = None
    if with_reference:
        with torch.no_grad(), policy.disable_adapter():
            reference = forward(policy, groups, distribution)
    device = logprobs.device
    sampled = [torch.tensor(row) for scored in batch for row in scored.sampler_logprobs]
    lengths = torch.tensor([len(row) for row in sampled], device=device)
    mask: Tensor = torch.arange(logprobs.shape[1], device=device)[None] < lengths[:, None]
    return LossInputs(
        logprobs=logprobs,
        old_logprobs=logprobs.detach(),
        sampler_logprobs=pad_sequence(sampled, batch_first=True).to(device),
        reference_logprobs=reference,
        advantages=torch.from_numpy(np.concatenate([scored.advantages for scored in batch])).to(device),
        mask=mask,
    )


def check_mismatch(mean: float, largest: float, bound: float) -> None:
    if mean > bound:
        raise SamplerMismatch(
            f"the sampler does not sample from the policy: its log-probs differ by {mean:.2g} on average (at most "
            f"{largest:.2g}), above the bound of {bound:.2g} (train.max_sampler_mismatch). It holds a stale or another "
            "adapter, or another base model; the weights were not changed"
        )
