"""Every loss against a token-by-token reference in plain floats, and against TRL where TRL has the
same."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import AutoProcessor
from trl import GRPOConfig, GRPOTrainer

from rarl.config import GrpoConfig
from rarl.distribution import SamplingDistribution
from rarl.grpo.forward import VisionCache, make_patches, plain_forward
from rarl.grpo.group import group_advantages
from rarl.grpo.loss import (
    LOSSES,
    LossInputs,
    LossOutput,
    StepTotals,
    compute_loss,
    resolve_loss,
)
from tests.random_models import IMAGE, random_group, random_policy

LIMIT = 16  # max_completion_tokens
NAMES = sorted(LOSSES)


def test_advantages_are_standardised_within_the_group() -> None:
    result = group_advantages([[1.0, 0.0, 0.0, 1.0], [0.5, 0.5, 0.5, 0.5]])
    deviation = math.sqrt(4 * 0.25 / 3)
    assert result[0] == pytest.approx(np.array([1, -1, -1, 1]) * 0.5 / (deviation + 1e-4))
    assert result[1].tolist() == [0.0, 0.0, 0.0, 0.0]
    assert result.dtype == np.float32


def test_advantages_without_scale_are_differences() -> None:
    assert group_advantages([[1.0, 0.0, 0.0, 0.0]], scale=False).tolist() == [
        [0.75, -0.25, -0.25, -0.25]
    ]


def configured(name: str, beta: float = 0.0, importance: str = "truncated") -> GrpoConfig:
    """The loss of that name with its paper's clip."""
    return GrpoConfig.model_validate({"loss": name, "kl_beta": beta, "importance": importance})


def clamp(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def naive_loss(rows: list[dict[str, Any]], s: GrpoConfig) -> float:
    """The formulas of the five papers, written one by one and token by token."""
    low, high = 1 - LOSSES[s.loss].clip[0], 1 + LOSSES[s.loss].clip[1]
    tokens_in_step = sum(len(row["new"]) for row in rows)
    total = 0.0
    for row in rows:
        advantage, length = row["advantage"], len(row["new"])
        sequence_ratio = math.exp(
            sum(n - o for n, o in zip(row["new"], row["old"], strict=True)) / length
        )
        for new, old, sampler, reference in zip(
            row["new"], row["old"], row["sampler"], row["reference"], strict=True
        ):
            ratio = sequence_ratio if s.loss == "gspo" else math.exp(new - old)
            if s.loss == "cispo":
                objective = clamp(ratio, low, high) * advantage * new
            else:
                objective = min(ratio * advantage, clamp(ratio, low, high) * advantage)
            weight = math.exp(old - sampler)
            if s.importance == "none":
                weight = 1.0
            elif s.importance == "truncated":
                weight = min(weight, s.importance_cap)
            elif weight > s.importance_cap:
                weight = 0.0
            kl = math.exp(reference - new) - (reference - new) - 1
            token = -weight * objective + s.kl_beta * kl
            if s.loss in ("grpo", "gspo"):
                total += token / length / len(rows)
            elif s.loss == "dr_grpo":
                total += token / (len(rows) * LIMIT)
            else:
                total += token / tokens_in_step
    return total


Arrays = dict[str, NDArray[np.float64]]


def random_batch(seed: int, rows: int) -> tuple[Arrays, NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, rows)
    width = int(lengths.max())
    arrays = {name: -rng.exponential(1, (rows, width)) for name in ("new", "reference", "sampler")}
    arrays["old"] = arrays["new"] + rng.normal(0, 0.3, (rows, width))
    return arrays, lengths, rng.normal(0, 1, rows)


def inputs_of(
    arrays: Arrays, lengths: NDArray[Any], advantages: NDArray[Any], beta: float
) -> LossInputs:
    width = arrays["new"].shape[1]
    return LossInputs(
        logprobs=torch.tensor(arrays["new"], requires_grad=True),
        old_logprobs=torch.tensor(arrays["old"]),
        sampler_logprobs=torch.tensor(arrays["sampler"]),
        reference_logprobs=torch.tensor(arrays["reference"]) if beta else None,
        advantages=torch.tensor(advantages),
        mask=torch.arange(width)[None] < torch.tensor(lengths)[:, None],
    )


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 6),
    beta=st.sampled_from([0.0, 0.1]),
    importance=st.sampled_from(["truncated", "masked", "none"]),
)
@pytest.mark.parametrize("name", NAMES)
def test_each_loss_equals_its_formula(
    name: str, seed: int, rows: int, beta: float, importance: Any
) -> None:
    arrays, lengths, advantages = random_batch(seed, rows)
    inputs = inputs_of(arrays, lengths, advantages, beta)
    chosen = configured(name, beta, importance)
    totals = StepTotals(rows, int(lengths.sum()), LIMIT)
    out = compute_loss(inputs, totals, chosen)
    plain = [
        {key: array[i, : lengths[i]] for key, array in arrays.items()}
        | {"advantage": advantages[i]}
        for i in range(rows)
    ]
    assert out.loss.item() == pytest.approx(naive_loss(plain, chosen), rel=1e-6, abs=1e-9)
    out.loss.backward()
    gradient = inputs.logprobs.grad
    assert gradient is not None
    assert torch.isfinite(gradient).all()
    assert (gradient[~inputs.mask] == 0).all(), "padding must not be trained on"


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), cut=st.integers(1, 4))
@pytest.mark.parametrize("name", NAMES)
def test_micro_batches_add_up(name: str, seed: int, cut: int) -> None:
    arrays, lengths, advantages = random_batch(seed, 5)
    chosen = configured(name, 0.1)
    totals = StepTotals(5, int(lengths.sum()), LIMIT)

    def part(rows: slice) -> LossOutput:
        some = {key: array[rows] for key, array in arrays.items()}
        return compute_loss(inputs_of(some, lengths[rows], advantages[rows], 0.1), totals, chosen)

    whole, first, second = part(slice(None)), part(slice(cut)), part(slice(cut, None))
    assert (first.loss + second.loss).item() == pytest.approx(whole.loss.item(), rel=1e-9)
    assert (first.kl + second.kl).item() == pytest.approx(whole.kl.item(), rel=1e-9)
    assert (first.clipped + second.clipped).item() == whole.clipped.item()


