"""What a step costs in seconds: generation, rewards, update, publishing.

On CPU the constants were measured (`python bench/speed.py`). On a GPU they are the card's published
rates times assumed efficiencies: an estimate, never measured.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rarl.planning.cards import Card
from rarl.planning.flops import PATCHES_PER_TOKEN, GroupShape, tower_flops, update_flops
from rarl.planning.gpu_memory import MAX_SEQUENCES
from rarl.planning.shapes import ModelSize, Work

LENGTH_SPREAD = 0.4  # σ of the logarithm of a reply's length; an assumption
FORWARD = 0.5  # of an update's operations: backward through frozen weights costs as much as forward
STEP_OVERHEAD = 0.01  # seconds of Ray and bookkeeping in a step, as measured on CPU


@dataclass(frozen=True)
class Speeds:
    """Rates in operations and bytes per second, overheads in seconds."""

    prefill: float  # operations, of vision tower and prompt in the sampler
    update: float  # operations, of the update
    # bytes that decoding reads: weights once a decoding step, keys and values of every sequence
    bandwidth: float
    decode_step: float  # overhead of a decoding step
    sequence: float  # overhead of a sequence in a decoding step
    prompt: float  # overhead of a prompt in the sampler
    group: float  # overhead of a group in the update
    publish: float  # overhead of loading an adapter
    reply: float  # rewards of a reply, where no model judges
    verdict: float  # of a judge with a model, one request


# One sampler on one core, the update on two; the tiny model, 2 cores of an AMD EPYC without GPU,
# while other programs worked on them. `decode_step` to `prompt`, `update` and `group` are from
# `python bench/speed.py`, `publish` and `reply` from the metrics of runs (`python bench/plan.py`);
# `prefill` is taken to be `update`; `verdict` is assumed.
CPU = Speeds(
    prefill=3.9e10,
    update=3.9e10,
    bandwidth=math.inf,  # a tiny model is read from the cache
    decode_step=8.5e-3,
    sequence=1.2e-4,
    prompt=2.2e-3,
    group=2.7e-4,
    publish=2e-2,
    reply=3e-4,
    verdict=1.5,
)


def gpu_speeds(card: Card) -> Speeds:
    """Assumed: 40 % of the card's rate in prefill, 30 % in the update, 60 % of its bandwidth in
    decoding, and a few milliseconds of vLLM's own in every decoding step."""
    return Speeds(
        prefill=0.4 * card.tflops * 1e12,
        update=0.3 * card.tflops * 1e12,
        bandwidth=0.6 * card.bandwidth * 1e9,
        decode_step=4e-3,
        sequence=2e-5,
        prompt=1e-2,
        group=1e-2,
        publish=5e-2,
        reply=3e-4,
        verdict=1.5,
    )


@dataclass(frozen=True)
class Network:
    """Between nodes: bytes per second, and seconds of one message."""

    bandwidth: float = 0.7 * 24e9 / 8  # 70 % of the 24 Gbit/s of a GCP a2-highgpu-1g
    latency: float = 1e-4


@dataclass(frozen=True)
class Judge:
    """A judge with a model: `concurrency` requests at a time, asked while other answers are still
    being sampled."""

    concurrency: int


@dataclass(frozen=True)
class StepSeconds:
    """Phases as in metrics.jsonl; `communication` is the part of update and publish that the
    network takes."""

    rollout: float
    reward: float
    update: float
    publish: float
    communication: float = 0.0

    @property
    def total(self) -> float:
        return self.rollout + self.reward + self.update + self.publish + STEP_OVERHEAD


@dataclass(frozen=True)
class Layout:
    """How many train workers and samplers share the step; `crowding` samplers compete for one
    core."""

    workers: int = 1
    samplers: int = 1
    crowding: float = 1.0


def reply_lengths(work: Work, rng: np.random.Generator) -> NDArray[np.int64]:
    """(prompts, G) lengths with the mean of `work`, log-normal, cut at the bound."""
    centre = math.log(work.completion) - LENGTH_SPREAD**2 / 2
    drawn = rng.lognormal(centre, LENGTH_SPREAD, size=(work.prompts, work.group))
    return np.clip(np.rint(drawn), 1, work.longest).astype(np.int64)


