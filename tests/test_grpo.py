"""Advantages, loss, log-probs and update against naive references written independently of them."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rarl.data.prepare import PreparedExample, prepare_example
from rarl.grpo.advantages import group_advantages
from rarl.grpo.forward import Group, SamplingDistribution, plain_forward
from rarl.grpo.loss import LossInputs, grpo_loss
from rarl.grpo.policy import adapter_parameters, load_policy
from rarl.grpo.update import SamplerMismatch, ScoredGroup, UpdateSettings, micro_batches, update_policy
from rarl.prompts import render_prompt
from rarl.rollout.sampler import BAN_BIAS
from rarl.schema import Example


def test_advantages_are_standardised_within_the_group() -> None:
    result = group_advantages([[1.0, 0.0, 0.0, 1.0], [0.5, 0.5, 0.5, 0.5]])
    deviation = math.sqrt(4 * 0.25 / 3)
    assert result[0] == pytest.approx(np.array([1, -1, -1, 1]) * 0.5 / (deviation + 1e-4))
    assert result[1].tolist() == [0.0, 0.0, 0.0, 0.0]
    assert result.dtype == np.float32


def naive_loss(rows: list[dict[str, Any]], clip: float, beta: float, cap: float) -> float:
    """The loss of the docstring, token by token in plain Python floats."""
    total = 0.0
    for row in rows:
        tokens = []
        for new, old, sampler, reference in zip(row["new"], row["old"], row["sampler"], row["reference"], strict=True):
            ratio = math.exp(new - old)
            clipped = min(max(ratio, 1 - clip), 1 + clip)
            weight = min(math.exp(old - sampler), cap)
            kl = math.exp(reference - new) - (reference - new) - 1
            tokens.append(-weight * min(ratio * row["advantage"], clipped * row["advantage"]) + beta * kl)
        total += sum(tokens) / len(tokens)
    return total


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 6), beta=st.sampled_from([0.0, 0.1]))
def test_loss_equals_the_naive_reference(seed: int, rows: int, beta: float) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, rows)
    width = int(lengths.max())
    arrays = {name: -rng.exponential(1, (rows, width)) for name in ("new", "old", "sampler", "reference")}
    arrays["old"] = arrays["new"] + rng.normal(0, 0.3, (rows, width))
    advantages = rng.normal(0, 1, rows)
    inputs = LossInputs(
        logprobs=torch.tensor(arrays["new"], requires_grad=True),
        old_logprobs=torch.tensor(arrays["old"]),
        sampler_logprobs=torch.tensor(arrays["sampler"]),
        reference_logprobs=torch.tensor(arrays["reference"]) if beta else None,
        advantages=torch.tensor(advantages),
        mask=torch.arange(width)[None] < torch.tensor(lengths)[:, None],
    )
    out = grpo_loss(inputs, clip=0.2, kl_beta=beta, importance_cap=2.0)
    expected = naive_loss(
        [
            {name: array[i, : lengths[i]] for name, array in arrays.items()} | {"advantage": advantages[i]}
            for i in range(rows)
        ],
        0.2,
        beta,
        2.0,
    )
    assert out.loss.item() == pytest.approx(expected, rel=1e-6, abs=1e-6)
    out.loss.backward()
    gradient = inputs.logprobs.grad
    assert gradient is not None
    assert torch.isfinite(gradient).all()
    assert (gradient[~inputs.mask] == 0).all(), "padding must not be trained on"


def test_the_gradient_vanishes_where_the_ratio_is_clipped() -> None:
    logprobs = torch.tensor([[0.0, 0.0]], requires_grad=True)
    inputs = LossInputs(
        logprobs=logprobs,
        old_logprobs=torch.tensor([[-1.0, 0.0]]),  # the first token's ratio is e, beyond 1.2
        sampler_logprobs=torch.tensor([[-1.0, 0.0]]),
        reference_logprobs=None,
        advantages=torch.tensor([1.0]),
        mask=torch.ones(1, 2, dtype=torch.bool),
    )
    out = grpo_loss(inputs, clip=0.2, kl_beta=0.0, importance_cap=2.0)
    out.loss.backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [[0.0, -0.5]]
    assert out.clipped.item() == 1.0


@pytest.fixture(scope="module")
def prepared(examples: list[Example], processor: Any) -> list[PreparedExample]:
    """Three prompts with pictures of different shapes."""
    made = []
    for example, size in zip(examples, [(112, 112), (300, 90), (40, 200)], strict=False):
        picture = Image.open(io.BytesIO(example.image)).resize(size)
        encoded = io.BytesIO()
        picture.save(encoded, format="PNG")
        made.append(
            prepare_example(Example(**{**vars(example), "image": encoded.getvalue()}), processor, render_prompt)
        )
    return made


def make_groups(prepared: list[PreparedExample], rng: np.random.Generator) -> list[Group]:
    return [
        Group(p.prompt_token_ids, p.patches, p.grid, [rng.integers(0, 256, n).tolist() for n in lengths])
        for p, lengths in zip(prepared, [(1, 7, 3), (12, 2, 5), (4, 9, 1)], strict=True)
    ]


@pytest.fixture(scope="module")
def policy(model_path: str) -> Any:
    made = load_policy(model_path, "float32", "cpu", rank=8, alpha=16, seed=0)
    torch.manual_seed(1)
    for parameter in adapter_parameters(made):
        torch.nn.init.normal_(parameter, std=0.05)
    return made


def naive_logprobs(policy: Any, group: Group, completion: list[int], distribution: SamplingDistribution) -> Any:
    """One sequence at a time through the model's own forward, full logits, no padding."""
    ids = torch.tensor([[*group.prompt_token_ids.tolist(), *completion]])
    logits = policy(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=torch.from_numpy(group.patches),
        image_grid_thw=torch.from_numpy(group.grid)[None],
        mm_token_type_ids=(ids == policy.config.image_token_id).int(),
    ).logits[0]
    logits = logits.clone()
    logits[:, distribution.banned_token_ids] += BAN_BIAS
    logprobs = (logits / distribution.temperature).log_softmax(-1)
    start = len(group.prompt_token_ids) - 1
    return torch.stack([logprobs[start + t, token] for t, token in enumerate(completion)])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_plain_forward_equals_the_models_own_forward(
    policy: Any, prepared: list[PreparedExample], temperature: float
) -> None:
    groups = make_groups(prepared, np.random.default_rng(0))
    distribution = SamplingDistribution(temperature, [480, 481])
    rows = plain_forward(policy, groups, distribution)
    index = 0
    for group in groups:
        for completion in group.completions:
            expected = naive_logprobs(policy, group, completion, distribution)
            torch.testing.assert_close(rows[index, : len(completion)], expected, atol=2e-5, rtol=0)
            assert (rows[index, len(completion) :] == 0).all()
            index += 1
    assert index == len(rows)


