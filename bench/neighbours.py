"""Two runs of the demo beside each other on this machine, and one alone.

    python bench/neighbours.py [key=value …]
    python bench/neighbours.py train.steps=14 data.eval={}    # steps alone, in six minutes

Each run is all of `rarl demo`: base, training, evaluation, report. Two that shared the cores
perfectly would take at most twice as long as one. Seconds of steps are medians without the first
four.
"""

from __future__ import annotations

import json
import statistics
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
from runs import RARL, REPOSITORY, environment

PHASES = ("step", "rollout", "reward", "update")
WARM_UP = 4  # steps


def beside_each_other(count: int, overrides: list[str]) -> tuple[float, dict[str, float]]:
    """Starts `count` runs, of seeds 0, 1, …, at once. Returns the seconds until the last one has
    ended, and the median seconds of a step's phases over all of them."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        started, running = time.perf_counter(), []
        outs = [Path(folder) / f"run-{seed}" for seed in range(count)]
        for seed, out in enumerate(outs):
            command = [RARL, "train", "configs/demo.yaml", f"seed={seed}", f"run_dir={out}"]
            process = subprocess.Popen(
                command + overrides,
                cwd=REPOSITORY,
                env=environment(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            running.append(stack.enter_context(process))
        codes = [process.wait() for process in running]
        if any(codes):
            sys.exit("a run failed")
        seconds = time.perf_counter() - started
        rows = [
            json.loads(line)
            for out in outs
            for line in (out / "metrics.jsonl").read_text().splitlines()[WARM_UP:]
        ]
    medians = {one: statistics.median(row[f"seconds/{one}"] for row in rows) for one in PHASES}
    return seconds, medians


def main(overrides: Annotated[list[str] | None, typer.Argument()] = None) -> None:
    table = Table("runs", "seconds", "of one alone", *PHASES)
    alone = 0.0
    for count, name in ((1, "one"), (2, "two beside each other")):
        seconds, medians = beside_each_other(count, overrides or [])
        alone = alone or seconds
        cells = [f"{medians[one]:.2f}" for one in PHASES]
        table.add_row(name, f"{seconds:.0f}", f"{seconds / alone:.2f}", *cells)
    Console(width=100).print(table)


if __name__ == "__main__":
    typer.run(main)
