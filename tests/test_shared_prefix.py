"""The shared-prefix pass against the plain one: log-probs, entropies and every gradient."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from torch import Tensor

from rarl.distribution import SamplingDistribution
from rarl.grpo import kernels, shared_prefix
from rarl.grpo.forward import (
    ForwardOutput,
    ForwardPass,
    Shown,
    VisionCache,
    choose_forward,
    image_features,
    plain_forward,
    use_patch_projection,
)
from rarl.grpo.group import TokenGroup
from rarl.grpo.policy import adapter_parameters
from rarl.grpo.shared_prefix import SharedPrefixForward
from tests.random_models import random_group, random_policy

FAMILIES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
DISTRIBUTION = SamplingDistribution(0.8, [290, 291])
MAX_LENGTH = 24


@pytest.fixture(scope="module", params=FAMILIES)
def policy(request: pytest.FixtureRequest) -> PeftModel:
    return random_policy(request.param)


@pytest.fixture(scope="module")
def qwen2() -> PeftModel:
    return random_policy()


even = st.sampled_from([2, 4, 6])
length = st.one_of(st.just(1), st.just(MAX_LENGTH), st.integers(1, MAX_LENGTH))
# Questions of text and of several images of different sizes are among those of one.
IMAGES = (0, 1, 2, 5)
grids = st.sampled_from(IMAGES).flatmap(
    lambda images: st.lists(st.tuples(even, even), min_size=images, max_size=images)
)
group_shape = st.tuples(
    grids,
    st.tuples(st.integers(1, 8), st.integers(1, 8)),
    st.one_of(
        st.lists(length, min_size=1, max_size=5),
        st.builds(lambda n, g: [n] * g, length, st.integers(1, 5)),
    ),
)


def gradients(
    policy: PeftModel, forward: ForwardPass, groups: list[TokenGroup], weights: Tensor
) -> list[Tensor]:
    out = forward(policy, groups, DISTRIBUTION, VisionCache())
    (out.logprobs * weights[: out.logprobs.shape[0], : out.logprobs.shape[1]]).sum().backward()
    found = [p.grad for p in adapter_parameters(policy)]
    policy.zero_grad()
    assert all(g is not None for g in found), "every LoRA weight has a gradient"
    return [g for g in found if g is not None]


# The same examples in every run: float32 is at the bound for a few of them.
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    shapes=st.lists(group_shape, min_size=1, max_size=3),
    seed=st.integers(0, 10**6),
    checkpointing=st.booleans(),
)
def test_it_equals_the_plain_pass(
    policy: PeftModel, shapes: Any, seed: int, checkpointing: bool
) -> None:
    rng = np.random.default_rng(seed)
    groups = [
        random_group(rng, grid, text, lengths, i) for i, (grid, text, lengths) in enumerate(shapes)
    ]
    fast = SharedPrefixForward(checkpointing)
    expected = plain_forward(policy, groups, DISTRIBUTION, VisionCache())
    found = fast(policy, groups, DISTRIBUTION, VisionCache())
    torch.testing.assert_close(found.logprobs, expected.logprobs, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.entropy, expected.entropy, atol=1e-5, rtol=0)
    with torch.no_grad(), policy.disable_adapter():
        base = plain_forward(policy, groups, DISTRIBUTION, VisionCache()).logprobs
        off = fast(policy, groups, DISTRIBUTION, VisionCache()).logprobs
    torch.testing.assert_close(off, base, atol=1e-5, rtol=0)
    assert (base - expected.logprobs).abs().max() > 1e-3, (
        "the adapter must matter for this test to mean anything"
    )

    weights = torch.from_numpy(rng.standard_normal((30, MAX_LENGTH)).astype(np.float32))
    plain = gradients(policy, plain_forward, groups, weights)
    shared = gradients(policy, fast, groups, weights)
    for one, other in zip(plain, shared, strict=True):
        assert (one - other).norm() <= 1e-5 * one.norm()


@pytest.mark.parametrize("counts", [IMAGES, IMAGES[::-1], (0, 0), (5, 1)])
def test_questions_of_no_and_of_several_images_mix(policy: PeftModel, counts: Any) -> None:
    """In one micro-batch, in this order, each of other sizes."""
    rng = np.random.default_rng(len(counts) + counts[0])
    groups = [
        random_group(
            rng, [(2 * (1 + i), 2 * (3 - i % 3)) for i in range(n)], (3, 4), [5, 2, 9], key
        )
        for key, n in enumerate(counts)
    ]
    weights = torch.from_numpy(rng.standard_normal((30, MAX_LENGTH)).astype(np.float32))
    fast = SharedPrefixForward()
    plain, shared = (
        forward(policy, groups, DISTRIBUTION, VisionCache()).logprobs
        for forward in (plain_forward, fast)
    )
    torch.testing.assert_close(shared, plain, atol=1e-5, rtol=0)
    pairs = zip(
        gradients(policy, plain_forward, groups, weights),
        gradients(policy, fast, groups, weights),
        strict=True,
    )
    for one, other in pairs:
        assert (one - other).norm() <= 1e-5 * one.norm()


def test_images_are_told_apart_by_their_order(policy: PeftModel) -> None:
    """Of equal sizes, so that the prompt's tokens and positions are the same."""
    group = random_group(np.random.default_rng(1), [(4, 4), (4, 4)], (3, 4), [8])
    swapped = replace(group, pixels=group.pixels[::-1], key=1)
    for forward in (plain_forward, SharedPrefixForward()):
        one, other = (
            forward(policy, [asked], DISTRIBUTION, VisionCache()).logprobs
            for asked in (group, swapped)
        )
        assert (one - other).abs().max() > 1e-3
        back = replace(swapped, pixels=swapped.pixels[::-1], key=2)
        again = forward(policy, [back], DISTRIBUTION, VisionCache()).logprobs
        torch.testing.assert_close(again, one, atol=1e-6, rtol=0)


