"""The adapted layers and the head as autograd functions of their own: fewer passes over the
activations than PEFT's and transformers' modules, and less kept for the backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers.activations import SiLUActivation

from rarl.distribution import BAN_BIAS, SamplingDistribution


@dataclass(frozen=True)
class Adapted:
    """A frozen linear layer and its adapter: y = x Wᵀ + bias + s (x Aᵀ) Bᵀ, as PEFT computes it
    without dropout."""

    weight: Tensor
    bias: Tensor | None
    a: Tensor
    b: Tensor
    scaling: float


def adapted(module: nn.Module) -> Adapted | None:
    """Returns None for a module without an adapter, or one whose adapter is switched off."""
    layer: Any = module
    if not hasattr(layer, "lora_A") or layer.disable_adapters:
        return None
    (name,) = layer.active_adapters
    base, a, b = layer.base_layer, layer.lora_A[name].weight, layer.lora_B[name].weight
    return Adapted(base.weight, base.bias, a, b, layer.scaling[name])


def apply_linear(module: nn.Module, x: Tensor) -> Tensor:
    """(N, in) → (N, out). A and B are used in the dtype of `x`, as vLLM does."""
    layer = adapted(module)
    if layer is None:
        return module(x)
    return LoraLinear.apply(x, layer.weight, layer.bias, layer.a, layer.b, layer.scaling)


def apply_mlp(mlp: Any, x: Tensor) -> Tensor:
    """(N, D) → (N, D): down(silu(gate(x)) * up(x))."""
    layers = [adapted(module) for module in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)]
    known = [layer for layer in layers if layer is not None and layer.bias is None]
    if len(known) < len(layers) or not isinstance(mlp.act_fn, (nn.SiLU, SiLUActivation)):
        hidden = mlp.act_fn(apply_linear(mlp.gate_proj, x)) * apply_linear(mlp.up_proj, x)
        return apply_linear(mlp.down_proj, hidden)
    tensors = [tensor for layer in known for tensor in (layer.weight, layer.a, layer.b)]
    return LoraMlp.apply(x, [layer.scaling for layer in known], *tensors)


def linear_forward(x: Tensor, layer: Adapted) -> tuple[Tensor, Tensor]:
    """Returns the output, and x Aᵀ, which the backward pass needs."""
    down = x @ layer.a.T
    out = functional.linear(x, layer.weight, layer.bias)
    return out.addmm_(down, layer.b.T, alpha=layer.scaling), down


def linear_backward(
    grad: Tensor, x: Tensor, down: Tensor, layer: Adapted
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of x Aᵀ, A and B. The thin products are written so that the long side
    is read along its rows: up to five times faster on a CPU."""
    grad_down = functional.linear(grad, layer.b.T.contiguous()).mul_(layer.scaling)
    grad_b = (down.T @ grad).mul_(layer.scaling).T
    return grad_down, (grad_down.T @ x).float(), grad_b.float()


class LoraLinear(torch.autograd.Function):
    """The base weight is frozen, so the backward pass needs dx, dA and dB only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Any, a: Any, b: Any, s: float) -> Any:
        layer = Adapted(weight, bias, a.to(x.dtype), b.to(x.dtype), s)
        out, down = linear_forward(x, layer)
        ctx.save_for_backward(x, down, weight, layer.a, layer.b)
        ctx.scaling = s
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, down, weight, a, b = ctx.saved_tensors
        layer = Adapted(weight, None, a, b, ctx.scaling)
        thin, grad_a, grad_b = linear_backward(grads[0], x, down, layer)
        grad_x = (grads[0] @ weight).addmm_(thin, a) if ctx.needs_input_grad[0] else None
        return grad_x, None, None, grad_a, grad_b, None


class LoraMlp(torch.autograd.Function):
    """The whole gated MLP, with weight, A and B of gate, up and down as `tensors`. Of its four wide
    activations it keeps two, and computes the others again: they are cheap."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scalings: list[float], *tensors: Tensor) -> Any:
        tensors = tuple(tensor.to(x.dtype) for tensor in tensors)
        gate_layer, up_layer, down_layer = mlp_layers(scalings, tensors)
        gate, gate_thin = linear_forward(x, gate_layer)
        up, up_thin = linear_forward(x, up_layer)
        out, inner_thin = linear_forward(functional.silu(gate).mul_(up), down_layer)
        ctx.save_for_backward(x, gate, up, gate_thin, up_thin, inner_thin, *tensors)
        ctx.scalings = scalings
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, gate, up, gate_thin, up_thin, inner_thin, *tensors = ctx.saved_tensors
        gate_layer, up_layer, down_layer = mlp_layers(ctx.scalings, tensors)
        active = functional.silu(gate)
        thin, *down_grads = linear_backward(grads[0], active * up, inner_thin, down_layer)
        grad_inner = (grads[0] @ down_layer.weight).addmm_(thin, down_layer.a)
        grad_up = active.mul_(grad_inner)
        grad_gate = torch.ops.aten.silu_backward(grad_inner.mul_(up), gate)
        thin, *gate_grads = linear_backward(grad_gate, x, gate_thin, gate_layer)
        grad_x = (grad_gate @ gate_layer.weight).addmm_(thin, gate_layer.a)
        thin, *up_grads = linear_backward(grad_up, x, up_thin, up_layer)
        grad_x.addmm_(grad_up, up_layer.weight).addmm_(thin, up_layer.a)
        return grad_x, None, None, *gate_grads, None, *up_grads, None, *down_grads