def step_seconds(
    model: Any,
    size: ModelSize,
    work: Work,
    lengths: NDArray[np.int64],
    speeds: Speeds,
    layout: Layout,
    value_bytes: int,
    network: Network,
    judge: Judge | None = None,
) -> StepSeconds:
    """One on-policy step: everybody samples, then everybody updates, then the adapter is published.

    `lengths` is (prompts, G). Prompt i goes to sampler i mod `samplers` and to worker i mod
    `workers`; each phase lasts as long as its slowest part. The first worker alone scores, and
    sends the others their groups, images (float32 patches) included. The gradient of the adapter
    (float32) goes around a ring; the adapter goes to the nodes along a tree.
    """
    sampling = [
        sampler_seconds(model, size, work, lengths[i :: layout.samplers], speeds, value_bytes)
        for i in range(min(layout.samplers, work.prompts))
    ]
    updating = [
        worker_seconds(model, work, lengths[i :: layout.workers], speeds)
        for i in range(min(layout.workers, work.prompts))
    ]
    rollout = max(sampling) * max(1.0, layout.crowding)
    sent = 4 * size.adapter
    shared = 0.0
    if layout.workers > 1:
        others = layout.workers - 1
        dealt = work.prompts * others / layout.workers * patches(work) * patch_bytes(model)
        shared = dealt / network.bandwidth + others * network.latency
        shared += (
            work.epochs * 2 * others * (sent / layout.workers / network.bandwidth + network.latency)
        )
    tree = math.ceil(math.log2(layout.samplers)) * (sent / network.bandwidth + network.latency)
    reward = lengths.size * speeds.reply
    if judge is not None:
        # The first verdicts come while the rest is sampled; one request is always left at the end.
        reward += (
            max(0.0, lengths.size / judge.concurrency * speeds.verdict - rollout) + speeds.verdict
        )
    return StepSeconds(
        rollout, reward, max(updating) + shared, speeds.publish + tree, shared + tree
    )


def sampler_seconds(
    model: Any,
    size: ModelSize,
    work: Work,
    lengths: NDArray[np.int64],
    speeds: Speeds,
    value_bytes: int,
) -> float:
    """One engine on (prompts, G) replies of these lengths: prompts once each, then one token of
    every sequence in a decoding step, which reads all weights once and the keys and values of every
    sequence."""
    operations = 2.0 * size.text * work.prompt + tower_flops(
        GroupShape(0, 0, 0, patches(work)), model
    )
    prefill = len(lengths) * (speeds.prompt + operations / speeds.prefill)
    flat = lengths.ravel().astype(np.float64)
    read = float(decode_steps(lengths) * value_bytes * size.text)
    read += size.cache_bytes(value_bytes) * float((flat * work.prompt + flat * flat / 2).sum())
    overhead = decode_steps(lengths) * speeds.decode_step + float(flat.sum()) * speeds.sequence
    return prefill + overhead + read / speeds.bandwidth


def decode_steps(lengths: NDArray[np.int64]) -> int:
    """Until the last reply is done; `MAX_SEQUENCES` are sampled at once, and the next takes the
    first free place."""
    ends: list[int] = []
    for length in lengths.ravel().tolist():
        start = heapq.heappop(ends) if len(ends) == MAX_SEQUENCES else 0
        heapq.heappush(ends, start + length)
    return max(ends)


def worker_seconds(model: Any, work: Work, lengths: NDArray[np.int64], speeds: Speeds) -> float:
    """One train worker on the groups of these lengths."""
    operations = sum(
        update_flops(GroupShape(work.prompt, float(group.mean()), work.group, patches(work)), model)
        for group in lengths
    )
    passes = work.epochs * (1 + (FORWARD if work.checkpointing else 0)) + (
        FORWARD if work.reference else 0
    )
    return passes * operations / speeds.update + work.epochs * len(lengths) * speeds.group


def patches(work: Work) -> int:
    return PATCHES_PER_TOKEN * work.image


def patch_bytes(model: Any) -> int:
    """Of one patch as the processor makes it, in float32."""
    vision = model.vision_config
    return int(4 * vision.in_channels * vision.temporal_patch_size * vision.patch_size**2)
