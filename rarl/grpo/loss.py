"""The losses, as plain functions of tensors: an objective per token, and how tokens are averaged
over a step.

| name    | arXiv, equation | objective           | average        | clip       | A / σ | cut off |
| ------- | --------------- | ------------------- | -------------- | ---------- | ----- | ------- |
| grpo    | 2402.03300, 3   | clipped ratio       | per completion | 0.2        | yes   | kept    |
| dr_grpo | 2503.20783, 3   | clipped ratio       | fixed length   | 0.2        | no    | kept    |
| dapo    | 2503.14476, 8   | clipped ratio       | all tokens     | 0.2, 0.28  | yes   | dropped |
| gspo    | 2507.18071, 5   | ratio of sequences  | per completion | 3e-4, 4e-4 | yes   | kept    |
| cispo   | 2506.13585, 4   | clipped weight      | all tokens     | none, 4    | yes   | kept    |

The papers are DeepSeekMath, Liu et al. (Dr. GRPO), Yu et al. (DAPO), Zheng et al. (GSPO) and
MiniMax-M1. "A / σ": are advantages divided by the group's standard deviation? "cut off": what
becomes of completions that reached the length limit?

Every objective is multiplied by an importance weight π_old / π_sampler for sampling with another
engine, or an older adapter, than the trainer's (Yao et al. 2025, "Your efficient RL framework
secretly brings you off-policy RL training").
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from rarl.config import GrpoConfig


@dataclass(frozen=True)
class LossInputs:
    """N completions padded to T tokens; float32. `mask` selects the completion tokens, and every
    row has at least one.

    logprobs: (N, T) the policy's, with gradient.
    old_logprobs: (N, T) the policy's when the completion was first seen, without gradient.
    sampler_logprobs: (N, T) the sampler's, of the distribution that it drew from.
    reference_logprobs: (N, T) the base model's, or None when the KL has no weight.
    advantages: (N,).
    mask: (N, T) bool.
    """

    logprobs: Tensor
    old_logprobs: Tensor
    sampler_logprobs: Tensor
    reference_logprobs: Tensor | None
    advantages: Tensor
    mask: Tensor


@dataclass(frozen=True)
class StepTotals:
    """What averages are taken over: the whole step, so that the size of a micro-batch changes
    nothing."""

    completions: int
    tokens: int
    max_completion_tokens: int


@dataclass(frozen=True)
class LossOutput:
    """`loss` is this micro-batch's part of the step's loss: parts add up. The rest are sums over
    tokens, detached."""

    loss: Tensor
    kl: Tensor
    clipped: Tensor


# Ratio or log-probs and (N, 1) advantages → (N, T) loss per token, and (N, T) bool where a bound
# stops the gradient.
Objective = Callable[[LossInputs, tuple[float, float]], tuple[Tensor, Tensor]]
Average = Callable[[Tensor, Tensor, StepTotals], Tensor]


def compute_loss(inputs: LossInputs, totals: StepTotals, config: GrpoConfig) -> LossOutput:
    """Returns one micro-batch's part of a step's loss, by the configured one."""
    kind = resolve_loss(config)
    per_token, clipped = kind.objective(inputs, kind.clip)
    per_token = per_token * importance_weight(inputs, config)
    kl = torch.zeros_like(inputs.logprobs)
    if inputs.reference_logprobs is not None:
        kl = k3_divergence(inputs.logprobs, inputs.reference_logprobs)
        per_token = per_token + config.kl_beta * kl
    mask = inputs.mask.to(per_token.dtype)
    loss = kind.average(per_token * mask, mask, totals)
    return LossOutput(loss, (kl.detach() * mask).sum(), (clipped * mask).sum())


def clipped_ratio(inputs: LossInputs, clip: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """- min(r A, clip(r, 1 - ε_low, 1 + ε_high) A) with r = π / π_old (PPO, arXiv 1707.06347,
    eq. 7)."""
    ratio = torch.exp(inputs.logprobs - inputs.old_logprobs)
    return pessimistic(ratio, inputs.advantages[:, None], clip)


def clipped_sequence_ratio(inputs: LossInputs, clip: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """The same with one ratio per completion, the geometric mean of its tokens' (GSPO eq. 7), for
    all of its tokens."""
    mask = inputs.mask.to(inputs.logprobs.dtype)
    log_ratio = ((inputs.logprobs - inputs.old_logprobs) * mask).sum(dim=1) / mask.sum(dim=1)
    loss, clipped = pessimistic(torch.exp(log_ratio)[:, None], inputs.advantages[:, None], clip)
    return loss.expand_as(mask), clipped.expand_as(mask)


def pessimistic(
    ratio: Tensor, advantage: Tensor, clip: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Returns minus the smaller of the bounded objective and the free one, and where it is the
    bounded one."""
    free, bounded = ratio * advantage, ratio.clamp(1 - clip[0], 1 + clip[1]) * advantage
    return -torch.minimum(free, bounded), bounded < free


