"""A batch of groups → one optimizer step, or a few: by a policy gradient, or by imitation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rarl.distribution import MODEL_SOFTMAX, SamplingDistribution
from rarl.errors import UserError
from rarl.grpo.forward import ForwardPass, VisionCache
from rarl.grpo.group import TokenGroup
from rarl.grpo.loss import LossInputs, StepTotals, compute_loss
from rarl.grpo.workers import ALONE, Workers

if TYPE_CHECKING:
    from rarl.config import Config, GrpoConfig, TrainConfig

# Norm of a gradient before it is clipped; what is learnt from is below a thousand.
EXPLODED = 1e6


class NotFinite(UserError):
    """A log-prob or gradient is no number, or beyond all measure: nothing can be learnt from it."""


class SamplerMismatch(UserError):
    """The sampler's log-probs are not the policy's: it samples from other weights."""


@dataclass(frozen=True)
class UpdateSettings:
    """`shared_prefix` says how the forward pass counts tokens. `max_drift` bounds the mean
    |log-prob of the policy - of the sampler|; None where they are meant to differ."""

    grpo: GrpoConfig
    train: TrainConfig
    max_completion_tokens: int
    shared_prefix: bool
    max_drift: float | None = None

    @classmethod
    def of(cls, config: Config, shared_prefix: bool, max_drift: float | None = None) -> Self:
        """Returns what an update reads of the configuration."""
        length = config.rollout.max_completion_tokens
        return cls(config.grpo, config.train, length, shared_prefix, max_drift)


@dataclass(frozen=True)
class UpdateStats:
    """Means over the completion tokens of all workers in the first epoch, but for `loss`,
    `grad_norm` and `clipped`, which are the last one's. `drift` is |log-prob of the policy - of the
    sampler|. `kl` is None when it has no weight: the reference pass is then skipped."""

    loss: float
    grad_norm: float
    drift: float
    drift_max: float
    kl: float | None
    clipped: float
    entropy: float


def update_policy(
    policy: PeftModel,
    optimizer: torch.optim.Optimizer,
    groups: list[TokenGroup],
    forward: ForwardPass,
    distribution: SamplingDistribution,
    settings: UpdateSettings,
    workers: Workers = ALONE,
) -> UpdateStats:
    """Makes one optimizer step per epoch on the groups of all workers. Each worker brings its own,
    and may have none as long as another has some.

    Raises SamplerMismatch and NotFinite before the weights change, in every worker alike. An error
    that one worker has alone, such as a full GPU memory, ends all of them (see `Workers.local`).
    """
    grpo, train = settings.grpo, settings.train
    own_tokens = sum(len(c) for group in groups for c in group.completions)
    own_completions = sum(len(group.completions) for group in groups)
    completions, tokens = map(round, workers.sum([own_completions, own_tokens]))
    totals = StepTotals(completions, tokens, settings.max_completion_tokens)
    batches = list(micro_batches(groups, train.micro_batch_tokens, settings.shared_prefix))
    vision = VisionCache()
    # What the first epoch finds of each micro-batch: old and reference log-probs stay for the rest.
    found: list[LossInputs] = []
    for epoch in range(grpo.epochs):
        sums, largest = np.zeros(5), 0.0
        optimizer.zero_grad()
        with workers.local():
            for index, batch in enumerate(batches):
                current = forward(policy, batch, distribution, vision)
                if epoch == 0:
                    reference = None
                    if grpo.kl_beta > 0:
                        with torch.no_grad(), policy.disable_adapter():
                            reference = forward(policy, batch, distribution, vision).logprobs
                    found.append(loss_inputs(batch, current.logprobs.detach(), reference))
                inputs = replace(found[index], logprobs=current.logprobs)
                out = compute_loss(inputs, totals, grpo)
                out.loss.backward()
                # All three are padded with zeros.
                drift = (inputs.old_logprobs - inputs.sampler_logprobs).abs()
                parts = (out.loss, out.clipped, out.kl, current.entropy.sum(), drift.sum())
                # Read together: the GPU is waited for once.
                *found_sums, top = torch.stack([*parts, drift.max()]).tolist()
                sums += found_sums
                largest = max(largest, top)
        loss, *token_sums = workers.sum(sums.tolist())
        clipped, kl, entropy, mean_drift = (value / tokens for value in token_sums)
        largest = workers.max(largest)
        if epoch == 0 and settings.max_drift is not None:
            check_mismatch(mean_drift, largest, settings.max_drift)
        norm = clip_gradient(policy, train.max_grad_norm, workers)
        optimizer.step()
        if epoch == 0:
            kl_or_none = kl if grpo.kl_beta > 0 else None
            stats = UpdateStats(loss, norm, mean_drift, largest, kl_or_none, clipped, entropy)
        stats = replace(stats, loss=loss, grad_norm=norm, clipped=clipped)
    return stats


def loss_inputs(
    batch: list[TokenGroup], logprobs: Tensor, reference_logprobs: Tensor | None
) -> LossInputs:
    """Returns the batch as padded tensors beside the (N, T) log-probs, on their device."""
    device = logprobs.device
    sampled = [torch.tensor(row) for group in batch for row in group.sampler_logprobs]
    lengths = torch.tensor([len(row) for row in sampled], device=device)
    advantages = torch.from_numpy(np.concatenate([group.advantages for group in batch]))
    return LossInputs(
        logprobs=logprobs,
        old_logprobs=logprobs,
        sampler_logprobs=pad_sequence(sampled, batch_first=True).to(device),
        reference_logprobs=reference_logprobs,
        advantages=advantages.to(device),
        mask=torch.arange(logprobs.shape[1], device=device)[None] < lengths[:, None],
    )


def micro_batches(
    groups: list[TokenGroup], budget: int, shared: bool
) -> Iterator[list[TokenGroup]]:
    """Cuts the step into parts of at most `budget` tokens; a `shared` prompt counts once per group.
    Groups stay whole where they fit; a single completion that does not fit goes alone."""
    part: list[TokenGroup] = []
    used = 0
    for group in groups:
        for piece, cost in pieces(group, budget, shared):
            if part and used + cost > budget:
                yield part
                part, used = [], 0
            part.append(piece)
            used += cost
    if part:
        yield part


def pieces(group: TokenGroup, budget: int, shared: bool) -> Iterator[tuple[TokenGroup, int]]:
    """Yields the group itself, or as few parts of it as the budget allows, each with its tokens."""
    prompt = len(group.prompt_token_ids)
    once, each = (prompt, 0) if shared else (0, prompt)
    start, used = 0, once
    for index, completion in enumerate(group.completions):
        cost = each + len(completion)
        if index > start and used + cost > budget:
            yield group.part(range(start, index)), used
            start, used = index, once
        used += cost
    yield group.part(range(start, len(group.completions))) if start else group, used


def clip_gradient(policy: torch.nn.Module, max_norm: float, workers: Workers = ALONE) -> float:
    """Sums the gradient over the workers and clips it; returns its norm before. Raises
    NotFinite."""
    parameters = [p for p in policy.parameters() if p.requires_grad]
    workers.sum_gradients(parameters)
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    if not norm < EXPLODED:
        raise NotFinite(
            f"the gradient is not finite or has exploded (its norm is {norm:.3g}); the weights "
            "were left as they were. Lower train.learning_rate or train.max_grad_norm in a new "
            "run_dir"
        )
    return float(norm.item())


def measure_mismatch(
    policy: PeftModel, group: TokenGroup, forward: ForwardPass, distribution: SamplingDistribution
) -> tuple[float, int, float]:
    """Returns the sum of |log-prob of the policy - of the sampler| over one group's tokens, the
    number of these tokens, and the largest difference. Sums can be added over workers."""
    with torch.no_grad():
        rows = forward(policy, [group], distribution, VisionCache()).logprobs
    sampled = [torch.tensor(row) for row in group.sampler_logprobs]
    difference = (rows - pad_sequence(sampled, batch_first=True).to(rows.device)).abs()
    return difference.sum().item(), sum(map(len, sampled)), difference.max().item()


def check_mismatch(mean: float, largest: float, bound: float) -> None:
    """Raises NotFinite or SamplerMismatch if a sampler whose log-probs differ so much from the
    policy's cannot be sampling from it."""
    if not math.isfinite(mean):
        raise NotFinite(
            "a log-prob of the policy or of the sampler is not finite; the weights were left as "
            "they were. Look at the model's files, then at train.learning_rate"
        )
    if mean > bound:
        raise SamplerMismatch(
            f"the sampler does not sample from the policy: its log-probs differ by {mean:.2g} on "
            f"average (at most {largest:.2g}), above the bound of {bound:.2g} "
            "(train.max_sampler_mismatch). It holds a stale or another adapter, or another base "
            "model; the weights were not changed"
        )


