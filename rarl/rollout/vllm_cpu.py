"""Replaces the LoRA operators of vLLM's CPU build (0.29), which take `weights[slot]` of each token,
with slot -1 for the base model. That is slow: it copies the adapter's matrices for every token, two
thirds of the sampling time in training, where all tokens use the one adapter. And it is wrong: in
PyTorch -1 is the *last* slot, so that with an adapter there, the base model is answered with it as
soon as another request of the batch uses any adapter. GPUs have other operators, which skip -1.

Nothing here imports torch or vLLM before it is called: a driver imports this module, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def use_own_operators() -> None:
    """Replaces the three operators in this process, wherever vLLM looks them up. On a GPU this
    changes nothing, since nobody calls them there."""
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    own = {"bgmv_shrink": shrink, "bgmv_expand": expand, "bgmv_expand_slice": expand_slice}
    for module in (lora_ops, punica_cpu):
        for name, operator in own.items():
            setattr(module, name, operator)


class WorkerExtension:
    """For vLLM's `worker_extension_cls`, where the worker is a process of vLLM's own: vLLM makes
    this a base of its worker's class, so `__new__` runs there before the model is loaded."""

    def __new__(cls, *args: Any, **kwargs: Any) -> WorkerExtension:
        from vllm.platforms import current_platform

        if current_platform.is_cpu():
            use_own_operators()
        return super().__new__(cls)


def product_by_slot(inputs: Tensor, weights: Tensor, slots: Tensor, dtype: torch.dtype) -> Tensor:
    """Multiplies (tokens, i) `inputs` by the (o, i) matrices of their slots in `weights`, (slots,
    [1,] o, i). Returns (tokens, o) in `dtype`, with zeros for tokens of slot -1."""
    # The fast path, and the only one in training: one adapter, which every token uses.
    if weights.shape[0] == 1 and slots.numel() and slots.min().item() >= 0:
        return inputs.to(dtype) @ weights.reshape(weights.shape[-2:]).to(dtype).T
    matrices = weights.reshape(weights.shape[0], *weights.shape[-2:])
    product = inputs.new_zeros((inputs.shape[0], matrices.shape[1]), dtype=dtype)
    for slot in slots.unique().tolist():
        if slot >= 0:
            rows = slots == slot
            product[rows] = inputs[rows].to(dtype) @ matrices[slot].to(dtype).T
    return product


def shrink(
    inputs: Tensor, weights: Tensor, output: Tensor, slots: Tensor, scaling: float = 1.0
) -> None:
    """Writes `scaling` times the product into the first columns of `output`."""
    import torch

    product = product_by_slot(inputs, weights, slots, output.dtype)
    torch.mul(product, scaling, out=output[:, : product.shape[1]])


def expand(
    inputs: Tensor, weights: Tensor, output: Tensor, slots: Tensor, add_inputs: bool = True
) -> None:
    """Adds the product to `output`, or replaces `output` by it."""
    product = product_by_slot(inputs, weights, slots, output.dtype)
    # The model may pad its output.
    width = min(product.shape[1], output.shape[1])
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
    """Like `expand`, for `size` columns of `output` from `offset` on."""
    product = product_by_slot(inputs, weights, slots, output.dtype)
    store(output[:, offset : offset + size], product, add_inputs)


def store(target: Tensor, values: Tensor, add: bool) -> None:
    if add:
        target += values
    else:
        target.copy_(values)
