"""Two runs of the demo beside each other on this machine, and one alone.

    python bench/neighbours.py [key=value …]

Each run is all of `rarl demo`: base, training, evaluation, report. Two that shared the cores
perfectly would take at most twice as long as one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

REPOSITORY = Path(__file__).resolve().parent.parent


def seconds_of_runs(count: int, overrides: list[str]) -> float:
    """Starts `count` runs, of seeds 0, 1, …, at once, and returns when the last one has ended."""
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {
        "HF_HUB_OFFLINE": "1"
    }
    rarl = str(Path(sys.executable).parent / "rarl")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        started, running = time.perf_counter(), []
        for seed in range(count):
            out = Path(folder) / f"run-{seed}"
            command = [rarl, "train", "configs/demo.yaml", f"seed={seed}", f"run_dir={out}"]
            process = subprocess.Popen(
                command + overrides,
                cwd=REPOSITORY,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            running.append(stack.enter_context(process))
        if any(process.wait() for process in running):
            sys.exit("a run failed")
        return time.perf_counter() - started


def main(overrides: Annotated[list[str] | None, typer.Argument()] = None) -> None:
    seconds_of_runs(1, ["train.steps=2", *(overrides or [])])  # makes the data and the model
    alone, both = (seconds_of_runs(count, overrides or []) for count in (1, 2))
    table = Table("runs", "seconds until the last has ended", "of one alone")
    table.add_row("one", f"{alone:.0f}", "1")
    table.add_row("two beside each other", f"{both:.0f}", f"{both / alone:.2f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    typer.run(main)
