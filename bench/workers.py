"""One to four equal train workers on this machine: seconds of a step, and how far losses differ.

    python bench/workers.py [key=value …] [--workers 1,2,3,4]

Without arguments the demo with 10 steps. The workers share the machine's cores, so on CPU the gain
is in what one worker leaves idle; what a second machine or card would bring is not measured here.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from runs import RARL, finished

SHORT = ["train.steps=10", "data.eval={}"]
WARM_UP = 2  # steps that are left out of the medians
PHASES = ("step", "rollout", "reward", "update", "publish", "save", "other")


def train(workers: int, overrides: list[str]) -> list[dict[str, Any]]:
    """The run's metrics."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        settings = [f"run_dir={run}", f"train.num_workers={workers}", *SHORT, *overrides]
        finished([RARL, "train", "configs/demo.yaml", *settings])
        return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def main(
    overrides: Annotated[list[str] | None, typer.Argument()] = None, workers: str = "1,2,3,4"
) -> None:
    counts = [int(count) for count in workers.split(",")]
    runs = {count: train(count, overrides or []) for count in counts}
    table = Table(
        "workers", *PHASES, "largest difference of the loss", title="median seconds of a step"
    )
    for count, rows in runs.items():
        medians = [
            statistics.median(row[f"seconds/{phase}"] for row in rows[WARM_UP:]) for phase in PHASES
        ]
        apart = max(abs(a["loss"] - b["loss"]) for a, b in zip(rows, runs[counts[0]], strict=True))
        table.add_row(str(count), *(f"{seconds:.2f}" for seconds in medians), f"{apart:.1e}")
    Console(width=140).print(table)


if __name__ == "__main__":
    typer.run(main)
