"""The LoRA product that every engine uses on a CPU, against the plain products of each token."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from rarl.rollout.vllm_cpu import WorkerExtension, add_lora_linear

SLOTS = torch.tensor([1, -1, 0, 0, -1, 2, 1])
INPUTS = torch.randn(7, 12, generator=torch.Generator().manual_seed(0))


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def added(y: Tensor, x: Tensor, a: list[Tensor], b: list[Tensor], slots: Tensor) -> Tensor:
    """What the product makes of `y`, which stays as it is."""
    out = y.clone()
    widths = tuple(one.shape[2] for one in b)
    add_lora_linear(SimpleNamespace(token_lora_indices=slots), out, x, a, b, 0.5, widths)
    return out


def test_each_token_has_its_own_slots_product_and_base_tokens_none() -> None:
    """Of two slices of different width."""
    a = [draw(3, 1, 5, 12, seed=seed) for seed in (1, 2)]
    b = [draw(3, 1, 4, 5, seed=3), draw(3, 1, 6, 5, seed=4)]
    y = draw(7, 10, seed=5)
    expected = y.clone()
    for row, slot in enumerate(SLOTS.tolist()):
        if slot >= 0:
            parts = [
                0.5 * (v[slot, 0] @ (u[slot, 0] @ INPUTS[row])) for u, v in zip(a, b, strict=True)
            ]
            expected[row] += torch.cat(parts)
    torch.testing.assert_close(added(y, INPUTS, a, b, SLOTS), expected)


@pytest.mark.parametrize("slots", [torch.where(SLOTS < 0, -1, 0), torch.full((7,), -1)])
def test_the_base_model_has_no_adapter_where_there_is_one_slot_only(slots: Tensor) -> None:
    a, b, y = draw(1, 1, 5, 12, seed=1), draw(1, 1, 4, 5, seed=2), draw(7, 4, seed=3)
    out = added(y, INPUTS, [a], [b], slots)
    assert torch.equal(out[slots < 0], y[slots < 0])
    torch.testing.assert_close(
        out[slots >= 0], (y + 0.5 * INPUTS @ a[0, 0].T @ b[0, 0].T)[slots >= 0]
    )
    assert added(y[:0], INPUTS[:0], [a], [b], slots[:0]).shape == (0, 4)


@pytest.mark.parametrize("tokens", [1, 8, 64, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_adapter_gives_the_very_bits_of_the_plain_product(
    tokens: int, dtype: torch.dtype
) -> None:
    """In training: the sampler's log-probs must not depend on which operators a version has. The
    arithmetic is written down here once more, as the first version had it."""
    inputs, slots = draw(tokens, 96, seed=2).to(dtype), torch.zeros(tokens, dtype=torch.long)
    a, b = draw(1, 1, 8, 96, seed=3).to(dtype), draw(1, 1, 40, 8, seed=4).to(dtype)
    y = draw(tokens, 40, seed=5).to(dtype)
    low = 0.5 * (inputs.to(torch.float32) @ a.reshape(8, 96).to(torch.float32).T)
    expected = y.clone()
    expected += low.to(dtype) @ b.reshape(40, 8).to(dtype).T
    assert torch.equal(added(y, inputs, [a], [b], slots), expected)


def test_vllms_own_operators_still_need_replacing() -> None:
    """They give a token of the base model the last slot's product. When this fails, vLLM has mended
    it, and rarl/rollout/vllm_cpu.py can go."""
    import importlib.util

    spec = importlib.util.find_spec("vllm.lora.ops.torch_ops.lora_ops")
    assert spec is not None and spec.loader is not None
    # not the module in which the operators may be replaced already
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    output = torch.zeros(1, 5)
    weights = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(1))
    fresh.bgmv_shrink(INPUTS[:1], weights, output, torch.tensor([-1]))
    assert bool((output != 0).any())


def test_the_product_is_replaced_when_vllm_makes_its_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """vLLM adds the extension to the bases of its worker's class, and then makes one."""
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    class Base:
        pass

    class Worker(Base):
        def __init__(self, rank: int) -> None:
            self.rank = rank

    monkeypatch.setattr(PunicaWrapperCPU, "add_lora_linear", None)
    Worker.__bases__ = (*Worker.__bases__, WorkerExtension)
    assert Worker(rank=3).rank == 3
    assert PunicaWrapperCPU.add_lora_linear is add_lora_linear
