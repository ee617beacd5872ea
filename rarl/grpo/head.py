"""Log-probs and entropy of given tokens without full-vocabulary logits: the head in chunks.

The head is frozen and the log-prob of a token is a scalar, so its gradient with respect to the
hidden state, d log π(y) / dh = (W_y - Σ_v π(v) W_v) / τ, is known as soon as the chunk's logits
are. It is kept instead of the hidden state, at the same size, and the backward pass is one
multiplication: two matrix products in all, where recomputing the logits in the backward pass takes
three.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rarl.distribution import BAN_BIAS, SamplingDistribution


def token_logprobs(
    hidden: Tensor, weight: Tensor, token_ids: Tensor, distribution: SamplingDistribution
) -> tuple[Tensor, Tensor]:
    """(N, D) hidden states, (V, D) frozen head, (N,) ids → (N,) log-probs and (N,) entropies in
    nats, float32.

    The entropy is of the same distribution and has no gradient.
    """
    with_gradient = torch.is_grad_enabled() and hidden.requires_grad
    return ChunkedHead.apply(hidden, weight, token_ids, distribution, with_gradient)


class ChunkedHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        token_ids: Tensor,
        distribution: SamplingDistribution,
        with_gradient: bool,
    ) -> Any:
        total, vocabulary = len(hidden), len(weight)
        logprobs = torch.empty(total, dtype=torch.float32, device=hidden.device)
        entropy = torch.empty_like(logprobs)
        slope = torch.empty_like(hidden) if with_gradient else None
        rows = max(1, chunk_bytes(hidden.device) // (4 * vocabulary))
        logits = torch.empty(min(rows, total), vocabulary, device=hidden.device)
        probabilities = torch.empty_like(logits)
        for start in range(0, total, rows):
            part = slice(start, min(start + rows, total))
            size = part.stop - start
            product(hidden[part], weight.T, out=logits[:size])
            chosen, spread = head_chunk(
                logits[:size], probabilities[:size], token_ids[part], distribution
            )
            logprobs[part], entropy[part] = chosen, spread
            if slope is not None:
                expected = probabilities[:size].to(weight.dtype) @ weight
                slope[part] = torch.sub(weight[token_ids[part]], expected).div_(
                    distribution.temperature
                )
        ctx.save_for_backward(slope)
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (slope,) = ctx.saved_tensors
        return slope * grads[0][:, None].to(slope.dtype), None, None, None, None


def chunk_bytes(device: torch.device) -> int:
    """Of float32 logits at a time: what a CPU's last cache holds, or enough rows to keep a GPU
    busy."""
    return 8 << 20 if device.type == "cpu" else 256 << 20


def product(left: Tensor, right: Tensor, out: Tensor) -> None:
    """Matrix product into float32 memory; a buffer that is used again spares the kernel fresh
    pages."""
    if left.dtype == out.dtype:
        torch.mm(left, right, out=out)
    else:
        out.copy_(left @ right)


def head_chunk(
    logits: Tensor, probabilities: Tensor, token_ids: Tensor, distribution: SamplingDistribution
) -> tuple[Tensor, Tensor]:
    """(n, V) logits, changed in place, and memory for the probabilities → (n,) log-probs and
    entropies.

    The normaliser is found from the largest logit and its probability, which is at least 1 / V: one
    pass less than `logsumexp`.
    """
    logits[:, distribution.banned_token_ids] += BAN_BIAS
    if distribution.temperature != 1.0:
        logits /= distribution.temperature
    torch.softmax(logits, dim=-1, out=probabilities)
    normaliser = logits.amax(dim=-1) - probabilities.amax(dim=-1).log()
    logprobs = logits.gather(-1, token_ids[:, None]).squeeze(-1) - normaliser
    return logprobs, normaliser - torch.linalg.vecdot(probabilities, logits)
