"""The plan of a configuration, for people: memory, seconds, and the shares to set."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import numpy as np
from rich.table import Table

from rarl.config import IMPORT_PATH, Config
from rarl.planning.data import DataLengths, read_lengths
from rarl.planning.memory import (
    JUDGE,
    GpuCard,
    MemoryPlan,
    ProcessMemory,
    find_card,
    plan_memory,
    plan_processes,
)
from rarl.planning.seconds import (
    CPU,
    StepSeconds,
    completion_lengths,
    gpu_speeds,
    sampler_seconds,
    step_seconds,
    worker_seconds,
)
from rarl.planning.sizes import Work, model_shapes, model_size, step_work
from rarl.system.imports import import_object

QUESTIONS = 256  # that an engine is given at once in a measurement


@dataclass(frozen=True)
class Plan:
    """`memory` and `card` on a GPU, `processes` on CPU; `step` in either case. `lengths` are None
    where the data are not at hand. `per_question` are the seconds to measure one."""

    config: Config
    work: Work
    step: StepSeconds
    per_question: float = 0.0
    lengths: DataLengths | None = None
    card: GpuCard | None = None
    memory: MemoryPlan | None = None
    processes: dict[str, ProcessMemory] | None = None

    def shortfalls(self) -> list[str]:
        """Returns what does not fit, and what to change; nothing where all fits."""
        problems = [] if self.memory is None else self.memory.shortfalls()
        limit = self.config.rollout.max_model_length
        if self.lengths is not None and self.lengths.needed > limit:
            problems.append(
                f"{self.lengths.longest} needs {self.lengths.needed} tokens with its reply: set "
                f"rollout.max_model_length={self.lengths.needed} in place of {limit}, or lower "
                "data.max_pixels"
            )
        return problems


def make_plan(config: Config, gpu: str | None = None, gpu_gib: float | None = None) -> Plan:
    """Plans for the named card where one is named; where the configuration wants a GPU, for this
    machine's, or for a common one where there is none; for this machine's CPU otherwise. Needs
    neither the GPU nor, for the models that the recipes name, the model. Raises UserError."""
    path = config.model.path
    path = str(import_object(path)()) if IMPORT_PATH.match(path) else path
    lengths = read_lengths(config, path)
    means = None if lengths is None else (lengths.prompt, lengths.image, lengths.images)
    images = lengths is None or lengths.most_images > 0
    model, work = model_shapes(path), step_work(config, path, means)
    size = model_size(model, config.model.lora.rank)
    replies = completion_lengths(work, np.random.default_rng(0))
    judged = "judge" in config.rewards and config.judge.backend != "rules"
    at_once = config.judge.concurrency if judged else None
    workers, samplers = config.train.num_workers, config.rollout.num_actors
    for_gpu = bool(gpu or gpu_gib or config.device == "cuda")
    if config.device == "auto" and not for_gpu:
        import torch

        for_gpu = torch.cuda.is_available()
    if for_gpu:
        card = find_card(gpu, gpu_gib)
        speeds, value_bytes, crowding = gpu_speeds(card), 2, 1.0
        memory, processes = plan_memory(config, model, card.memory, work, images), None
    else:
        card, memory, speeds = None, None, CPU
        value_bytes = 2 if config.model.dtype == "bfloat16" else 4
        crowding = samplers / (os.cpu_count() or 1)
        processes = plan_processes(config, model, work, value_bytes, images)
    if config.method == "sft":
        one = replace(work, group=1, reference=False)
        shares = np.array_split(completion_lengths(one, np.random.default_rng(0)), workers)
        update = max(worker_seconds(model, one, share, speeds) for share in shares)
        step = StepSeconds(0.0, 0.0, update, 0.0)
    else:
        step = step_seconds(
            model, size, work, replies, speeds, workers, samplers, value_bytes, crowding, at_once
        )
    asked = replace(work, prompts=QUESTIONS, group=1)
    drawn = completion_lengths(asked, np.random.default_rng(0))[::samplers]
    sampling = sampler_seconds(model, size, asked, drawn, speeds, value_bytes)
    per_question = sampling * max(1.0, crowding) / QUESTIONS
    return Plan(config, work, step, per_question, lengths, card, memory, processes)


def memory_table(plan: Plan) -> Table:
    """Returns the parts of each process, in GiB of the card or in MiB of this machine."""
    memory, unit = plan.memory, "MiB" if plan.memory is None else "GiB"
    where = "memory of all processes in MiB, on CPU"
    rows: list[tuple[str, str, dict[str, float]]] = []
    if memory is not None and plan.card is not None:
        where = f"GPU memory in GiB, {plan.card.name} with {memory.card:.1f}"
        for name, parts, room in (
            ("trainer", memory.trainer, memory.trainer_limit),
            ("sampler (vLLM)", memory.sampler, memory.sampler_share),
        ):
            rows.append((name, f"{sum(parts.values()):.1f} of {room:.1f}", parts))
        rows.append(("contexts, outside the shares", f"{memory.contexts:.1f}", {}))
        if plan.config.asks_local_judge():
            where_it_is = (
                "on a card of its own" if plan.config.judge.own_gpu else "on the same card"
            )
            used = sum(memory.own_judge.values()) or memory.judge_room
            share = f"{used:.1f} of {memory.judge_room:.1f}"
            rows.append((f"{JUDGE}, {where_it_is}", share, memory.own_judge))
        elif memory.judge:
            share = f"{memory.judge:.1f} of {memory.judge:.1f}"
            rows.append(("judge, where it shares the card", share, {}))
    for name, process in (plan.processes or {}).items():
        count = f" x {process.count}" if process.count > 1 else ""
        parts = {"libraries": process.libraries} if process.added else {}
        rows.append((name + count, f"{process.total:.0f}", parts | process.added))
    if plan.processes is not None:
        rows.append(("all", f"{sum(one.total for one in plan.processes.values()):.0f}", {}))
    table = Table("process" if memory is None else "part", title=f"estimated {where}")
    table.add_column(unit, justify="right")
    for name, text, parts in rows:
        table.add_row(name, text, style="bold")
        for part, size in parts.items():
            table.add_row(f"  {part}", f"{size:.1f}")
    return table


def lines(plan: Plan) -> list[str]:
    """Returns what to set, and the seconds."""
    found = []
    if plan.memory is not None:
        shares = plan.memory.shares()
        advice = "nothing fits this card: take a larger one, or a smaller model"
        if shares is not None:
            share, tokens = shares
            advice = f"rollout.gpu_memory_share={share:.2f} train.micro_batch_tokens={tokens}"
            advice = f"best use: {advice}"
        found.append(f"{'does not fit' if plan.memory.shortfalls() else 'fits'}; {advice}")
    step, work, steps = plan.step, plan.work, plan.config.train.steps
    measured = "estimate by constants measured on a CPU"
    images = "the image" if work.images == 1 else f"{work.images:.1f} images"
    prompts = f"prompts of {work.prompt} tokens ({work.image} of {images})"
    kind = measured if plan.card is None else "estimate, not measured"
    return [
        *found,
        f"step ({kind}): {step.total:.2g} s = rollout {step.rollout:.2g} + "
        f"reward {step.reward:.2g} + update {step.update:.2g} + publish {step.publish:.2g} and "
        "Ray's own",
        f"run: {steps} steps in {duration(steps * step.total)}, without starting and measuring; "
        f"assumed: {'' if plan.lengths else prompts + ', '}replies of {work.completion} tokens on "
        "average",
        *([prompts_line(prompts, plan.lengths, plan.config)] if plan.lengths else []),
    ]


def prompts_line(prompts: str, lengths: DataLengths, config: Config) -> str:
    """Returns what the data say, and how the longest row fits."""
    known = "" if lengths.text_known else ", of which the text's are assumed"
    limit = config.rollout.max_model_length
    return (
        f"{config.data.train}: {prompts} on average over {lengths.looked_at:,} of {lengths.rows:,} "
        f"rows{known}; the longest with its reply, {lengths.longest}, has {lengths.needed} of "
        f"rollout.max_model_length={limit}"
    )


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
