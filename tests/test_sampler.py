"""The sampler is the policy: vLLM's log-probs against transformers + peft on the same tokens, in
float32."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from rarl.config import RolloutConfig
from rarl.data.prepared import prepare_example
from rarl.distribution import SamplingDistribution, banned_token_ids
from rarl.errors import UserError
from rarl.grpo.forward import VisionCache
from rarl.grpo.group import TokenGroup
from rarl.grpo.policy import adapter_arrays, adapter_config, adapter_parameters, load_policy
from rarl.grpo.shared_prefix import SharedPrefixForward
from rarl.prompts import as_turn, plain_prompt, rederive_text
from rarl.replies.grading import is_correct
from rarl.replies.tags import parse_reply
from rarl.rollout.pool import SamplerPool
from rarl.rollout.sampler import SampleRequest, SamplerSettings, SamplingSettings
from rarl.schema import Example, PreparedExample, Rollout

SAMPLING = SamplingSettings(group_size=4, temperature=1.0, max_tokens=24)


@pytest.fixture(scope="module")
def prepared(examples: list[Example], processor: Any) -> list[PreparedExample]:
    return [prepare_example(example, processor, plain_prompt()) for example in examples[8:16]]


@pytest.fixture(scope="module")
def policy(model_path: str) -> Any:
    return load_policy(model_path, "float32", "cpu", rank=8, alpha=16, seed=0)


def randomise(policy: Any, seed: int) -> None:
    torch.manual_seed(seed)
    for parameter in adapter_parameters(policy):
        torch.nn.init.normal_(parameter, std=0.05)


def requests(prepared: list[PreparedExample], seed: int = 0) -> list[SampleRequest]:
    return [
        SampleRequest(p.prompt.text, p.pixels, 1000 * (seed + 1) + 8 * i)
        for i, p in enumerate(prepared)
    ]


def largest_difference(
    policy: Any,
    prepared: list[PreparedExample],
    rollouts: list[list[Rollout]],
    temperature: float,
    banned: list[int],
) -> float:
    """Trainer against sampler over all completion tokens, by the trainer's own forward pass."""
    groups = [
        TokenGroup(
            p.prompt_token_ids, p.pixels, p.patch_rule, [r.completion_token_ids for r in group], key
        )
        for key, (p, group) in enumerate(zip(prepared, rollouts, strict=True))
    ]
    with torch.no_grad():
        distribution = SamplingDistribution(temperature, banned)
        rows = SharedPrefixForward()(policy, groups, distribution, VisionCache()).logprobs
    flat = [r for group in rollouts for r in group]
    return max(
        float((rows[i, : len(r.sampler_logprobs)] - torch.tensor(r.sampler_logprobs)).abs().max())
        for i, r in enumerate(flat)
    )


@pytest.mark.slow
def test_logprobs_agree_for_base_first_adapter_and_after_ten_swaps(
    pool: SamplerPool, policy: Any, prepared: list[PreparedExample], processor: Any
) -> None:
    banned = banned_token_ids(processor.tokenizer)
    base = pool.generate(requests(prepared), SAMPLING, use_adapter=False)
    with policy.disable_adapter():
        assert largest_difference(policy, prepared, base, 1.0, banned) < 1e-4

    versions = []
    for version in range(1, 12):
        randomise(policy, version)
        loaded = pool.publish(version, adapter_arrays(policy), adapter_config(policy))
        assert loaded == sum(array.nbytes for array in adapter_arrays(policy).values())
        if version in (1, 11):
            sampled = pool.generate(requests(prepared), SAMPLING)
            assert largest_difference(policy, prepared, sampled, 1.0, banned) < 1e-4
            assert {r.adapter_version for group in sampled for r in group} == {version}
            versions.append(sampled)
    with policy.disable_adapter():
        assert largest_difference(policy, prepared, versions[0], 1.0, banned) > 0.1, (
            "the adapter must do something"
        )
    assert largest_difference(policy, prepared, versions[0], 1.0, banned) > 0.1, (
        "and swaps must replace it"
    )