def scored(groups: list[Group], policy: Any, rng: np.random.Generator) -> list[ScoredGroup]:
    """Groups whose sampler is the policy itself."""
    with torch.no_grad():
        rows = plain_forward(policy, groups, SamplingDistribution(1.0, [])).tolist()
    result = []
    for group in groups:
        own = [rows.pop(0)[: len(completion)] for completion in group.completions]
        result.append(ScoredGroup(group, own, rng.normal(0, 1, len(own)).astype(np.float32)))
    return result


SETTINGS = UpdateSettings(
    clip=0.2, kl_beta=0.1, importance_cap=2.0, max_grad_norm=1.0, micro_batch_size=4, max_sampler_mismatch=1e-3
)


def test_the_size_of_a_micro_batch_changes_nothing(policy: Any, prepared: list[PreparedExample]) -> None:
    results = []
    for size in (1, 4, 100):
        twin = copy.deepcopy(policy)
        rng = np.random.default_rng(0)
        groups = scored(make_groups(prepared, rng), twin, rng)
        settings_ = UpdateSettings(**{**vars(SETTINGS), "micro_batch_size": size})
        optimizer = torch.optim.SGD(adapter_parameters(twin), lr=1.0)
        stats = update_policy(twin, optimizer, groups, plain_forward, SamplingDistribution(1.0, []), settings_)
        results.append((stats, torch.cat([p.detach().flatten() for p in adapter_parameters(twin)])))
    for stats, weights in results[1:]:
        torch.testing.assert_close(weights, results[0][1], atol=1e-6, rtol=0)
        assert stats.loss == pytest.approx(results[0][0].loss, abs=1e-5)
        assert stats.kl == pytest.approx(results[0][0].kl, rel=1e-4)
    start = torch.cat([p.detach().flatten() for p in adapter_parameters(policy)])
    assert not torch.equal(start, results[0][1])
    assert results[0][0].kl is not None
    assert results[0][0].kl > 0


def test_micro_batches_keep_every_completion_once(prepared: list[PreparedExample], policy: Any) -> None:
    rng = np.random.default_rng(0)
    groups = scored(make_groups(prepared, rng), policy, rng)
    parts = list(micro_batches(groups, 4))
    assert [sum(len(s.group.completions) for s in part) for part in parts] == [4, 4, 1]
    flat = [c for part in parts for s in part for c in s.group.completions]
    assert flat == [c for s in groups for c in s.group.completions]
    assert np.concatenate([s.advantages for part in parts for s in part]).tolist() == (
        np.concatenate([s.advantages for s in groups]).tolist()
    )


def test_a_sampler_with_other_weights_is_refused_before_the_weights_change(
    policy: Any, prepared: list[PreparedExample]
) -> None:
    twin = copy.deepcopy(policy)
    rng = np.random.default_rng(0)
    groups = [
        ScoredGroup(s.group, [[x - 0.01 for x in row] for row in s.sampler_logprobs], s.advantages)
        for s in scored(make_groups(prepared, rng), twin, rng)
    ]
    optimizer = torch.optim.SGD(adapter_parameters(twin), lr=1.0)
    with pytest.raises(SamplerMismatch, match=r"differ by 0\.01 on average .* bound of 0\.001"):
        update_policy(twin, optimizer, groups, plain_forward, SamplingDistribution(1.0, []), SETTINGS)
    for before, after in zip(adapter_parameters(policy), adapter_parameters(twin), strict=True):
        assert torch.equal(before, after)
