"""How a step of a configuration would change with 1 to 64 GPUs: a simulation by `rarl plan`'s cost
model.

    python bench/scaling.py [CONFIG] [key=value …] [--gpu a100-40g] [--gbit 24] [--json FILE]

Estimates throughout: published rates of the card times assumed efficiencies
(rarl/planning/cost.py). Nothing here was measured on a GPU.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from rarl.commands.resolve import resolve_model
from rarl.config import load_config
from rarl.planning.cards import DEFAULT_CARD, find_card
from rarl.planning.cost import Network, gpu_speeds
from rarl.planning.scaling import Scaled, scale
from rarl.planning.shapes import model_shapes, model_size, step_work

REPOSITORY = Path(__file__).resolve().parent.parent
GPUS = (1, 2, 4, 8, 16, 32, 64)


def show(title: str, rows: list[Scaled]) -> None:
    table = Table(title=title)
    for column in (
        "GPUs",
        "prompts",
        "step",
        "rollout",
        "reward",
        "update",
        "publish",
        "network",
        "replies/s ×",
        "of ideal",
    ):
        table.add_column(column, justify="right")
    for row in rows:
        step = row.step
        seconds = (
            step.total,
            step.rollout,
            step.reward,
            step.update,
            step.publish,
            step.communication,
        )
        cells = [f"{value:.2f}" for value in seconds]
        table.add_row(
            str(row.gpus),
            str(row.prompts),
            *cells,
            f"{row.speedup:.1f}",
            f"{100 * row.efficiency:.0f} %",
        )
    Console(width=110).print(table)


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
    path = (
        Path(given.pop(0))
        if given and "=" not in given[0]
        else REPOSITORY / "configs/recipes/qwen2vl_2b/rarl.yaml"
    )
    config = load_config(path, given)
    where = config.model.path if "/" in config.model.path else resolve_model(config.model.path)
    model = model_shapes(where)
    size, work = model_size(model, config.model.lora.rank), step_work(config, where)
    speeds, network = gpu_speeds(find_card(gpu)), Network(bandwidth=0.7 * gbit * 1e9 / 8)
    rows = {
        "the same batch, shared": scale(model, size, work, speeds, network, GPUS, grow=False),
        "a batch that grows with the GPUs": scale(
            model, size, work, speeds, network, GPUS, grow=True
        ),
    }
    print(
        f"SIMULATED: {path.name} on {gpu}, {work.group} replies of {work.completion} tokens on average "
        f"(at most {work.longest}) to prompts of {work.prompt}, {gbit:g} Gbit/s between nodes"
    )
    for title, found in rows.items():
        show(f"{title}; seconds", found)
    if json_file is not None:
        json_file.write_text(
            json.dumps({k: [asdict(row) for row in v] for k, v in rows.items()}, indent=1) + "\n"
        )


if __name__ == "__main__":
    typer.run(main)