def single(old: float, advantage: float = 1.0) -> LossInputs:
    """Two tokens with log-prob 0; the first one's ratio is exp(-old)."""
    return LossInputs(
        logprobs=torch.zeros(1, 2, requires_grad=True),
        old_logprobs=torch.tensor([[old, 0.0]]),
        sampler_logprobs=torch.tensor([[old, 0.0]]),
        reference_logprobs=None,
        advantages=torch.tensor([advantage]),
        mask=torch.ones(1, 2, dtype=torch.bool),
    )


@pytest.mark.parametrize(
    ("name", "old", "gradient", "clipped"),
    [
        ("grpo", -1.0, [0.0, -0.5], 1.0),  # ratio e, beyond 1.2: no gradient
        ("grpo", -0.22, [0.0, -0.5], 1.0),  # ratio 1.246, beyond 1.2 …
        ("dapo", -0.22, [-math.exp(0.22) / 2, -0.5], 0.0),  # … but not beyond DAPO's 1.28
        ("cispo", -2.0, [-5 / 2, -0.5], 1.0),  # ratio e², bounded to 5, and still a gradient
    ],
)
def test_what_clipping_does_to_the_gradient(
    name: str, old: float, gradient: list[float], clipped: float
) -> None:
    inputs = single(old)
    out = compute_loss(inputs, StepTotals(1, 2, LIMIT), configured(name))
    out.loss.backward()
    assert inputs.logprobs.grad is not None
    assert inputs.logprobs.grad[0].tolist() == pytest.approx(gradient)
    assert out.clipped.item() == clipped


def test_what_is_not_configured_comes_from_the_paper() -> None:
    dapo = resolve_loss(GrpoConfig(loss="dapo"))
    assert (dapo.clip, dapo.scale_advantages, dapo.drop_truncated) == ((0.2, 0.28), True, True)
    assert resolve_loss(GrpoConfig(loss="dapo", clip=0.1)).clip == (0.1, 0.1)
    assert resolve_loss(GrpoConfig(loss="grpo", clip_high=0.3)).clip == (0.2, 0.3)
    assert not resolve_loss(GrpoConfig(loss="dr_grpo")).scale_advantages
    assert resolve_loss(GrpoConfig(loss="dr_grpo", scale_advantages=True)).scale_advantages


