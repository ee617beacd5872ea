"""Makes adapters cheap in vLLM's CPU build (0.29), where they otherwise take two thirds of the
sampling time.

Its LoRA operators gather a copy of the adapter's matrices for every token, so that tokens may use
different adapters. Here there is one slot, hence one matrix for all tokens: the same product
without the copies. The operators are replaced only for that case; with more slots vLLM's own run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def one_slot_product(inputs: Tensor, weights: Tensor, dtype: Any) -> Tensor:
    """(tokens, i) times the only matrix of (1, [1,] o, i) weights: (tokens, o) in `dtype`."""
    return inputs.to(dtype) @ weights.reshape(weights.shape[-2:]).to(dtype).T


def use_one_slot_operators() -> None:
    """Replaces vLLM's three LoRA operators in this process. Call before the engine is made."""
    from vllm.lora.ops.torch_ops import lora_ops

    shrink, expand, expand_slice = (
        lora_ops.bgmv_shrink,
        lora_ops.bgmv_expand,
        lora_ops.bgmv_expand_slice,
    )

    def fast_shrink(
        inputs: Tensor, weights: Tensor, output: Tensor, indices: Tensor, scaling: float = 1.0
    ) -> None:
        if weights.shape[0] != 1:
            return shrink(inputs, weights, output, indices, scaling)
        product = one_slot_product(inputs, weights, output.dtype)
        output[:, : product.shape[1]] = scaling * product

    def fast_expand(
        inputs: Tensor, weights: Tensor, output: Tensor, indices: Tensor, add_inputs: bool = True
    ) -> None:
        if weights.shape[0] != 1:
            return expand(inputs, weights, output, indices, add_inputs)
        product = one_slot_product(inputs, weights, output.dtype)
        width = min(product.shape[1], output.shape[1])  # the model may pad its output
        store(output[:, :width], product[: output.shape[0], :width], add_inputs)

    def fast_expand_slice(
        inputs: Tensor,
        weights: Tensor,
        output: Tensor,
        indices: Tensor,
        offset: int,
        size: int,
        add_inputs: bool = True,
    ) -> None:
        if weights.shape[0] != 1:
            return expand_slice(inputs, weights, output, indices, offset, size, add_inputs)
        store(
            output[:, offset : offset + size],
            one_slot_product(inputs, weights, output.dtype),
            add_inputs,
        )

    replace_operators(
        {
            "bgmv_shrink": fast_shrink,
            "bgmv_expand": fast_expand,
            "bgmv_expand_slice": fast_expand_slice,
        }
    )


def replace_operators(replacements: dict[str, Callable[..., None]]) -> None:
    """In this process, wherever vLLM's CPU build looks them up."""
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    for module in (lora_ops, punica_cpu):
        for name, replacement in replacements.items():
            setattr(module, name, replacement)


def store(target: Tensor, values: Tensor, add: bool) -> None:
    if add:
        target += values
    else:
        target.copy_(values)
