"""Log-probs and update: against the model's own forward, and against each other however the step is
cut."""

from __future__ import annotations

import copy
import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from PIL import Image

from rarl.config import GrpoConfig, TrainConfig
from rarl.data.prepared import prepare_example
from rarl.distribution import BAN_BIAS, SamplingDistribution
from rarl.grpo.forward import (
    ForwardOutput,
    ForwardPass,
    VisionCache,
    make_patches,
    plain_forward,
)
from rarl.grpo.group import TokenGroup, group_advantages, set_advantages
from rarl.grpo.loss import LOSSES
from rarl.grpo.movement import Movement
from rarl.grpo.policy import adapter_arrays, adapter_parameters, load_policy, other_adapter
from rarl.grpo.shared_prefix import SharedPrefixForward
from rarl.grpo.update import (
    SamplerMismatch,
    UpdateSettings,
    measure_mismatch,
    micro_batches,
    update_policy,
)
from rarl.prompts import plain_prompt
from rarl.samples import Sample
from rarl.schema import Example, PreparedExample, Rollout, Score
from tests.random_models import random_policy


@pytest.fixture(scope="module")
def prepared(examples: list[Example], processor: Any) -> list[PreparedExample]:
    """Three prompts with pictures of different shapes."""
    made = []
    for example, size in zip(examples, [(112, 112), (300, 90), (40, 200)], strict=False):
        picture = Image.open(io.BytesIO(example.images[0])).resize(size)
        encoded = io.BytesIO()
        picture.save(encoded, format="PNG")
        made.append(
            prepare_example(
                Example(**{**vars(example), "images": (encoded.getvalue(),)}),
                processor,
                plain_prompt(),
            )
        )
    return made


def make_groups(prepared: list[PreparedExample], rng: np.random.Generator) -> list[TokenGroup]:
    return [
        TokenGroup(
            p.prompt_token_ids,
            p.pixels,
            p.patch_rule,
            [rng.integers(0, 256, n).tolist() for n in lengths],
            key,
        )
        for key, (p, lengths) in enumerate(
            zip(prepared, [(1, 7, 3), (12, 2, 5), (4, 9, 1)], strict=True)
        )
    ]


@pytest.fixture(scope="module")
def policy(model_path: str) -> Any:
    made = load_policy(model_path, "float32", "cpu", rank=8, alpha=16, seed=0)
    torch.manual_seed(1)
    for parameter in adapter_parameters(made):
        torch.nn.init.normal_(parameter, std=0.05)
    return made


def naive_logprobs(
    policy: Any, group: TokenGroup, completion: list[int], distribution: SamplingDistribution
) -> Any:
    """One sequence at a time through the model's own forward, full logits, no padding."""
    ids = torch.tensor([[*group.prompt_token_ids.tolist(), *completion]])
    logits = policy(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=make_patches(group, "cpu"),
        image_grid_thw=torch.from_numpy(group.grid),
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
    rows = plain_forward(policy, groups, distribution, VisionCache()).logprobs
    index = 0
    for group in groups:
        for completion in group.completions:
            expected = naive_logprobs(policy, group, completion, distribution)
            torch.testing.assert_close(rows[index, : len(completion)], expected, atol=2e-5, rtol=0)
            assert (rows[index, len(completion) :] == 0).all()
            index += 1
    assert index == len(rows)


def scored(groups: list[TokenGroup], policy: Any, rng: np.random.Generator) -> list[TokenGroup]:
    """Groups whose sampler is the policy itself."""
    with torch.no_grad():
        rows = plain_forward(
            policy, groups, SamplingDistribution(1.0, []), VisionCache()
        ).logprobs.tolist()
    result = []
    for group in groups:
        own = [rows.pop(0)[: len(completion)] for completion in group.completions]
        advantages = rng.normal(0, 1, len(own)).astype(np.float32)
        result.append(replace(group, sampler_logprobs=own, advantages=advantages))
    return result


SETTINGS = UpdateSettings(
    grpo=GrpoConfig(kl_beta=0.1),
    train=TrainConfig(micro_batch_tokens=100),
    max_completion_tokens=12,
    shared_prefix=True,
    max_drift=1e-3,
)
DISTRIBUTION = SamplingDistribution(1.0, [])


def weights(policy: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in adapter_parameters(policy)])


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_neither_micro_batches_nor_the_forward_pass_change_the_update(
    policy: Any, prepared: list[PreparedExample], loss: str
) -> None:
    """Two epochs, so that the ratio leaves 1, with a KL, cut in several ways, through both
    passes."""
    results = []
    grpo = GrpoConfig.model_validate({"loss": loss, "kl_beta": 0.1, "epochs": 2})
    ways: list[tuple[ForwardPass, bool, int]] = [
        (plain_forward, False, 10**6),
        (plain_forward, False, 1),
        (SharedPrefixForward(), True, 10**6),
        (SharedPrefixForward(), True, 60),
    ]
    for forward, shared, budget in ways:
        twin = copy.deepcopy(policy)
        rng = np.random.default_rng(0)
        groups = scored(make_groups(prepared, rng), twin, rng)
        optimizer = torch.optim.SGD(adapter_parameters(twin), lr=0.1)
        train = TrainConfig(micro_batch_tokens=budget)
        settings = replace(SETTINGS, grpo=grpo, train=train, shared_prefix=shared)
        results.append(
            (update_policy(twin, optimizer, groups, forward, DISTRIBUTION, settings), weights(twin))
        )
    for stats, after in results[1:]:
        torch.testing.assert_close(after, results[0][1], atol=2e-6, rtol=0)
        assert stats.loss == pytest.approx(results[0][0].loss, abs=1e-5)
        assert stats.kl == pytest.approx(results[0][0].kl, rel=1e-4)
        assert stats.entropy == pytest.approx(results[0][0].entropy, rel=1e-4)
    assert not torch.equal(weights(policy), results[0][1])
    assert results[0][0].kl is not None
    assert results[0][0].kl > 0


