"""Questions of no image, of one and of several in one batch, through engines and trainer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rarl.collect import Collector
from rarl.data.parquet import write_examples
from rarl.data.prepared import prepare_example
from rarl.distribution import SamplingDistribution, banned_token_ids
from rarl.grpo.forward import VisionCache
from rarl.grpo.group import TokenGroup
from rarl.grpo.policy import adapter_arrays, adapter_config, adapter_parameters, load_policy
from rarl.grpo.shared_prefix import SharedPrefixForward
from rarl.prompts import plain_prompt
from rarl.rollout.pool import SamplerPool
from rarl.rollout.sampler import SamplerSettings, SamplingSettings
from rarl.samples import Group
from rarl.schema import Example, PreparedExample
from tests.runs import SHORT, rarl_here

COUNTS = (0, 1, 2, 5, 0, 1)


def mixed(examples: list[Example]) -> list[Example]:
    """Questions of COUNTS images; those of several have labels."""
    pictures = list(dict.fromkeys(one.images[0] for one in examples))
    return [
        replace(
            examples[place],
            images=tuple(pictures[place : place + count]),
            image_labels=tuple(f"view {n}" for n in range(count)) if count > 1 else None,
            image_id=f"of {count} from {place}",
            boxes=None,
        )
        for place, count in enumerate(COUNTS)
    ]


def token_groups(groups: list[Group]) -> list[TokenGroup]:
    return [TokenGroup.of(group, key) for key, group in enumerate(groups)]


def collected_alike(
    pool: SamplerPool, asked: list[PreparedExample], seeds: list[int], processor: Any, path: str
) -> list[Group]:
    """Returns groups of 4 replies of a policy that is not the base, whose prompts' tokens and
    log-probs are the same in the pool's engines and in the trainer."""
    policy = load_policy(path, "float32", "cpu", rank=8, alpha=16, seed=0)
    torch.manual_seed(5)
    for parameter in adapter_parameters(policy):
        torch.nn.init.normal_(parameter, std=0.05)
    pool.publish(500, adapter_arrays(policy), adapter_config(policy))
    # It holds the prompts' tokens against the trainer's.
    groups = Collector.unscored(pool, path, 512).collect(asked, seeds, SamplingSettings(4, 1.0, 24))
    for one, group in zip(asked, groups, strict=True):
        placeholders = group[0].rollout.prompt_token_ids.count(processor.image_token_id)
        assert placeholders == sum(image[..., 0].size // 28**2 for image in one.pixels)
    distribution = SamplingDistribution(1.0, banned_token_ids(processor.tokenizer))
    with torch.no_grad():
        rows = SharedPrefixForward()(policy, token_groups(groups), distribution, VisionCache())
    sampled = [sample.rollout.sampler_logprobs for group in groups for sample in group]
    for own, theirs in zip(rows.logprobs, sampled, strict=True):
        assert (own[: len(theirs)] - torch.tensor(theirs)).abs().max() < 1e-4
    return groups


def test_trainer_and_sampler_see_the_same(
    pool: SamplerPool, examples: list[Example], processor: Any, model_path: str
) -> None:
    asked = [prepare_example(one, processor, plain_prompt()) for one in mixed(examples)]
    asked.append(replace(asked[2], pixels=asked[2].pixels[::-1]))  # the same two, swapped
    seeds = [8 * place for place in range(len(asked) - 1)]
    groups = collected_alike(pool, asked, [*seeds, seeds[2]], processor, model_path)
    in_order, swapped = ([s.rollout.sampler_logprobs for s in groups[place]] for place in (2, -1))
    assert in_order != swapped
    # With nothing to see, the labels and the question are what is left.
    collector = Collector.unscored(pool, model_path, 512)
    bare = collector.submit(asked, [*seeds, 0], SamplingSettings(1, 0.0, 4), show_image=False)
    for group in bare.result():
        assert processor.image_token_id not in group[0].rollout.prompt_token_ids


def test_an_engine_for_text_alone_has_no_vision_tower(
    ray_cluster: None,
    sampler_settings: SamplerSettings,
    examples: list[Example],
    processor: Any,
    model_path: str,
    tmp_path: Path,
) -> None:
    """And the adapter's replies are the trainer's all the same."""
    told = [replace(one, images=(), image_id=one.id, boxes=None) for one in examples[:4]]
    asked = [prepare_example(one, processor, plain_prompt()) for one in told]
    pool = SamplerPool.launch(replace(sampler_settings, images=0), 1, tmp_path, timeout=300)
    try:
        pool.wait_until_ready()
        collected_alike(pool, asked, [0, 8, 16, 24], processor, model_path)
    finally:
        pool.stop()
    logged = "".join(path.read_text() for path in tmp_path.rglob("*.log"))
    assert "running in text-only mode" in logged, logged[-2000:]


@pytest.mark.parametrize("counts", [COUNTS, (0,) * 6])
def test_a_run_of_mixed_questions_trains(
    pool: SamplerPool, examples: list[Example], tmp_path: Path, counts: tuple[int, ...]
) -> None:
    chosen = [one for one in mixed(examples) if len(one.images) in counts]
    write_examples(tmp_path / "train.parquet", [replace(one, split="train") for one in chosen])
    test = [replace(one, id=f"{one.id} again", split="test") for one in chosen]
    write_examples(tmp_path / "test.parquet", test)
    done = rarl_here(
        "train",
        "configs/demo.yaml",
        f"run_dir={tmp_path / 'run'}",
        f"data.train={tmp_path / 'train.parquet'}",
        f"data.eval={{mine: {tmp_path / 'test.parquet'}}}",
        "data.allow_same_files=true",
        "train.on_silent_reward=warn",  # so few rows are not balanced
        *SHORT,
        "train.steps=2",
        pool=pool,
    )
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    assert metrics and all(one["sampler_mismatch/max"] < 1e-4 for one in metrics)
    assert all(one["shared_prefix"] == 1 for one in metrics)
    assert any(one["grad_norm"] > 0 for one in metrics)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["trained"]["mine"]["n"] == len(chosen)
    assert np.isfinite(summary["trained"]["mine"]["accuracy"])
