"""Peak memory of an update of Qwen2-VL-2B in bfloat16 on a GPU, counted without one.

    python bench/meta_update.py

PyTorch's "meta" tensors have shapes, dtypes and no values: the real forward and backward pass of
one group runs on them, every storage is counted from its making to its end, and the attention
kernels are those that a GPU takes. Not counted: weights, what the allocator cuts to pieces, and
what kernels take while they run. Beside it, what `rarl plan` says of the same parts.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from cases import Case, make_group, make_policy
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rarl.config import GrpoConfig
from rarl.distribution import SamplingDistribution
from rarl.grpo import shared_prefix
from rarl.grpo.forward import ImageFeatures, VisionCache
from rarl.grpo.loss import LossInputs, StepTotals, compute_loss
from rarl.grpo.policy import adapter_parameters
from rarl.planning.memory import GIB, update_parts

# (prompt, completion, group): the recipe's longest and mean replies, and a shorter prompt.
SHAPES = [(800, 512, 8), (800, 250, 8), (612, 512, 8), (400, 128, 16)]
SIDE = 32  # patches: an image of 256 tokens
ALIGNED = 512  # bytes, to which PyTorch's allocator rounds


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that are made inside, and the most at a time."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.add(tensor.untyped_storage())
        return out

    def add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self.seen or storage.device.type == "cpu":
            return
        size = -(-storage.nbytes() // ALIGNED) * ALIGNED
        self.seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.end, key, size)

    def end(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size


def gpu_attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **kind: bool
) -> Tensor:
    """`scaled_dot_product_attention` by the kernels that CUDA has in bfloat16: the flash kernel
    where nothing is masked but the future, else the memory-efficient one, for which PyTorch makes
    an additive mask of rows that are padded to a multiple of eight."""
    if attn_mask is None:
        causal = kind.get("is_causal", False)
        out: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal)[0]
        return out
    bias = torch.zeros(attn_mask.shape, dtype=q.dtype, device=q.device)
    bias.masked_fill_(attn_mask.logical_not(), float("-inf"))
    columns = bias.shape[-1]
    bias = functional.pad(bias, (0, -columns % 8))[..., :columns]
    bias = bias.expand(*q.shape[:2], -1, -1)
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    out = efficient(q, k, v, bias, compute_log_sumexp=True)[0]
    return out


@contextmanager
def gpus_attention() -> Iterator[None]:
    own = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = gpu_attention  # type: ignore[assignment]
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = own


@dataclass(frozen=True)
class Counted:
    """GiB, counted and planned, and the gradients that the update gave."""

    peak: float
    planned: float
    gradients: list[Tensor]


def count_update(prompt: int, completion: int, group: int, checkpointing: bool = False) -> Counted:
    """Runs the update of one group, whose completions differ in length."""
    policy = make_policy("2b", "meta")
    model: Any = policy.get_base_model()
    made = make_group(Case("meta", "2b", prompt, completion, group, SIDE), model.config)
    for index, own in enumerate(made.completions):
        del own[max(1, completion - 3 * index) :]
    vision = VisionCache()
    width = model.config.text_config.hidden_size
    features = torch.empty(SIDE**2 // 4, width, dtype=model.dtype, device="meta")
    vision.stored[made.key] = ImageFeatures(features, [])
    forward = shared_prefix.SharedPrefixForward(checkpointing)
    distribution = SamplingDistribution(1.0, [model.config.image_token_id])
    with gpus_attention(), LiveBytes([*policy.parameters(), *policy.buffers()]) as live:
        out = forward(policy, [made], distribution, vision)
        old = out.logprobs.detach()
        advantages = torch.ones(group, device="meta")
        mask = torch.ones_like(old, dtype=torch.bool)
        inputs = LossInputs(out.logprobs, old, old, None, advantages, mask)
        totals = StepTotals(group, group * completion, completion)
        compute_loss(inputs, totals, GrpoConfig()).loss.backward()
    tokens = prompt - 1 + sum(map(len, made.completions))
    planned = sum(update_parts(model.config, tokens, checkpointing).values())
    gradients = [p.grad for p in adapter_parameters(policy) if p.grad is not None]
    return Counted(live.peak / GIB, planned, gradients)


def main() -> None:
    table = Table(title="one update of Qwen2-VL-2B in bfloat16, GiB; counted, not measured")
    for column in ("(P, C, G)", "recomputed", "counted", "planned", "planned / counted"):
        table.add_column(column, justify="right")
    for checkpointing in (False, True):
        for shape in SHAPES:
            found = count_update(*shape, checkpointing)
            table.add_row(
                str(shape),
                "each layer" if checkpointing else "",
                f"{found.peak:.2f}",
                f"{found.planned:.2f}",
                f"{found.planned / found.peak:.2f}",
            )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
