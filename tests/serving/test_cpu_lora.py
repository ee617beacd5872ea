"""The LoRA operators that the served engine uses on a CPU, against the plain products of each
token."""

from __future__ import annotations

import pytest
import torch

from rarl.serving.cpu_lora import expand, expand_slice, product_by_slot, shrink

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
    it, and rarl/serving/cpu_lora.py can go."""
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
