"""The adapted layers as autograd functions of their own: fewer passes over the activations than
PEFT's modules, and less kept for the backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers.activations import SiLUActivation


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
    """None for a module without an adapter, or one whose adapter is switched off."""
    layer: Any = module
    if not hasattr(layer, "lora_A") or layer.disable_adapters:
        return None
    (name,) = layer.active_adapters
    base = layer.base_layer
    return Adapted(
        base.weight,
        base.bias,
        layer.lora_A[name].weight,
        layer.lora_B[name].weight,
        layer.scaling[name],
    )


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
    """The output, and x Aᵀ, which the backward pass needs."""
    down = x @ layer.a.T
    out = functional.linear(x, layer.weight, layer.bias)
    return out.addmm_(down, layer.b.T, alpha=layer.scaling), down


def linear_backward(
    grad: Tensor, x: Tensor, down: Tensor, layer: Adapted
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x Aᵀ, A and B. The thin products are written so that the long side is read along
    its rows: up to five times faster on a CPU."""
    grad_down = functional.linear(grad, layer.b.T.contiguous()).mul_(layer.scaling)
    grad_b = (down.T @ grad).mul_(layer.scaling).T
    return grad_down, (grad_down.T @ x).float(), grad_b.float()


class LoraLinear(torch.autograd.Function):
    """The base weight is frozen, so the backward pass needs dx, dA and dB only."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scaling: float,
    ) -> Any:
        layer = Adapted(weight, bias, a.to(x.dtype), b.to(x.dtype), scaling)
        out, down = linear_forward(x, layer)
        ctx.save_for_backward(x, down, weight, layer.a, layer.b)
        ctx.scaling = scaling
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, down, weight, a, b = ctx.saved_tensors
        thin, grad_a, grad_b = linear_backward(
            grads[0], x, down, Adapted(weight, None, a, b, ctx.scaling)
        )
        grad_x = (grads[0] @ weight).addmm_(thin, a) if ctx.needs_input_grad[0] else None
        return grad_x, None, None, grad_a, grad_b, None


class LoraMlp(torch.autograd.Function):
    """The whole gated MLP. Of its four wide activations it keeps two, and computes the others
    again: they are cheap.

    `tensors` are weight, A and B of gate, up and down.
    """

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


def mlp_layers(
    scalings: Sequence[float], tensors: Sequence[Tensor]
) -> tuple[Adapted, Adapted, Adapted]:
    gate, up, down = (
        Adapted(weight, None, a, b, scaling)
        for scaling, weight, a, b in zip(
            scalings, tensors[::3], tensors[1::3], tensors[2::3], strict=True
        )
    )
    return gate, up, down
