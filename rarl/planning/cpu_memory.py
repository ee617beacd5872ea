"""How much memory all processes of a run on CPU take together at their peak.

A process takes what its libraries take, measured once for each kind of process (`bench/plan.py`
prints it), and what the configuration decides: weights, cache, activations. "Takes" means private
pages (USS); pages that processes share, libraries and Ray's object store, are counted once for the
whole tree. The sum is that of the processes' PSS.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

from rarl.config import Config
from rarl.evaluation.measurements import REQUESTS_PER_ACTOR
from rarl.planning.flops import PATCH_VALUES, PATCHES_PER_TOKEN
from rarl.planning.gpu_memory import activation_bytes, adapter_bytes
from rarl.planning.shapes import Work, model_size, step_work

MIB = 1024**2
HEAD_CHUNK_MIB = 8  # `head.chunk_bytes` of a CPU
# MiB of private memory without weights, cache and activations: medians of `python bench/plan.py` on
# 2 cores of an AMD EPYC, Python 3.11, ray 2.60, torch 2.13, vLLM 0.29. A machine with more cores
# also has more idle Ray workers.
DRIVER = 285
RAY = 375  # control store, raylet, dashboard, agents, log monitor
HELPERS = 840  # Ray Train's controller, Ray Data's coordinators, statistics
PREPARER = 330  # a Ray Data worker; they stay when they have nothing to do
# of this machine: one that has checked the data, and the streams'
PREPARERS = 1 + max(1, (os.cpu_count() or 1) // 2)
TRAIN_WORKER = 460
SAMPLER = 700
HELD = (
    # copies of a batch of questions that the driver's heap has room for: unpacked, as requests, and
    # not given back
    8
)
SHARED = 320  # pages of libraries that several processes map, and of the object store


@dataclass(frozen=True)
class ProcessMemory:
    """MiB of one of `count` processes of a kind: what its libraries take, and what the
    configuration adds."""

    count: int
    libraries: float
    added: dict[str, float]

    @property
    def total(self) -> float:
        return self.count * (self.libraries + sum(self.added.values()))


def plan_processes(
    config: Config, model: Any, model_path: str, value_bytes: int = 4
) -> dict[str, ProcessMemory]:
    """MiB by kind of process, for a run on CPU with weights of `value_bytes` bytes a value."""
    size = model_size(model, config.model.lora.rank)
    weights = value_bytes * size.total / MIB
    work = step_work(config, model_path)
    samplers = config.rollout.num_actors
    tokens = min(config.train.micro_batch_tokens, worker_tokens(work, config.train.num_workers))
    trained = {
        "weights": weights,
        "adapter, gradient, optimizer": adapter_bytes(size) / MIB,
        "activations": tokens
        * activation_bytes(model, config.train.gradient_checkpointing, value_bytes)
        / MIB,
        "log-probs over the vocabulary": 2 * HEAD_CHUNK_MIB,
    }
    return {
        "driver": ProcessMemory(
            1, DRIVER, {"questions being measured": HELD * questions_bytes(config, work) / MIB}
        ),
        "Ray's own": ProcessMemory(1, RAY, {}),
        "Ray Train's and Ray Data's helpers": ProcessMemory(1, HELPERS, {}),
        "data worker": ProcessMemory(PREPARERS, PREPARER, {}),
        "train worker": ProcessMemory(config.train.num_workers, TRAIN_WORKER, trained),
        "sampler": ProcessMemory(
            samplers,
            SAMPLER,
            {"weights": weights, "cache for keys and values": float(config.rollout.kv_cache_mib)},
        ),
        "shared pages": ProcessMemory(1, SHARED, {}),
    }


def total_mib(processes: dict[str, ProcessMemory]) -> float:
    return sum(process.total for process in processes.values())


def questions_bytes(config: Config, work: Work) -> float:
    """Of one batch of a measurement: its pictures as float32 patches."""
    if not config.data.eval:
        return 0.0
    questions = min(
        config.evaluation.max_examples or math.inf, REQUESTS_PER_ACTOR * config.rollout.num_actors
    )
    return questions * PATCHES_PER_TOKEN * work.image * PATCH_VALUES * 4


def worker_tokens(work: Work, workers: int) -> int:
    """Tokens of one train worker's groups in a step, a prompt counted once."""
    groups = -(-work.prompts // workers)
    return groups * (work.prompt + work.group * work.completion)