@pytest.mark.slow
def test_logprobs_agree_at_another_temperature(
    pool: SamplerPool, policy: Any, prepared: list[PreparedExample], processor: Any
) -> None:
    banned = banned_token_ids(processor.tokenizer)
    randomise(policy, 77)
    pool.publish(77, adapter_arrays(policy), adapter_config(policy))
    warm = pool.generate(requests(prepared), SamplingSettings(4, 1.5, 24))
    assert largest_difference(policy, prepared, warm, 1.5, banned) < 1e-4


@pytest.mark.slow
def test_prompt_tokens_are_equal_on_both_sides(
    pool: SamplerPool, prepared: list[PreparedExample], processor: Any
) -> None:
    sampled = pool.generate(requests(prepared), SamplingSettings(1, 1.0, 1), use_adapter=False)
    for own, group in zip(prepared, sampled, strict=True):
        assert group[0].prompt_token_ids == own.prompt_token_ids.tolist()
        placeholder = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        assert group[0].prompt_token_ids.count(placeholder) == own.pixels[0][..., 0].size // 28**2


@pytest.mark.slow
def test_samples_depend_on_the_seed_alone_whichever_actor_draws_them(
    pool: SamplerPool, prepared: list[PreparedExample]
) -> None:
    def drawn(actors: SamplerPool, seed: int) -> list[list[list[int]]]:
        groups = actors.generate(requests(prepared, seed), SAMPLING, use_adapter=False)
        return [[r.completion_token_ids for r in group] for group in groups]

    both = drawn(pool, 0)
    assert drawn(pool, 0) == both
    assert drawn(SamplerPool(pool.actors[1:], timeout=100), 0) == both
    assert drawn(pool, 1) != both
    assert any(len({tuple(c) for c in group}) > 1 for group in both), (
        "the completions of a group must differ"
    )


@pytest.mark.slow
def test_vision_tokens_are_never_sampled_and_ends_are_told(
    pool: SamplerPool, prepared: list[PreparedExample], policy: Any, processor: Any
) -> None:
    """A random adapter makes the model babble: it would sample them soon."""
    torch.manual_seed(5)
    for parameter in adapter_parameters(policy):
        torch.nn.init.normal_(parameter, std=1.0)
    pool.publish(100, adapter_arrays(policy), adapter_config(policy))
    groups = pool.generate(requests(prepared), SamplingSettings(8, 2.0, 64))
    banned = set(banned_token_ids(processor.tokenizer))
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    rollouts = [r for group in groups for r in group]
    assert sum(len(r.completion_token_ids) for r in rollouts) > 1000
    for rollout in rollouts:
        assert not banned & set(rollout.completion_token_ids)
        assert len(rollout.sampler_logprobs) == len(rollout.completion_token_ids)
        assert (rollout.completion_token_ids[-1] == end) == (rollout.finish_reason == "stop")
        assert len(rollout.completion_token_ids) == 64 or rollout.finish_reason == "stop"


@pytest.mark.slow
def test_a_failing_engine_is_one_clear_error(
    pool: SamplerPool, prepared: list[PreparedExample]
) -> None:
    too_long = SampleRequest(prepared[0].prompt.text + "word " * 2000, prepared[0].pixels)
    with pytest.raises(UserError, match="a vLLM engine failed"):
        pool.generate([too_long], SAMPLING, use_adapter=False)
    assert len(pool.generate(requests(prepared), SAMPLING, use_adapter=False)) == len(prepared)