def test_without_a_weight_the_reference_pass_is_skipped(
    policy: Any, prepared: list[PreparedExample]
) -> None:
    calls: list[bool] = []

    def counting(
        policy: PeftModel,
        groups: list[TokenGroup],
        distribution: SamplingDistribution,
        vision: VisionCache,
    ) -> ForwardOutput:
        calls.append(torch.is_grad_enabled())
        return plain_forward(policy, groups, distribution, vision)

    rng = np.random.default_rng(0)
    groups = scored(make_groups(prepared, rng), policy, rng)
    for beta, expected in ((0.0, [True]), (0.1, [True, False])):
        calls.clear()
        twin = copy.deepcopy(policy)
        optimizer = torch.optim.SGD(adapter_parameters(twin), lr=0.1)
        whole = TrainConfig(micro_batch_tokens=10**6)
        settings = replace(SETTINGS, grpo=GrpoConfig(kl_beta=beta), train=whole)
        stats = update_policy(twin, optimizer, groups, counting, DISTRIBUTION, settings)
        assert calls == expected
        assert (stats.kl is None) == (beta == 0)


@pytest.mark.parametrize("shared", [True, False])
def test_micro_batches_keep_every_completion_once(
    prepared: list[PreparedExample], policy: Any, shared: bool
) -> None:
    rng = np.random.default_rng(0)
    groups = scored(make_groups(prepared, rng), policy, rng)
    prompts = [len(g.prompt_token_ids) for g in groups]
    budget = max(prompts) + 12 if shared else 2 * max(prompts) + 16
    parts = list(micro_batches(groups, budget, shared))
    for part in parts:
        cost = sum(
            sum(len(c) for c in s.completions)
            + len(s.prompt_token_ids) * (1 if shared else len(s.completions))
            for s in part
        )
        assert cost <= budget
    assert len(parts) > len(groups), "the budget must cut a group for this test to mean anything"
    flat = [c for part in parts for s in part for c in s.completions]
    assert flat == [c for s in groups for c in s.completions]
    assert np.concatenate([s.advantages for part in parts for s in part]).tolist() == (
        np.concatenate([s.advantages for s in groups]).tolist()
    )
    assert len(list(micro_batches(groups, 10**6, shared))) == 1
    alone = list(micro_batches(groups, 1, shared))
    assert [len(s.completions) for part in alone for s in part] == [1] * 9


def off_by(policy: Any, prepared: list[PreparedExample], difference: float) -> list[TokenGroup]:
    rng = np.random.default_rng(0)
    return [
        replace(s, sampler_logprobs=[[x - difference for x in row] for row in s.sampler_logprobs])
        for s in scored(make_groups(prepared, rng), policy, rng)
    ]


