"""Plans: memory against what is really taken, shares that fit, and a cost model that adds up."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plan import beside, predict
from safetensors import safe_open
from scaling import SLOWNESS, Network, equal_step, scale

from rarl.config import load_config
from rarl.planning.memory import (
    CACHE,
    CARDS,
    CONTEXT_GIB,
    DEFAULT_CARD,
    ProcessMemory,
    find_card,
    judge_is_here,
    plan_memory,
)
from rarl.planning.plan import make_plan
from rarl.planning.seconds import (
    CPU,
    DISTINCT,
    completion_lengths,
    decode_steps,
    gpu_speeds,
    reading_seconds,
    sampler_seconds,
    step_seconds,
    worker_seconds,
)
from rarl.planning.sizes import (
    ModelSize,
    Work,
    model_shapes,
    model_size,
    questions_asked,
    step_work,
)
from tests.conftest import FinishedRun
from tests.runs import DEMO, FINISHED, HUB, QWEN, REPOSITORY, environment


@pytest.fixture(scope="module")
def qwen() -> Any:
    return model_shapes(HUB)


@pytest.fixture(scope="module")
def size(qwen: Any) -> ModelSize:
    return model_size(qwen, rank=8)


@pytest.fixture
def work() -> Work:
    return step_work(load_config(QWEN), HUB)


@pytest.mark.slow
def test_a_runs_peak_memory_is_predicted_within_20_percent(finished_run: FinishedRun) -> None:
    """The whole process tree: the driver, Ray, the train worker, the sampler, the data worker.
    bench/plan.py does the same for the demo with its two samplers."""
    memory, _ = predict(DEMO, FINISHED)
    found = beside(memory, finished_run.peak)
    assert found["total"]["predicted"] == pytest.approx(found["total"]["measured"], rel=0.2)
    assert found["memory"]["sampler"]["count"] == 1
    assert found["memory"]["train worker"]["count"] == 1


@pytest.mark.long
def test_the_formula_for_activations_is_what_an_update_takes() -> None:
    """A model of 6 layers, one group of 8 x 200 tokens after 400: mostly activations."""
    command = [
        sys.executable,
        "-c",
        "import json, plan; print(json.dumps(plan.activations(plan.CASES['short'])))",
    ]
    done = subprocess.run(
        command,
        cwd=REPOSITORY / "bench",
        env=environment(),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["predicted"] == pytest.approx(found["measured"], rel=0.2)


def test_the_models_size_is_the_published_one(size: ModelSize, model_path: str) -> None:
    assert size.total == 2_208_985_600  # Qwen2-VL-2B-Instruct
    assert size.text == 1_543_714_304  # Qwen2-1.5B, which it is made from
    tiny = model_size(model_shapes(model_path), rank=8)
    with safe_open(Path(model_path) / "model.safetensors", "np") as held:
        assert tiny.total == sum(
            math.prod(held.get_slice(name).get_shape())
            for name in held.keys()  # noqa: SIM118
        )
    assert 4 * tiny.adapter == 311_296  # `published_bytes` of the demo's metrics


def processes(*overrides: str) -> dict[str, ProcessMemory]:
    """Of the demo."""
    planned = make_plan(load_config(DEMO, list(overrides))).processes
    assert planned is not None
    return planned


def test_cpu_memory_grows_with_what_is_configured() -> None:
    base = processes()
    more = processes("rollout.num_actors=3", "rollout.kv_cache_mib=256")
    assert more["sampler"].total == pytest.approx(3 * (base["sampler"].total / 2 + 128))
    long = (
        "rollout.group_size=16",
        "rollout.max_completion_tokens=128",
        "train.micro_batch_tokens=100000",
    )
    activations = base["train worker"].added["activations"]
    assert processes(*long)["train worker"].added["activations"] > 2 * activations
    assert (
        processes("train.gradient_checkpointing=true")["train worker"].added["activations"]
        < activations
    )
    few = processes("evaluation.max_examples=8")["driver"].total
    assert processes("data.eval={}")["driver"].total < few < base["driver"].total


@pytest.mark.parametrize("name", CARDS)
def test_the_advised_shares_fit_every_card(qwen: Any, work: Work, name: str) -> None:
    card = find_card(name)
    shares = plan_memory(load_config(QWEN), qwen, card.memory, work).shares()
    assert shares is not None
    share, tokens = shares
    advised = load_config(
        QWEN, [f"rollout.gpu_memory_share={share}", f"train.micro_batch_tokens={tokens}"]
    )
    planned = plan_memory(advised, qwen, card.memory, work)
    assert planned.shortfalls() == []
    assert planned.sampler[CACHE] > 0
    greedy = load_config(
        QWEN, [f"rollout.gpu_memory_share={share}", f"train.micro_batch_tokens={8 * tokens}"]
    )
    assert tokens == 32768 or plan_memory(greedy, qwen, card.memory, work).shortfalls()


def test_a_card_that_is_too_small_gets_no_advice(qwen: Any, work: Work) -> None:
    planned = plan_memory(load_config(QWEN), qwen, 8.0, work)
    assert planned.shares() is None
    assert planned.shortfalls()


@pytest.mark.parametrize(
    ("overrides", "here"),
    [
        ([], False),
        (["judge.backend=serve", "judge.url=http://127.0.0.1:8000/judge"], True),
        (["judge.backend=serve", "judge.url=app:judge"], True),
        (["judge.backend=serve", "judge.url=http://judge.example:8000/judge"], False),
        (["judge.backend=serve", "judge.url=app:judge", "rewards.judge=null"], False),
        (["judge.backend=local", "judge.model=a/b", "rewards.judge=null"], False),
        (
            [
                "judge.backend=serve",
                "judge.url=app:judge",
                "rewards.judge=null",
                "judge.evaluate=true",
            ],
            True,
        ),
    ],
)
def test_a_judge_on_the_same_machine_takes_its_share(
    qwen: Any, work: Work, overrides: list[str], here: bool
) -> None:
    config = load_config(QWEN, ["rewards.judge=0.3", *overrides])
    assert judge_is_here(config) == here
    planned = plan_memory(config, qwen, 40.0, work)
    assert planned.judge == (10.0 if here else 0.0)
    assert planned.contexts == pytest.approx((3 if here else 2) * CONTEXT_GIB)
    beside = planned.sampler_share + planned.judge + planned.contexts
    assert planned.trainer_limit == pytest.approx(40 - beside)


def test_a_measurements_pictures_take_the_same_memory_however_many_questions_there_are() -> None:
    """Pictures of 512 image tokens and one engine, as in the 2B recipe: less than 2 GB are held."""
    pictures = (
        "data.max_pixels=401408",
        "rollout.max_model_length=1152",
        "rollout.num_actors=1",
    )
    few, many = (
        processes(*pictures, f"evaluation.max_examples={count}")["driver"].added
        for count in (4096, 6719)
    )
    assert few == many
    assert 0 < sum(many.values()) * 2**20 < 2e9


def test_a_group_of_the_recipes_fits_a_micro_batch_and_the_micro_batch_its_card(qwen: Any) -> None:
    config = load_config(QWEN)
    rollout, tokens = config.rollout, config.train.micro_batch_tokens
    completions = rollout.group_size * rollout.max_completion_tokens
    assert rollout.max_model_length - rollout.max_completion_tokens + completions <= tokens
    card = find_card(DEFAULT_CARD).memory
    assert not plan_memory(config, qwen, card, step_work(config, HUB)).shortfalls()
    more = load_config(QWEN, ["rollout.max_sequences=512", "train.prompts_per_step=64"])
    usual = load_config(QWEN, ["train.prompts_per_step=64"])
    wanted = [
        plan_memory(one, qwen, card, step_work(one, HUB)).wanted_cache for one in (usual, more)
    ]
    assert wanted[1] == pytest.approx(4 * wanted[0])


def test_decoding_steps_are_those_of_the_longest_chain() -> None:
    assert decode_steps(np.array([[3, 9], [4, 1]]), 128) == 9
    assert decode_steps(np.full((16, 8), 10), 128) == 10
    assert decode_steps(np.full((17, 8), 10), 128) == 20
    assert decode_steps(np.full((17, 8), 10), 136) == 10
    assert decode_steps(np.array([[5] * 128 + [7]]), 128) == 12


def test_lengths_have_the_assumed_mean(work: Work) -> None:
    many = replace(work, prompts=2000)
    lengths = completion_lengths(many, np.random.default_rng(0))
    assert lengths.shape == (2000, work.group)
    assert lengths.mean() == pytest.approx(work.completion, rel=0.03)
    assert lengths.max() <= work.longest


def test_rewards_that_have_a_thinking_read_ask_so_many_questions() -> None:
    recipe = "configs/recipes/qwen2vl_2b/rarl.yaml"
    for rewards, expected in (
        ("{accuracy: 1}", 0),
        ("{accuracy: 1, explains: 2}", 4),
        ("{accuracy: 1, explains: {weight: 2, options: {siblings: 0}}}", 1),
        ("{accuracy: 1, explains: 2, fluency: 0, consistency: 1}", 6),
    ):
        assert questions_asked(load_config(recipe, [f"rewards={rewards}"])) == expected


def test_a_step_adds_up_and_follows_its_parts(qwen: Any, size: ModelSize, work: Work) -> None:
    speeds = gpu_speeds(CARDS["a100-40g"])
    lengths = np.full((work.prompts, work.group), 100)

    def seconds(kind: Work = work, **given: Any) -> Any:
        return step_seconds(qwen, size, kind, lengths, speeds, **given)

    one = seconds()
    assert one.total == pytest.approx(one.rollout + one.reward + one.update + one.publish + 0.01)
    four = seconds(workers=4, samplers=4)
    assert four.reward == pytest.approx(one.reward / 4), "each worker scores what it sampled"
    assert four.update == pytest.approx(one.update / 4)
    assert one.rollout / 4 < four.rollout < one.rollout  # the weights are read as often
    assert seconds(workers=16, samplers=16).update == pytest.approx(
        seconds(workers=16, samplers=64).update
    )
    assert seconds(replace(work, epochs=2)).update == pytest.approx(2 * one.update)
    assert seconds(replace(work, reference=True)).update > one.update
    assert seconds(judged_at_once=1000).reward == pytest.approx(one.reward + speeds.verdict)
    read = DISTINCT * lengths.size * reading_seconds(size, work, speeds)
    silent = seconds(replace(work, readings=0, questions=0))
    assert read > 0 and one.reward == pytest.approx(silent.reward + read)
    assert one.reward - four.reward * 4 == pytest.approx(0)
    slow = seconds(judged_at_once=1).reward
    assert slow == pytest.approx(
        one.reward + lengths.size * speeds.verdict - one.rollout + speeds.verdict
    )


def test_equal_workers_wait_for_the_slowest_twice(qwen: Any, size: ModelSize, work: Work) -> None:
    speeds, network = gpu_speeds(CARDS["a100-40g"]), Network(bandwidth=1e9, latency=0.0)
    lengths = np.full((work.prompts, work.group), 100)

    def seconds(slowness: np.ndarray, kind: Work = work) -> Any:
        return equal_step(qwen, size, kind, lengths, slowness, speeds, network)

    sampled = sampler_seconds(qwen, size, work, lengths[:4], speeds, 2)
    updated = worker_seconds(qwen, work, lengths[:4], speeds)
    alone, even = seconds(np.ones((2, 1))), seconds(np.ones((2, 4)))
    assert alone.network == alone.waiting == 0
    assert (even.rollout, even.update) == pytest.approx((sampled, updated))
    assert even.waiting == pytest.approx(0)
    assert even.reward == pytest.approx(alone.reward / 4)
    assert (even.publish, even.save) == (alone.publish, alone.save)
    sums = 2 * 3 / 4 * (4 * size.adapter + 64) / 1e9
    assert even.network == pytest.approx(sums)
    assert seconds(np.ones((2, 4)), replace(work, epochs=2)).network == pytest.approx(2 * sums)
    parts = even.rollout + even.reward + even.update + even.network + even.publish + even.save
    assert even.total == pytest.approx(parts + 0.01)
    # Rank 0 samples twice as slowly and rank 1 updates twice as slowly: the step waits for both.
    uneven = seconds(np.array([[2.0, 1, 1, 1], [1, 2, 1, 1]]))
    assert uneven.total == pytest.approx(even.total + sampled + updated)


def test_a_growing_batch_scales_and_a_shared_one_ends(
    qwen: Any, size: ModelSize, work: Work
) -> None:
    speeds, gpus = gpu_speeds(CARDS["a100-40g"]), (1, 2, 16, 64)
    growing = scale(qwen, size, work, speeds, Network(), gpus, grow=True)
    assert [row.prompts for row in growing] == [16, 32, 256, 1024]
    steps = [row.step.total for row in growing]
    assert steps == sorted(steps)
    assert all(0.85 < row.efficiency <= 1 for row in growing)
    assert growing == scale(qwen, size, work, speeds, Network(), gpus, grow=True)  # seeded
    shared = scale(qwen, size, work, speeds, Network(), gpus, grow=False)
    assert [row.prompts for row in shared] == [16] * 4
    assert shared[1].speedup < 2
    assert shared[3].speedup <= shared[2].speedup  # 16 prompts occupy 16 GPUs
    longest = completion_lengths(work, np.random.default_rng(0)).max() * speeds.decode_step
    sampling = shared[3].step.rollout + shared[3].step.waiting
    assert sampling > math.exp(-3 * SLOWNESS) * longest - 1  # the longest reply is waited for


def test_the_measured_constants_are_finite() -> None:
    plan = make_plan(load_config(DEMO))
    assert plan.memory is None
    assert 0 < plan.step.total < 60
    assert CPU.update > 1e9
