"""How a step of a configuration would change with 1 to 64 GPUs: a simulation by `rarl plan`'s cost
model.

    python bench/scaling.py [CONFIG] [key=value …] [--gpu a100-40g] [--gbit 24] [--json FILE]

Equal workers, a GPU and a node each: rank r samples, scores and learns from prompts r, r + N, … of
the step, with the sampler on its own card. Estimates throughout: published rates of the card times
assumed efficiencies (rarl/planning/seconds.py). Nothing here was measured on a GPU.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from rarl.config import load_config
from rarl.planning.memory import DEFAULT_CARD, find_card
from rarl.planning.seconds import (
    STEP_OVERHEAD,
    Speeds,
    completion_lengths,
    gpu_speeds,
    sampler_seconds,
    worker_seconds,
)
from rarl.planning.sizes import ModelSize, Work, model_shapes, model_size, step_work
from rarl.system.models import resolve_model

REPOSITORY = Path(__file__).resolve().parent.parent
GPUS = (1, 2, 4, 8, 16, 32, 64)
DRAWS = 10  # of lengths and of the cards' slowness; the mean is shown
VALUE_BYTES = 2  # bfloat16
# Cards of one kind are not equally fast, and none is in every step: a rank's sampling and its
# update each take exp(z) times as long, z normal with this σ. An assumption.
SLOWNESS = 0.03


@dataclass(frozen=True)
class Network:
    """Between nodes, bytes per second and seconds of one message; and the storage that rank 0
    writes checkpoints to."""

    bandwidth: float = 0.7 * 24e9 / 8  # 70 % of the 24 Gbit/s of a GCP a2-highgpu-1g
    latency: float = 1e-4
    storage: float = 5e8  # written, flushed, and read once for the hashes; an assumption

    def all_reduce(self, ranks: int, size: float) -> float:
        """Returns the seconds of a sum of `size` bytes over all ranks around a ring."""
        return 2 * (ranks - 1) * (size / ranks / self.bandwidth + self.latency)


@dataclass(frozen=True)
class EqualStep:
    """Seconds of a step. `rollout` and `update` are those of the mean rank that has work,
    `waiting` what the slowest ranks add to both, `network` the sums over all ranks."""

    rollout: float
    reward: float
    update: float
    waiting: float
    network: float
    publish: float
    save: float

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self)) + STEP_OVERHEAD


@dataclass(frozen=True)
class Scaled:
    """`speedup` is in completions per second against one GPU, `efficiency` that over the number of
    GPUs."""

    gpus: int
    prompts: int
    step: EqualStep
    speedup: float
    efficiency: float


def equal_step(
    model: Any,
    size: ModelSize,
    work: Work,
    lengths: NDArray[np.int64],
    slowness: NDArray[np.float64],
    speeds: Speeds,
    network: Network,
) -> EqualStep:
    """Returns the seconds of an on-policy step of equal workers.

    `lengths` is (prompts, G), `slowness` (2, ranks): factors of sampling and of the update. All
    ranks wait for each other twice: before the update, whose loss needs the token counts of all,
    and after it, for the sum of the gradients. Then every rank has the same adapter and loads it
    into its own sampler, and rank 0 writes the checkpoint: adapter and two moments, float32.
    """
    ranks = slowness.shape[1]
    shares = [lengths[rank::ranks] for rank in range(min(ranks, len(lengths)))]
    sampling, updating = (np.zeros(len(shares)) for _ in range(2))
    for rank, share in enumerate(shares):
        sampling[rank] = sampler_seconds(model, size, work, share, speeds, VALUE_BYTES)
        updating[rank] = worker_seconds(model, work, share, speeds)
    sampling, updating = (
        sampling * slowness[0, : len(shares)],
        updating * slowness[1, : len(shares)],
    )
    waiting = sampling.max() - sampling.mean() + updating.max() - updating.mean()
    gradients, counts = (network.all_reduce(ranks, n) for n in (4 * size.adapter, 64))
    return EqualStep(
        rollout=float(sampling.mean()),
        reward=max(share.size for share in shares) * speeds.completion,
        update=float(updating.mean()),
        waiting=float(waiting),
        network=work.epochs * gradients + counts,
        publish=speeds.publish,
        save=12 * size.adapter / network.storage,
    )


def scale(
    model: Any,
    size: ModelSize,
    work: Work,
    speeds: Speeds,
    network: Network,
    gpus: Sequence[int],
    grow: bool,
) -> list[Scaled]:
    """Returns a row for each number of GPUs, of which the first is the one compared with. `grow`:
    the batch grows with the GPUs; otherwise it is shared among them, and those beyond its prompts
    have nothing to do."""
    rows: list[Scaled] = []
    for count in gpus:
        own = replace(work, prompts=work.prompts * count // gpus[0]) if grow else work
        drawn = []
        for seed in range(DRAWS):
            rng = np.random.default_rng(seed)
            lengths = completion_lengths(own, rng)
            slowness = np.exp(SLOWNESS * rng.standard_normal((2, count)))
            drawn.append(equal_step(model, size, own, lengths, slowness, speeds, network))
        names = [field.name for field in fields(EqualStep)]
        step = EqualStep(**{n: float(np.mean([getattr(one, n) for one in drawn])) for n in names})
        rate = own.prompts / step.total
        base = rows[0].prompts / rows[0].step.total if rows else rate
        rows.append(Scaled(count, own.prompts, step, rate / base, rate / base * gpus[0] / count))
    return rows


def show(title: str, rows: list[Scaled]) -> None:
    names = [field.name for field in fields(EqualStep)]
    table = Table(title=title)
    for column in ("GPUs", "prompts", "step", *names, "replies/s ×", "of ideal"):
        table.add_column(column, justify="right")
    for row in rows:
        seconds = [row.step.total, *(getattr(row.step, name) for name in names)]
        table.add_row(
            str(row.gpus),
            str(row.prompts),
            *(f"{value:.2f}" for value in seconds),
            f"{row.speedup:.1f}",
            f"{100 * row.efficiency:.0f} %",
        )
    Console(width=120).print(table)


def main(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[CONFIG] [key=value]...")
    ] = None,
    gpu: str = DEFAULT_CARD,
    gbit: Annotated[
        float, typer.Option(help="Of the network between nodes, per second; 70 % is assumed used.")
    ] = 24.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the rows there")] = None,
) -> None:
    given = list(arguments or [])
    named = bool(given) and "=" not in given[0]
    path = Path(given.pop(0)) if named else REPOSITORY / "configs/recipes/qwen2vl_2b/rarl.yaml"
    config = load_config(path, given)
    where = config.model.path if "/" in config.model.path else resolve_model(config.model.path)
    model, work = model_shapes(where), step_work(config, where)
    size = model_size(model, config.model.lora.rank)
    speeds, network = gpu_speeds(find_card(gpu)), Network(bandwidth=0.7 * gbit * 1e9 / 8)
    rows = {
        title: scale(model, size, work, speeds, network, GPUS, grow)
        for title, grow in (
            ("the same batch, shared", False),
            ("a batch that grows with the GPUs", True),
        )
    }
    print(
        f"SIMULATED: {path.name} on {gpu}, {work.group} replies of {work.completion} tokens on "
        f"average (at most {work.longest}) to prompts of {work.prompt}, {gbit:g} Gbit/s between "
        "nodes"
    )
    for title, found in rows.items():
        show(f"{title}; seconds", found)
    if json_file is not None:
        json_file.write_text(
            json.dumps({k: [asdict(row) for row in v] for k, v in rows.items()}, indent=1) + "\n"
        )


if __name__ == "__main__":
    typer.run(main)
