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

from rarl.planning.memory import GpuCard
from rarl.planning.sizes import (
    QUESTION_TOKENS,
    GroupShape,
    ModelSize,
    Work,
    tower_flops,
    update_flops,
)

LENGTH_SPREAD = 0.4  # σ of the logarithm of a completion's length; an assumption
FORWARD = 0.5  # of an update's operations: backward through frozen weights costs as much as forward
DISTINCT = 0.5  # of a step's thinkings; those that are equal are read once; an assumption
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
    completion: float = 3e-4  # rewards of a completion, where no model judges
    verdict: float = 1.5  # of a judge with a model, one request; an assumption
    request: float = 5e-4  # overhead of a prompt without an image of which one token is asked


# One sampler on one core, the update on two; the tiny model, 2 cores of an AMD EPYC without GPU,
# while other programs worked on them. `decode_step` to `prompt`, `update` and `group` are from
# `python bench/speed.py`, `publish` and `completion` from the metrics of runs (`python
# bench/plan.py`); `prefill` is taken to be `update`; a tiny model is read from the cache.
CPU = Speeds(3.9e10, 3.9e10, math.inf, 8.5e-3, 1.2e-4, 2.2e-3, 2.7e-4, publish=2e-2)


def gpu_speeds(card: GpuCard) -> Speeds:
    """Returns assumed speeds: 40 % of the card's rate in prefill, 30 % in the update, 60 % of its
    bandwidth in decoding, and a few milliseconds of vLLM's own in every decoding step."""
    rate, bandwidth = card.tflops * 1e12, card.bandwidth * 1e9
    return Speeds(0.4 * rate, 0.3 * rate, 0.6 * bandwidth, 4e-3, 2e-5, 1e-2, 1e-2, publish=5e-2)


@dataclass(frozen=True)
class StepSeconds:
    """Phases as in metrics.jsonl."""

    rollout: float
    reward: float
    update: float
    publish: float

    @property
    def total(self) -> float:
        return self.rollout + self.reward + self.update + self.publish + STEP_OVERHEAD


def completion_lengths(work: Work, rng: np.random.Generator) -> NDArray[np.int64]:
    """Returns (prompts, G) lengths with the mean of `work`, log-normal, cut at the bound."""
    centre = math.log(work.completion) - LENGTH_SPREAD**2 / 2
    drawn = rng.lognormal(centre, LENGTH_SPREAD, size=(work.prompts, work.group))
    return np.clip(np.rint(drawn), 1, work.longest).astype(np.int64)


def step_seconds(
    model: Any,
    size: ModelSize,
    work: Work,
    lengths: NDArray[np.int64],
    speeds: Speeds,
    workers: int = 1,
    samplers: int = 1,
    value_bytes: int = 2,
    crowding: float = 1.0,
    judged_at_once: int | None = None,
) -> StepSeconds:
    """Returns the seconds of an on-policy step on one machine: everybody samples and scores, then
    everybody updates, then the adapter is published. Each phase lasts as long as its slowest part.

    `lengths` is (prompts, G). Prompt i goes to sampler i mod `samplers` and to worker i mod
    `workers`; `crowding` samplers compete for one core. `judged_at_once` are the requests of a
    judge with a model, which is asked while other completions are still being sampled.
    """
    sampling = [
        sampler_seconds(model, size, work, lengths[i::samplers], speeds, value_bytes)
        for i in range(min(samplers, work.prompts))
    ]
    shares = [lengths[i::workers] for i in range(min(workers, work.prompts))]
    rollout = max(sampling) * max(1.0, crowding)
    reward = max(share.size for share in shares) * speeds.completion
    replies = max(lengths[i::samplers].size for i in range(min(samplers, work.prompts)))
    reward += DISTINCT * replies * reading_seconds(size, work, speeds) * max(1.0, crowding)
    if judged_at_once is not None:
        # The first verdicts come while the rest is sampled; one request is always left at the end.
        judging = lengths.size / judged_at_once * speeds.verdict
        reward += max(0.0, judging - rollout) + speeds.verdict
    update = max(worker_seconds(model, work, share, speeds) for share in shares)
    return StepSeconds(rollout, reward, update, speeds.publish)


def reading_seconds(size: ModelSize, work: Work, speeds: Speeds) -> float:
    """Returns the seconds in which an engine reads one completion's thinking for its rewards. The
    questions come after it, so that their prompts have it in common."""
    tokens = work.readings * work.completion + work.questions * QUESTION_TOKENS
    return work.questions * speeds.request + 2.0 * size.text * tokens / speeds.prefill


def sampler_seconds(
    model: Any,
    size: ModelSize,
    work: Work,
    lengths: NDArray[np.int64],
    speeds: Speeds,
    value_bytes: int,
) -> float:
    """Returns the seconds of one engine on (prompts, G) completions of these lengths: prompts once
    each, then one token of every sequence in a decoding step, which reads all weights once and the
    keys and values of every sequence."""
    operations = 2.0 * size.text * work.prompt + tower_flops(work.patches, model, work.images)
    prefill = len(lengths) * (speeds.prompt + operations / speeds.prefill)
    flat, steps = lengths.ravel().astype(np.float64), decode_steps(lengths, work.sequences)
    read = float(steps * value_bytes * size.text)
    read += size.cache_bytes(value_bytes) * float((flat * work.prompt + flat * flat / 2).sum())
    overhead = steps * speeds.decode_step + float(flat.sum()) * speeds.sequence
    return prefill + overhead + read / speeds.bandwidth


def decode_steps(lengths: NDArray[np.int64], sequences: int) -> int:
    """Returns the decoding steps until the last completion is done, where so many `sequences` are
    sampled at once, and the next takes the first free place."""
    ends: list[int] = []
    for length in lengths.ravel().tolist():
        start = heapq.heappop(ends) if len(ends) == sequences else 0
        heapq.heappush(ends, start + length)
    return max(ends)


def worker_seconds(model: Any, work: Work, lengths: NDArray[np.int64], speeds: Speeds) -> float:
    """Returns the seconds of one train worker's update on the groups of these lengths."""
    operations = 0.0
    for group in lengths:
        shape = GroupShape(work.prompt, float(group.mean()), work.group, work.patches, work.images)
        operations += update_flops(shape, model)
    passes = work.epochs * (1 + FORWARD * work.checkpointing) + FORWARD * work.reference
    return passes * operations / speeds.update + work.epochs * len(lengths) * speeds.group