TRL_OPTIONS: dict[str, dict[str, Any]] = {
    "grpo": {"loss_type": "grpo", "epsilon": 0.2},
    "dr_grpo": {"loss_type": "dr_grpo", "epsilon": 0.2},
    "dapo": {"loss_type": "dapo", "epsilon": 0.2, "epsilon_high": 0.28},
    "gspo": {
        "loss_type": "grpo",
        "importance_sampling_level": "sequence",
        "epsilon": 3e-4,
        "epsilon_high": 4e-4,
    },
    "cispo": {"loss_type": "cispo", "epsilon_high": 5.0},
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_each_loss_equals_trls(name: str, beta: float, tmp_path: Path, model_path: str) -> None:
    """TRL's own `_compute_loss` and backward on the same model, batch and old log-probs: loss and
    every gradient."""
    policy = random_policy()
    rng = np.random.default_rng(0)
    lengths = [3, 7, 5, 7]
    group = random_group(rng, [(4, 4)], (5, 6), lengths)
    advantages = torch.tensor([1.2, -0.4, 0.3, -1.1])
    temperature = 0.9
    with torch.no_grad():
        current = plain_forward(
            policy, [group], SamplingDistribution(temperature, []), VisionCache()
        ).logprobs
    mask = torch.arange(7)[None] < torch.tensor(lengths)[:, None]
    old = (
        current + 0.2 * torch.from_numpy(rng.standard_normal(current.shape).astype(np.float32))
    ) * mask
    reference = (current - 0.3) * mask

    inputs = LossInputs(
        logprobs=plain_forward(
            policy, [group], SamplingDistribution(temperature, []), VisionCache()
        ).logprobs,
        old_logprobs=old,
        sampler_logprobs=old,
        reference_logprobs=reference if beta else None,
        advantages=advantages,
        mask=mask,
    )
    totals = StepTotals(4, sum(lengths), LIMIT)
    ours = compute_loss(inputs, totals, configured(name, beta, "none")).loss
    ours.backward()
    expected = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad()

    trainer: Any = trl_trainer(
        policy, tmp_path, model_path, beta=beta, temperature=temperature, **TRL_OPTIONS[name]
    )
    completions = [[*c, *[0] * (7 - len(c))] for c in group.completions]
    prompt = torch.from_numpy(group.prompt_token_ids)[None].repeat(4, 1)
    batch = {
        "prompt_ids": prompt,
        "prompt_mask": torch.ones_like(prompt),
        "completion_ids": torch.tensor(completions),
        "completion_mask": mask.long(),
        "advantages": advantages,
        "old_per_token_logps": old,
        "ref_per_token_logps": reference,
        "num_items_in_batch": mask.sum(),
        "pixel_values": make_patches(group, "cpu").repeat(4, 1),
        "image_grid_thw": torch.from_numpy(group.grid).repeat(4, 1),
        "num_images": [1] * 4,
        "mm_token_type_ids": torch.cat(
            [prompt == IMAGE, torch.zeros(4, 7, dtype=torch.bool)], dim=1
        ).int(),
    }
    theirs = trainer._compute_loss(trainer.model, batch)
    theirs.backward()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5, abs=1e-7)
    found = {n: p.grad for n, p in policy.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    scale = max(gradient.norm().item() for gradient in expected.values())
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, atol=1e-5 * scale, rtol=1e-4)


def trl_trainer(policy: Any, folder: Path, processor_path: str, **options: Any) -> GRPOTrainer:
    arguments = GRPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        num_generations=4,
        per_device_train_batch_size=4,
        max_completion_length=LIMIT,
        use_bias_correction_kl=False,
        report_to=[],
        **options,
    )
    trainer = GRPOTrainer(
        model=policy,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": ["a"] * 4}),
        processing_class=AutoProcessor.from_pretrained(processor_path),
    )
    trainer.current_gradient_accumulation_steps = 1
    return trainer
