"""The clipped GRPO loss with truncated importance sampling. A plain function of tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LossInputs:
    """N completions padded to T tokens; float32. `mask` selects the completion tokens, and every row has at least one.

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
class LossOutput:
    """`loss` is the sum over the N completions of their mean token loss: the caller divides by the step's completions,
    so that the size of a micro-batch changes nothing. The rest are sums over tokens, without gradient."""

    loss: Tensor
    kl: Tensor
    clipped: Tensor


def grpo_loss(inputs: LossInputs, clip: float, kl_beta: float, importance_cap: float) -> LossOutput:
    """GRPO (arXiv 2402.03300, equation 3) against the sampler as behaviour policy.

    Per token: - w * min(r A, clip(r, 1 - ε, 1 + ε) A) + β KL, where r = π / π_old, and w = min(π_old / π_sampler, C) is
    the truncated importance weight that corrects for sampling with another engine than the trainer's (Yao et al. 2025,
    "Your efficient RL framework secretly brings you off-policy RL training").
    """
    mask = inputs.mask.float()
    advantage = inputs.advantages[:, None]
    ratio = torch.exp(inputs.logprobs - inputs.old_logprobs)
    bounded = ratio.clamp(1 - clip, 1 + clip)
    weight = torch.exp(inputs.old_logprobs - inputs.sampler_logprobs).clamp(max=importance_cap)
    surrogate = torch.minimum(ratio * advantage, bounded * advantage)
    per_token = -weight * surrogate
    kl = torch.zeros_like(per_token)
    if inputs.reference_logprobs is not None:
        kl = k3_divergence(inputs.logprobs, inputs.reference_logprobs)
        per_token = per_token + kl_beta * kl
    lengths = mask.sum(dim=1)
    loss = ((per_token * mask).sum(dim=1) / lengths).sum()
    clipped = (bounded * advantage < ratio * advantage).float() * mask
    return LossOutput(loss, (kl.detach() * mask).sum(), clipped.sum())


def k3_divergence(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Per-token estimate of KL(π ‖ reference): exp(d) - d - 1 with d = log reference - log π. Never negative and
    unbiased (Schulman 2020, "Approximating KL divergence", k3)."""
    difference = reference_logprobs - logprobs
    return torch.exp(difference) - difference - 1