def test_a_sampler_with_other_weights_is_refused_before_the_weights_change(
    policy: Any, prepared: list[PreparedExample]
) -> None:
    twin = copy.deepcopy(policy)
    groups = off_by(twin, prepared, 0.01)
    optimizer = torch.optim.SGD(adapter_parameters(twin), lr=1.0)
    with pytest.raises(SamplerMismatch, match=r"differ by 0\.01 on average .* bound of 0\.001"):
        update_policy(twin, optimizer, groups, plain_forward, DISTRIBUTION, SETTINGS)
    assert torch.equal(weights(twin), weights(policy))


def test_a_batch_that_is_meant_to_differ_is_trained_on(
    policy: Any, prepared: list[PreparedExample]
) -> None:
    twin = copy.deepcopy(policy)
    optimizer = torch.optim.SGD(adapter_parameters(twin), lr=1.0)
    groups = off_by(twin, prepared, 0.01)
    stats = update_policy(
        twin, optimizer, groups, plain_forward, DISTRIBUTION, replace(SETTINGS, max_drift=None)
    )
    assert stats.drift == pytest.approx(0.01, abs=1e-5)
    assert not torch.equal(weights(twin), weights(policy))


def test_the_mismatch_of_an_older_adapter_is_measured_with_that_adapter(
    policy: Any, prepared: list[PreparedExample]
) -> None:
    twin = copy.deepcopy(policy)
    group = off_by(twin, prepared, 0.0)[1]
    older = adapter_arrays(twin)
    with torch.no_grad():
        for parameter in adapter_parameters(twin):
            parameter.add_(0.05)
    current = weights(twin)
    total, tokens, _ = measure_mismatch(twin, group, SharedPrefixForward(), DISTRIBUTION)
    assert tokens == 12 + 2 + 5
    assert total / tokens > 1e-3
    with other_adapter(twin, older):
        total, tokens, largest = measure_mismatch(twin, group, SharedPrefixForward(), DISTRIBUTION)
    assert total / tokens <= largest < 1e-5
    assert torch.equal(weights(twin), current), "its own weights are back, bit for bit"


def test_advantages_on_the_record_reach_the_update_to_the_bit(
    prepared: list[PreparedExample],
) -> None:
    rng = np.random.default_rng(0)
    groups = [
        [
            Sample(
                one.example,
                one.prompt,
                Rollout("", [number, 7], "stop", 3, sampler_logprobs=[-0.5, -float(number)]),
                number=number,
                score=Score(float(rng.random())),
                prepared=one,
            )
            for number in range(5)
        ]
        for one in prepared
    ]
    for scale in (True, False):
        set_advantages(groups, scale)
        totals = [[s.score.total for s in group if s.score] for group in groups]
        expected = group_advantages(totals, scale)
        for key, group in enumerate(groups):
            tokens = TokenGroup.of(group, key)
            assert tokens.advantages.dtype == np.float32
            assert (tokens.advantages == expected[key]).all()
            assert tokens.completions == [[number, 7] for number in range(5)]
            assert tokens.prompt_token_ids is prepared[key].prompt_token_ids
            part = tokens.part([1, 4])
            assert part.sampler_logprobs == [[-0.5, -1.0], [-0.5, -4.0]]
            assert (part.advantages == expected[key][[1, 4]]).all()
    name = groups[0][0].example.id
    groups[0][2].advantage = None
    with pytest.raises(ValueError, match=f"some samples of '{name}' have no advantage"):
        TokenGroup.of(groups[0], 0)
    groups[0][0].prepared = None
    with pytest.raises(ValueError, match=f"'{name}' hold no prepared example"):
        TokenGroup.of(groups[0], 0)
    groups[1][0].score = None
    with pytest.raises(ValueError, match="have not been scored"):
        set_advantages(groups, True)


def test_movement_is_that_of_the_product() -> None:
    """Without making it, and 0 for a fresh adapter."""
    policy: Any = random_policy()
    found = []
    for layer in policy.modules():
        if isinstance(layer, LoraLayer):
            delta = layer.get_delta_weight("default")
            found.append(float(delta.norm() / layer.get_base_layer().weight.norm()))
    assert len(found) > 10
    assert Movement(policy).median() == pytest.approx(np.median(found), rel=1e-5)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.zeros_(parameter)
    assert Movement(policy).median() == 0.0