@pytest.mark.slow
def test_groups_arrive_while_others_are_still_being_sampled(
    pool: SamplerPool, prepared: list[PreparedExample]
) -> None:
    """The actor answers one call at a time: when the first group is here, the next call still
    waits."""
    long = SamplingSettings(group_size=8, temperature=2.0, max_tokens=120)
    many = [r for seed in range(4) for r in requests(prepared, seed)]
    stream = pool.actors[0].generate.options(num_returns="streaming").remote(many, long, False)
    position, first = ray.get(next(stream))
    behind = pool.actors[0].ready.remote()
    assert ray.wait([behind], timeout=0)[1] == [behind]
    rest = [ray.get(reference) for reference in stream]
    assert sorted([position, *(place for place, _ in rest)]) == list(range(len(many)))
    assert ray.get(behind)
    again = pool.generate(many, long, use_adapter=False)
    assert [r.completion_token_ids for r in again[position]] == [
        r.completion_token_ids for r in first
    ]


@pytest.mark.slow
def test_more_requests_than_an_engine_takes_at_once_are_answered_in_order_and_in_parts(
    pool: SamplerPool, processor: Any
) -> None:
    count = 3 * RolloutConfig().max_sequences
    texts = [as_turn(processor, f"{number} or no?", images=()) for number in range(count)]
    requests = [SampleRequest(text) for text in texts]
    expected = [processor.tokenizer(text).input_ids for text in texts]
    pending = pool.submit(requests, SamplingSettings(1, 0.0, 2), use_adapter=False)
    part = pending.part(10, 20).result()
    assert [group[0].prompt_token_ids for group in part] == expected[10:20]
    assert [group[0].prompt_token_ids for group in pending.result()] == expected
    assert pending.result()[10:20] == part
    again = pool.generate(requests[:20], SamplingSettings(1, 0.0, 2), use_adapter=False)
    assert [one.text for [one] in again] == [one.text for [one] in pending.result()[:20]]


@pytest.mark.slow
def test_each_group_is_announced_once_under_its_own_number(
    pool: SamplerPool, prepared: list[PreparedExample]
) -> None:
    seen: dict[int, list[Rollout]] = {}
    pending = pool.submit(requests(prepared), SAMPLING, use_adapter=False, on_group=seen.setdefault)
    groups = pending.result()
    assert [seen[index] for index in range(len(prepared))] == groups
    for group, own in zip(groups, prepared, strict=True):
        assert group[0].prompt_token_ids == own.prompt_token_ids.tolist()
    assert pool.submit([], SAMPLING).result() == []


@pytest.mark.slow
def test_what_goes_wrong_while_a_group_is_taken_in_is_raised(
    pool: SamplerPool, prepared: list[PreparedExample]
) -> None:
    def fail(index: int, group: list[Rollout]) -> None:
        raise UserError("the judge is away")

    with pytest.raises(UserError, match="the judge is away"):
        pool.submit(requests(prepared), SAMPLING, use_adapter=False, on_group=fail).result()
    assert len(pool.generate(requests(prepared), SAMPLING, use_adapter=False)) == len(prepared)


@pytest.mark.slow
def test_a_prompt_without_an_image_is_answered(
    pool: SamplerPool, prepared: list[PreparedExample], processor: Any
) -> None:
    """The reasoning in place of the image: the tiny base can follow it."""
    examples = [p.example for p in prepared]
    texts = [as_turn(processor, rederive_text(e, e.rationale or ""), images=()) for e in examples]
    asked = [SampleRequest(text) for text in texts]
    groups = pool.generate(asked, SamplingSettings(1, 0.0, 24), use_adapter=False)
    right = [
        is_correct(parse_reply(group[0].text, "answer").answer, e.answer, e.options)
        for group, e in zip(groups, examples, strict=True)
    ]
    assert sum(right) >= len(right) - 1
    assert groups[0][0].prompt_token_ids == processor.tokenizer(texts[0]).input_ids