def test_a_question_of_text_needs_no_vision_tower(
    policy: PeftModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(2)
    groups = [random_group(rng, [], (6, 3), [4, 7], key) for key in range(2)]
    expected = plain_forward(policy, groups, DISTRIBUTION, VisionCache()).logprobs
    with monkeypatch.context() as patched:
        patched.delattr(type(policy.get_base_model().model), "get_image_features")
        found = SharedPrefixForward()(policy, groups, DISTRIBUTION, VisionCache()).logprobs
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    with_image = [*groups, random_group(rng, [(2, 4)], (3, 3), [5], key=2)]
    seen: list[int] = []
    visual: Any = policy.get_base_model().model.visual
    handle = visual.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    SharedPrefixForward()(policy, with_image, DISTRIBUTION, VisionCache())
    handle.remove()
    assert seen == [8]


def test_the_rotary_positions_matter(qwen2: PeftModel) -> None:
    """Positions that simply count on from the prompt's length, as for text, are not what the model
    means."""
    group = random_group(np.random.default_rng(0), [(6, 6)], (2, 3), [5, 5])
    right = shared_prefix.rotary_positions(qwen2.get_base_model(), group)
    assert right[:, -1].tolist() == [right.max().item()] * 3
    assert right.max().item() < len(group.prompt_token_ids) - 1


@pytest.mark.parametrize(
    ("at_once", "calls"),
    [(1024, [28]), (28, [28]), (27, [24, 4]), (23, [8, 20]), (1, [8, 16, 4])],
)
def test_the_vision_tower_runs_once_per_group_and_update(
    qwen2: PeftModel, monkeypatch: pytest.MonkeyPatch, at_once: int, calls: list[int]
) -> None:
    monkeypatch.setattr("rarl.grpo.forward.PATCHES_AT_ONCE", at_once)
    seen: list[int] = []
    visual: Any = qwen2.get_base_model().model.visual
    handle = visual.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    rng = np.random.default_rng(0)
    groups = [
        random_group(rng, [(2, 4)], (2, 2), [3, 1, 4], key=0),
        random_group(rng, [(4, 4), (2, 2)], (2, 2), [2], key=1),
    ]
    cache = VisionCache()
    for _ in range(3):
        out = SharedPrefixForward()(qwen2, groups, DISTRIBUTION, cache)
    handle.remove()
    assert seen == calls
    assert all(not f.tokens.requires_grad for f in cache.stored.values())
    assert torch.equal(
        out.logprobs, SharedPrefixForward()(qwen2, groups, DISTRIBUTION, VisionCache()).logprobs
    )


def test_full_logits_never_exist(qwen2: PeftModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """In chunks of two rows the result is the same, and no larger product with the head is ever
    asked for."""
    rows: list[int] = []
    real: Callable[..., None] = kernels.product

    def recording(left: Tensor, right: Tensor, out: Tensor) -> None:
        rows.append(len(left))
        real(left, right, out)

    group = random_group(np.random.default_rng(0), [(2, 2)], (2, 2), [5, 4])
    whole = SharedPrefixForward()(qwen2, [group], DISTRIBUTION, VisionCache())
    monkeypatch.setattr(kernels, "product", recording)
    monkeypatch.setattr(kernels, "chunk_bytes", lambda device: 2 * 4 * 300)
    chunked = SharedPrefixForward()(qwen2, [group], DISTRIBUTION, VisionCache())
    assert rows == [2, 2, 2, 2, 1]
    torch.testing.assert_close(chunked.logprobs, whole.logprobs, atol=1e-6, rtol=0)
    torch.testing.assert_close(chunked.entropy, whole.entropy, atol=1e-6, rtol=0)


def test_checkpointing_keeps_less_for_the_backward_pass(qwen2: PeftModel) -> None:
    group = random_group(np.random.default_rng(0), [(6, 6)], (4, 4), [MAX_LENGTH] * 4)

    def saved(forward: SharedPrefixForward) -> int:
        total = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.numel() * tensor.element_size() if not tensor.is_leaf else 0
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            forward(qwen2, [group], DISTRIBUTION, VisionCache())
        return total

    assert saved(SharedPrefixForward(checkpointing=True)) < 0.6 * saved(SharedPrefixForward())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_patch_projection_is_the_convolution(family: str) -> None:
    model: Any = random_policy(family).get_base_model()
    group = random_group(np.random.default_rng(0), [(4, 6)], (1, 1), [1])
    shown = [Shown(group.key, group.pixels[0], group.patch_rule)]
    (expected,) = image_features(model, shown)
    use_patch_projection(model)
    (found,) = image_features(model, shown)
    torch.testing.assert_close(found.tokens, expected.tokens, atol=1e-6, rtol=1e-5)


class Broken(SharedPrefixForward):
    """Off by a constant: what a change in transformers could bring."""

    def __call__(self, *args: Any) -> ForwardOutput:
        out = super().__call__(*args)
        return replace(out, logprobs=out.logprobs + 0.01)


def test_the_self_check_falls_back_to_the_plain_pass(
    qwen2: PeftModel, caplog: pytest.LogCaptureFixture
) -> None:
    group = random_group(np.random.default_rng(0), [(2, 4)], (2, 2), [3, 3, 3])
    chosen = choose_forward(qwen2, group, DISTRIBUTION, SharedPrefixForward())
    assert chosen.shared
    assert chosen.difference is not None
    assert chosen.difference < 1e-5
    assert not caplog.records
    with caplog.at_level(logging.ERROR):
        chosen = choose_forward(qwen2, group, DISTRIBUTION, Broken())
    assert not chosen.shared
    assert chosen.forward is plain_forward
    assert "differs from the plain one by 0.01 per token" in caplog.text


def test_a_damaged_model_tells_nothing_of_the_shared_pass(
    qwen2: PeftModel, caplog: pytest.LogCaptureFixture
) -> None:
    """The update finds the damage; that the passes differ would be another fault."""
    group = random_group(np.random.default_rng(0), [(2, 4)], (2, 2), [3, 3, 3])
    head: Any = qwen2.get_base_model().lm_head
    kept = head.weight.data.clone()
    head.weight.data.view(-1)[0] = torch.nan
    chosen = choose_forward(qwen2, group, DISTRIBUTION, SharedPrefixForward())
    head.weight.data.copy_(kept)
    assert chosen.shared and chosen.difference is None
    assert not caplog.records


def test_an_unknown_model_trains_with_the_plain_pass(
    qwen2: PeftModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("rarl.grpo.forward.SUPPORTED_MODELS", ("other",))
    group = random_group(np.random.default_rng(0), [(2, 4)], (2, 2), [3])
    assert (
        choose_forward(qwen2, group, DISTRIBUTION, SharedPrefixForward()).forward is plain_forward
    )
    assert "no shared-prefix pass for model type 'qwen2_vl'" in caplog.text
