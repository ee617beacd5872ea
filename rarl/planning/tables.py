"""A plan as tables and lines for people."""

from __future__ import annotations

from rich.table import Table

from rarl.planning.cards import Card
from rarl.planning.cpu_memory import total_mib
from rarl.planning.gpu_memory import MemoryPlan
from rarl.planning.plan import Plan


def memory_table(plan: Plan) -> Table:
    if plan.memory is not None and plan.card is not None:
        return gpu_table(plan.memory, plan.card)
    assert plan.processes is not None, "a plan is for a GPU or for processes on CPU"
    table = Table(title="estimated memory of all processes in MiB, on CPU")
    table.add_column("process")
    table.add_column("MiB", justify="right")
    for name, process in plan.processes.items():
        count = f" x {process.count}" if process.count > 1 else ""
        table.add_row(name + count, f"{process.total:.0f}", style="bold")
        if process.added:
            table.add_row("  libraries", f"{process.libraries:.0f}")
        for part, size in process.added.items():
            table.add_row(f"  {part}", f"{size:.1f}")
    table.add_row("all", f"{total_mib(plan.processes):.0f}", style="bold")
    return table


def gpu_table(memory: MemoryPlan, card: Card) -> Table:
    table = Table(title=f"estimated GPU memory in GiB, {card.name} with {memory.card:.1f}")
    table.add_column("part")
    table.add_column("GiB", justify="right")
    parts = [
        ("trainer", memory.trainer, memory.trainer_limit),
        ("sampler (vLLM)", memory.sampler, memory.sampler_share),
    ]
    if memory.judge:
        parts.append(("judge, where it shares the card", {}, memory.judge))
    for title, sizes, limit in parts:
        need = sum(sizes.values()) if sizes else memory.judge
        table.add_row(title, f"{need:.1f} of {limit:.1f}", style="bold")
        for part, size in sizes.items():
            table.add_row(f"  {part}", f"{size:.1f}")
    return table


def lines(plan: Plan) -> list[str]:
    """What to set, and the seconds."""
    found = []
    if plan.memory is not None:
        fits = not plan.memory.shortfalls()
        shares = plan.memory.shares()
        advice = "nothing fits this card: take a larger one, or a smaller model"
        if shares is not None:
            advice = f"best use: rollout.gpu_memory_share={shares[0]:.2f} train.micro_batch_tokens={shares[1]}"
        found.append(f"{'fits' if fits else 'does not fit'}; {advice}")
    step, work, steps = plan.step, plan.work, plan.config.train.steps
    kind = (
        "estimate by constants measured on a CPU" if plan.card is None else "estimate, not measured"
    )
    found.append(
        f"step ({kind}): {step.total:.2g} s = rollout {step.rollout:.2g} + reward {step.reward:.2g} + "
        f"update {step.update:.2g} + publish {step.publish:.2g} and Ray's own"
    )
    found.append(
        f"run: {steps} steps in {duration(steps * step.total)}, without starting and measuring; "
        f"assumed: prompts of {work.prompt} tokens ({work.image} of the image), replies of {work.completion} on average"
    )
    return found


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