@dataclass(frozen=True)
class ImitationStats:
    """`loss` in nats per target token, before the step, and the number of these tokens; all three
    are those of all workers together."""

    loss: float
    grad_norm: float
    tokens: int


def imitate(
    policy: PeftModel,
    optimizer: torch.optim.Optimizer,
    groups: list[TokenGroup],
    forward: ForwardPass,
    micro_batch_tokens: int,
    max_grad_norm: float,
    workers: Workers = ALONE,
) -> ImitationStats:
    """Makes one optimizer step on the mean negative log-likelihood of the completions' tokens, over
    all workers. Raises NotFinite before the weights change, in every worker alike."""
    own_tokens = sum(len(c) for group in groups for c in group.completions)
    tokens = round(workers.sum([own_tokens])[0])
    optimizer.zero_grad()
    own_loss = 0.0
    with workers.local():
        for batch in micro_batches(groups, micro_batch_tokens, shared=True):
            # The padding has log-prob 0.
            loss = -forward(policy, batch, MODEL_SOFTMAX, VisionCache()).logprobs.sum() / tokens
            loss.backward()
            own_loss += loss.item()
    (loss_of_all,) = workers.sum([own_loss])
    grad_norm = clip_gradient(policy, max_grad_norm, workers)
    optimizer.step()
    return ImitationStats(loss_of_all, grad_norm, tokens)