def mlp_layers(scalings: Sequence[float], tensors: Sequence[Tensor]) -> list[Adapted]:
    """Returns gate, up and down."""
    columns = zip(tensors[::3], tensors[1::3], tensors[2::3], scalings, strict=True)
    return [Adapted(weight, None, a, b, scaling) for weight, a, b, scaling in columns]


def token_logprobs(
    hidden: Tensor, weight: Tensor, token_ids: Tensor, distribution: SamplingDistribution
) -> tuple[Tensor, Tensor]:
    """(N, D) hidden states, (V, D) frozen head, (N,) ids → (N,) log-probs and (N,) entropies in
    nats, float32. The entropy is of the same distribution and has no gradient."""
    with_gradient = torch.is_grad_enabled() and hidden.requires_grad
    return ChunkedHead.apply(hidden, weight, token_ids, distribution, with_gradient)


class ChunkedHead(torch.autograd.Function):
    """Log-probs and entropy of given tokens without full-vocabulary logits: the head in chunks.

    The head is frozen and the log-prob of a token is a scalar, so its gradient with respect to the
    hidden state, d log π(y) / dh = (W_y - Σ_v π(v) W_v) / τ, is known as soon as the chunk's logits
    are. It is kept instead of the hidden state, at the same size, and the backward pass is one
    multiplication: two matrix products in all, where recomputing the logits in the backward pass
    takes three.
    """

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
            ids = token_ids[part]
            logprobs[part], entropy[part] = head_chunk(
                logits[:size], probabilities[:size], ids, distribution
            )
            if slope is not None:
                expected = probabilities[:size].to(weight.dtype) @ weight
                slope[part] = torch.sub(weight[ids], expected).div_(distribution.temperature)
        ctx.save_for_backward(slope)
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (slope,) = ctx.saved_tensors
        return slope * grads[0][:, None].to(slope.dtype), None, None, None, None


def chunk_bytes(device: torch.device) -> int:
    """Returns how much of the float32 logits exists at a time: what a CPU's last cache holds, or
    enough rows to keep a GPU busy."""
    return 8 << 20 if device.type == "cpu" else 256 << 20


def product(left: Tensor, right: Tensor, out: Tensor) -> None:
    """Writes a matrix product into float32 memory; a buffer that is used again spares the kernel
    fresh pages. On a GPU no sum is rounded to bfloat16, nor is it in the sampler."""
    if left.dtype == out.dtype:
        torch.mm(left, right, out=out)
    elif left.device.type == "cpu":
        out.copy_(left @ right)  # there PyTorch has no such kernel
    else:
        torch.mm(left, right, out_dtype=out.dtype, out=out)


def head_chunk(
    logits: Tensor, probabilities: Tensor, token_ids: Tensor, distribution: SamplingDistribution
) -> tuple[Tensor, Tensor]:
    """(n, V) logits, changed in place, and memory for the probabilities → (n,) log-probs and
    entropies. The normaliser is found from the largest logit and its probability, which is at least
    1 / V: one pass less than `logsumexp`."""
    logits[:, distribution.banned_token_ids] += BAN_BIAS
    if distribution.temperature != 1.0:
        logits /= distribution.temperature
    torch.softmax(logits, dim=-1, out=probabilities)
    normaliser = logits.amax(dim=-1) - probabilities.amax(dim=-1).log()
    logprobs = logits.gather(-1, token_ids[:, None]).squeeze(-1) - normaliser
    return logprobs, normaliser - torch.linalg.vecdot(probabilities, logits)
