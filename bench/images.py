"""What the tiny model learns from questions of two images, of none, and of both in one run.

    python bench/images.py [key=value …] [--seeds 0,1,2] [--recipes follow_up,in_words,mixed]

Trains the recipes of `configs/recipes/tiny` that ask so, each seed in a run directory of its own
below `--out`, and prints greedy accuracy before and after. What is finished is not done again.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from runs import RARL, REPOSITORY, finished

RECIPES = "follow_up,in_words,mixed"


def trained(recipe: str, seed: str, out: Path, settings: list[str]) -> Path:
    """Returns the run directory of a finished run."""
    run = out / f"{recipe}-{seed}"
    more = [f"run_dir={run.resolve()}", f"seed={seed}", *settings]
    finished([RARL, "train", f"configs/recipes/tiny/{recipe}.yaml", *more])
    return run


def main(
    overrides: Annotated[list[str] | None, typer.Argument()] = None,
    seeds: str = "0,1,2",
    recipes: str = RECIPES,
    out: Path = REPOSITORY / "runs/images",
) -> None:
    table = Table("recipe", "seed", "data", "questions", "base %", "trained %", "step, s")
    for recipe in recipes.split(","):
        for seed in seeds.split(","):
            run = trained(recipe, seed, out, overrides or [])
            summary = json.loads((run / "summary.json").read_text())
            rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            step = statistics.median(row["seconds/step"] for row in rows)
            for data, after in summary["trained"].items():
                before = summary["base"][data]["accuracy"]
                shown = [f"{100 * one:.1f}" for one in (before, after["accuracy"])]
                table.add_row(recipe, seed, data, str(after["n"]), *shown, f"{step:.2f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    typer.run(main)
