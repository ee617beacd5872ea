"""Replaces the LoRA product of vLLM's CPU build (0.29), which takes `weights[slot]` of each token,
with slot -1 for the base model. That is slow: it copies the adapter's matrices for every token, two
thirds of the sampling time in training, where all tokens use the one adapter. And it is wrong: in
PyTorch -1 is the *last* slot, so that with an adapter there, the base model is answered with it as
soon as another request of the batch uses any adapter. GPUs have other operators, which skip -1.

Nothing here imports torch or vLLM before it is called: a driver imports this module, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def use_own_product() -> None:
    """Replaces the product in this process. On a GPU this changes nothing, since nobody calls it
    there."""
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    PunicaWrapperCPU.add_lora_linear = add_lora_linear  # type: ignore[method-assign]


class WorkerExtension:
    """For vLLM's `worker_extension_cls`, where the worker is a process of vLLM's own: vLLM makes
    this a base of its worker's class, so `__new__` runs there before the model is loaded."""

    def __new__(cls, *args: Any, **kwargs: Any) -> WorkerExtension:
        from vllm.platforms import current_platform

        if current_platform.is_cpu():
            use_own_product()
        return super().__new__(cls)


def add_lora_linear(
    self: Any,
    y: Tensor,
    x: Tensor,
    lora_a_stacked: Sequence[Tensor],
    lora_b_stacked: Sequence[Tensor],
    scale: float,
    output_slices: Sequence[int],
    **others: Any,
) -> None:
    """What `PunicaWrapperCPU.add_lora_linear` is for, in its place: adds `scale` x Aᵀ Bᵀ to the
    (tokens, outputs) `y`. Each of the matrices, (slots, 1, rank, inputs) and (slots, 1, outputs,
    rank), is for one of the slices that make up the outputs; `self.token_lora_indices` has the slot
    of each token. The first product is in float32, the second in the dtype of `y`."""
    for rows, slot in rows_by_slot(self.token_lora_indices, len(lora_a_stacked[0])):
        inputs, start = x[rows].float(), 0
        for a, b, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
            low = scale * (inputs @ a[slot, 0].float().T)
            y[rows, start : start + width] += low.to(y.dtype) @ b[slot, 0].to(y.dtype).T
            start += width


def rows_by_slot(slots: Tensor, count: int) -> list[tuple[slice | Tensor, int]]:
    """Returns which tokens use each of `count` slots, without those of slot -1."""
    # The only case in training: one adapter, which every token uses.
    if count == 1 and slots.numel() and slots.min().item() >= 0:
        return [(slice(None), 0)]
    return [(slots == slot, slot) for slot in slots.unique().tolist() if slot >= 0]
