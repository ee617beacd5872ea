"""The plan of a configuration: memory, seconds, and the shares to set."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from rarl.commands.resolve import resolve_model
from rarl.config import Config
from rarl.planning.cards import DEFAULT_CARD, Card, find_card
from rarl.planning.cost import (
    CPU,
    Judge,
    Layout,
    Network,
    StepSeconds,
    gpu_speeds,
    reply_lengths,
    step_seconds,
)
from rarl.planning.cpu_memory import ProcessMemory, plan_processes
from rarl.planning.gpu_memory import MemoryPlan, plan_memory
from rarl.planning.shapes import Work, model_shapes, model_size, step_work


@dataclass(frozen=True)
class Plan:
    """`memory` and `card` on a GPU, `processes` on CPU; `step` in either case."""

    config: Config
    work: Work
    step: StepSeconds
    card: Card | None = None
    memory: MemoryPlan | None = None
    processes: dict[str, ProcessMemory] | None = None


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def make_plan(config: Config, gpu: str | None = None, gpu_gib: float | None = None) -> Plan:
    """For the named card where one is named or the configuration wants a GPU, for this machine's
    CPU otherwise.

    Needs neither the GPU nor, for the models that the recipes name, the model. Raises UserError.
    """
    path = config.model.path if "/" in config.model.path else resolve_model(config.model.path)
    model = model_shapes(path)
    size = model_size(model, config.model.lora.rank)
    work = step_work(config, path)
    lengths = reply_lengths(work, np.random.default_rng(0))
    judge = None
    if "judge" in config.rewards and config.judge.backend != "rules":
        judge = Judge(config.judge.concurrency)
    workers, samplers = config.train.num_workers, config.rollout.num_actors
    if gpu or gpu_gib or config.device == "cuda" or (config.device == "auto" and has_gpu()):
        card = find_card(gpu or DEFAULT_CARD, gpu_gib)
        layout = Layout(workers, samplers)
        step = step_seconds(
            model, size, work, lengths, gpu_speeds(card), layout, 2, Network(), judge
        )
        return Plan(
            config, work, step, card=card, memory=plan_memory(config, model, card.memory, work)
        )
    layout = Layout(workers, samplers, crowding=samplers / (os.cpu_count() or 1))
    value_bytes = 2 if config.model.dtype == "bfloat16" else 4
    step = step_seconds(model, size, work, lengths, CPU, layout, value_bytes, Network(), judge)
    return Plan(config, work, step, processes=plan_processes(config, model, path, value_bytes))