def clipped_weight(inputs: LossInputs, clip: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """- sg(clip(r)) A log π: the ratio is a constant weight, so no token's gradient is cut off
    (CISPO eq. 4, 5)."""
    ratio = torch.exp(inputs.logprobs.detach() - inputs.old_logprobs)
    bounded = ratio.clamp(1 - clip[0], 1 + clip[1])
    return -bounded * inputs.advantages[:, None] * inputs.logprobs, bounded != ratio


def per_completion(per_token: Tensor, mask: Tensor, totals: StepTotals) -> Tensor:
    """Mean over each completion's tokens, then over completions: long answers are diluted."""
    return (per_token.sum(dim=1) / mask.sum(dim=1)).sum() / totals.completions


def per_length_limit(per_token: Tensor, mask: Tensor, totals: StepTotals) -> Tensor:
    """Sum over tokens by a constant, so that length changes no token's weight."""
    return per_token.sum() / (totals.completions * totals.max_completion_tokens)


def per_token_mean(per_token: Tensor, mask: Tensor, totals: StepTotals) -> Tensor:
    """Mean over all tokens of the step: every token counts the same."""
    return per_token.sum() / totals.tokens


@dataclass(frozen=True)
class Loss:
    """A row of the table above: the objective, its average, and the settings of its paper, used
    where none is given."""

    objective: Objective
    average: Average
    clip: tuple[float, float] = (0.2, 0.2)
    scale_advantages: bool = True
    drop_truncated: bool = False


LOSSES = {
    "grpo": Loss(clipped_ratio, per_completion),
    "dr_grpo": Loss(clipped_ratio, per_length_limit, scale_advantages=False),
    "dapo": Loss(clipped_ratio, per_token_mean, clip=(0.2, 0.28), drop_truncated=True),
    "gspo": Loss(clipped_sequence_ratio, per_completion, clip=(3e-4, 4e-4)),
    "cispo": Loss(clipped_weight, per_token_mean, clip=(math.inf, 4.0)),
}


def resolve_loss(config: GrpoConfig) -> Loss:
    """Returns the configured loss, with its paper's settings where the configuration has none."""
    kind = LOSSES[config.loss]
    low = config.clip or kind.clip[0]
    high = config.clip_high or config.clip or kind.clip[1]
    scale = kind.scale_advantages if config.scale_advantages is None else config.scale_advantages
    drop = kind.drop_truncated if config.drop_truncated is None else config.drop_truncated
    return replace(kind, clip=(low, high), scale_advantages=scale, drop_truncated=drop)


def importance_weight(inputs: LossInputs, config: GrpoConfig) -> Tensor:
    """(N, T) w = π_old / π_sampler, bounded above by C: the variance of a plain weight has no
    bound."""
    if config.importance == "none":
        return torch.ones_like(inputs.old_logprobs)
    weight = torch.exp(inputs.old_logprobs - inputs.sampler_logprobs)
    if config.importance == "truncated":
        return weight.clamp(max=config.importance_cap)
    return weight * (weight <= config.importance_cap)


def k3_divergence(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Per-token estimate of KL(π ‖ reference): exp(d) - d - 1 with d = log reference - log π. Never
    negative and unbiased (Schulman 2020, "Approximating KL divergence", k3)."""
    difference = reference_logprobs - logprobs
    return torch.exp(difference) - difference - 1