@pytest.mark.slow
def test_workers_shares_give_the_same_samples_and_publish_once_to_each(
    pool: SamplerPool, prepared: list[PreparedExample], policy: Any
) -> None:
    """Of 1, 2 and 3 workers over two engines, each asked for every n-th prompt. On some processors
    the last bits of a log-prob depend on how many sequences are computed with it."""
    asked = requests(prepared)
    previous: tuple[list[list[Rollout]], list[list[float]]] | None = None
    for version, size in enumerate((1, 2, 3), start=200):
        randomise(policy, 200)
        arrays, config = adapter_arrays(policy), adapter_config(policy)
        views = [pool.share(rank, size) for rank in range(size)]
        assert {view.publish(version, arrays, config) for view in views} == {
            sum(array.nbytes for array in arrays.values())
        }
        loaded = [actor for view in views for actor in view.loading]
        assert sorted(map(pool.launched.index, loaded)) == [0, 1], "each engine loads it once"
        pending = [view.submit(asked[rank::size], SAMPLING) for rank, view in enumerate(views)]
        groups: list[list[Rollout]] = [[] for _ in asked]
        for rank, one in enumerate(pending):
            groups[rank::size] = one.result()
        assert {r.adapter_version for group in groups for r in group} == {version}
        drawn = [
            [replace(r, adapter_version=0, sampler_logprobs=[]) for r in group] for group in groups
        ]
        logprobs = [r.sampler_logprobs for group in groups for r in group]
        if previous is not None:
            assert drawn == previous[0]
            for found, expected in zip(logprobs, previous[1], strict=True):
                assert found == pytest.approx(expected, abs=1e-5)
        previous = drawn, logprobs


@pytest.mark.slow
def test_an_engine_that_samples_for_another_worker_first_is_not_taken_for_hung(
    pool: SamplerPool, prepared: list[PreparedExample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second batch has to wait for the whole first one, longer than for any one group."""
    patience: list[float] = []
    real = ray.wait

    def recording(references: list[Any], timeout: float, **options: Any) -> Any:
        patience.append(timeout)
        return real(references, timeout=timeout, **options)

    one = SamplerPool(pool.launched[:1], timeout=200)
    monkeypatch.setattr("rarl.rollout.pool.ray.wait", recording)
    groups = one.share(1, 2).generate(requests(prepared), SAMPLING, use_adapter=False)
    assert patience == [200 * (1 + len(prepared)), *[200] * len(prepared)]
    assert len(groups) == len(prepared)


@pytest.mark.slow
def test_a_worker_that_loads_none_gives_a_restarted_engine_its_adapter(
    pool: SamplerPool, prepared: list[PreparedExample], policy: Any
) -> None:
    randomise(policy, 300)
    views = [pool.share(rank, 3) for rank in range(3)]
    for view in views:
        view.publish(300, adapter_arrays(policy), adapter_config(policy))
    expected = views[0].generate(requests(prepared), SAMPLING)
    ray.kill(pool.launched[0], no_restart=False)
    assert views[2].generate(requests(prepared), SAMPLING) == expected


@pytest.mark.slow
def test_an_engine_that_is_started_anew_has_the_cache_that_it_had(
    sampler_settings: SamplerSettings, ray_cluster: None, tmp_path: Path
) -> None:
    """And one that is started by another run measures again. What it had is another size here than
    what its settings say, as it would be on a GPU."""
    kept, log = tmp_path / "sampler-0.cache", tmp_path / "sampler-0.log"
    kept.write_text("1")
    one = SamplerPool.launch(sampler_settings, 1, tmp_path, timeout=300)
    try:
        one.wait_until_ready()
        assert int(kept.read_text()) == 64 << 20
        kept.write_text(str(32 << 20))
        ray.kill(one.launched[0], no_restart=False)
        sizes: list[str] = []
        deadline = time.monotonic() + 300
        # The first call may still reach the engine that is about to end.
        while len(sizes) < 2 and time.monotonic() < deadline:
            one.revive(one.launched[0])
            sizes = re.findall(r"GPU KV cache size: ([\d,]+) tokens", log.read_text())
        first, again = (int(size.replace(",", "")) for size in sizes)
        assert again == pytest.approx(first / 2, rel=0.02)
        assert int(kept.read_text()) == 32 << 20
    finally:
        one.stop()
