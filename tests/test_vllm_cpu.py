"""The LoRA operators that every engine uses on a CPU, against the plain products of each token."""

from __future__ import annotations

import pytest
import torch

from rarl.rollout.vllm_cpu import WorkerExtension, expand, expand_slice, product_by_slot, shrink

SLOTS = torch.tensor([1, -1, 0, 0, -1, 2, 1])
INPUTS = torch.randn(7, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(3, 1, 5, 12), (3, 5, 12)])
def test_each_token_has_its_own_slots_product_and_base_tokens_none(shape: tuple[int, ...]) -> None:
    weights = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    matrices = weights.reshape(3, 5, 12)
    expected = torch.stack(
        [
            matrices[slot] @ token if slot >= 0 else torch.zeros(5)
            for token, slot in zip(INPUTS, SLOTS, strict=True)
        ]
    )
    torch.testing.assert_close(product_by_slot(INPUTS, weights, SLOTS, torch.float32), expected)
    low = torch.ones(7, 5)
    shrink(INPUTS, weights, low, SLOTS, 0.5)
    torch.testing.assert_close(low, 0.5 * expected)
    added, replaced, part = torch.ones(7, 5), torch.ones(7, 5), torch.ones(7, 9)
    expand(INPUTS, weights, added, SLOTS)
    expand(INPUTS, weights, replaced, SLOTS, add_inputs=False)
    expand_slice(INPUTS, weights, part, SLOTS, 2, 5)
    torch.testing.assert_close(added, 1 + expected)
    torch.testing.assert_close(replaced, expected)
    torch.testing.assert_close(part[:, 2:7], 1 + expected)
    assert bool((part[:, :2] == 1).all()) and bool((part[:, 7:] == 1).all())


def test_vllms_own_operators_still_need_replacing() -> None:
    """They give a token of the base model the last slot's product. When this fails, vLLM has mended
    it, and the slots in rarl/rollout/vllm_cpu.py can go."""
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


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tokens", [1, 8, 64, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_adapter_gives_the_very_bits_of_the_plain_product(
    tokens: int, dtype: torch.dtype
) -> None:
    """In training: the sampler's log-probs must not depend on which operators a version has. The
    arithmetic is written down here once more, as the first version had it."""
    inputs, slots = draw(tokens, 96, seed=2).to(dtype), torch.zeros(tokens, dtype=torch.long)
    a, b = draw(1, 1, 8, 96, seed=3).to(dtype), draw(1, 1, 40, 8, seed=4).to(dtype)
    low, high = torch.zeros(tokens, 8), draw(tokens, 48, seed=5).to(dtype)

    expected_low = torch.zeros(tokens, 8)
    expected_low[:, :8] = 0.37 * (inputs.to(torch.float32) @ a.reshape(8, 96).to(torch.float32).T)
    shrink(inputs, a, low, slots, 0.37)
    assert torch.equal(low, expected_low)

    product = low.to(dtype) @ b.reshape(40, 8).to(dtype).T
    for add in (True, False):
        expected, written = high.clone(), high.clone()
        part, written_part = high.clone(), high.clone()
        if add:
            expected[:, :40] += product
            part[:, 5:45] += product
        else:
            expected[:, :40].copy_(product)
            part[:, 5:45].copy_(product)
        expand(low, b, written, slots, add)
        expand_slice(low, b, written_part, slots, 5, 40, add)
        assert torch.equal(written, expected) and torch.equal(written_part, part)


def test_the_base_model_has_no_adapter_where_there_is_one_slot_only() -> None:
    weights = draw(1, 5, 12, seed=1)
    product = product_by_slot(INPUTS, weights, torch.where(SLOTS < 0, -1, 0), torch.float32)
    assert bool((product[SLOTS < 0] == 0).all())
    torch.testing.assert_close(product[SLOTS >= 0], INPUTS[SLOTS >= 0] @ weights[0].T)
    assert product_by_slot(INPUTS[:0], weights, SLOTS[:0], torch.float32).shape == (0, 5)


def test_the_operators_are_replaced_when_vllm_makes_its_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """vLLM adds the extension to the bases of its worker's class, and then makes one."""
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    class Base:
        pass

    class Worker(Base):
        def __init__(self, rank: int) -> None:
            self.rank = rank

    own = {"bgmv_shrink": shrink, "bgmv_expand": expand, "bgmv_expand_slice": expand_slice}
    for module in (lora_ops, punica_cpu):
        for name in own:
            monkeypatch.setattr(module, name, None)
    Worker.__bases__ = (*Worker.__bases__, WorkerExtension)
    assert Worker(rank=3).rank == 3
    for module in (lora_ops, punica_cpu):
        assert {name: getattr(module, name) for name in own} == own
