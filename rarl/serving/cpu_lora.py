"""Makes vLLM's CPU build (0.29) keep base model and adapters apart within a batch.

Its LoRA operators take each token's matrices as `weights[slot]`, where a token of the base model
has slot -1. In PyTorch that is the *last* slot: with an adapter there, requests to the base model
are answered with it as soon as another request of the batch uses any adapter. (On a GPU other
operators run, which skip -1.) Here each slot's tokens are multiplied by its own matrix, and tokens
without one get nothing; which is also faster than a copy of a matrix for every token.

vLLM imports this module in its worker process, as `worker_extension_cls`, before the model is made.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rarl.rollout.cpu_lora import replace_operators, store


class WorkerExtension:
    """Adds nothing to the worker; it is here to have vLLM import the module."""


def product_by_slot(inputs: Tensor, weights: Tensor, slots: Tensor, dtype: torch.dtype) -> Tensor:
    """(tokens, i) times the (o, i) matrices of (slots, [1,] o, i) weights: (tokens, o) in `dtype`,
    zero for slot -1."""
    matrices = weights.reshape(weights.shape[0], *weights.shape[-2:])
    product = torch.zeros(inputs.shape[0], matrices.shape[1], dtype=dtype)
    for slot in torch.unique(slots).tolist():
        if slot >= 0:
            rows = slots == slot
            product[rows] = inputs[rows].to(dtype) @ matrices[slot].to(dtype).T
    return product


def shrink(
    inputs: Tensor, weights: Tensor, output: Tensor, slots: Tensor, scaling: float = 1.0
) -> None:
    product = product_by_slot(inputs, weights, slots, output.dtype)
    output[:, : product.shape[1]] = scaling * product


def expand(
    inputs: Tensor, weights: Tensor, output: Tensor, slots: Tensor, add_inputs: bool = True
) -> None:
    product = product_by_slot(inputs, weights, slots, output.dtype)
    width = min(product.shape[1], output.shape[1])  # the model may pad its output
    store(output[:, :width], product[: output.shape[0], :width], add_inputs)


def expand_slice(
    inputs: Tensor,
    weights: Tensor,
    output: Tensor,
    slots: Tensor,
    offset: int,
    size: int,
    add_inputs: bool = True,
) -> None:
    store(
        output[:, offset : offset + size],
        product_by_slot(inputs, weights, slots, output.dtype),
        add_inputs,
    )


def is_cpu_worker() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


if is_cpu_worker():
    replace_operators(
        {"bgmv_shrink": shrink, "bgmv_expand": expand, "bgmv_expand_slice": expand_slice}
    )
