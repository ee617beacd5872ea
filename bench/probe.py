"""What `rarl probe` takes on the tiny world, and what measuring on the way costs a demo.

    python bench/probe.py

The probe: seconds of the command from its start to its end, two cores. Measuring: a demo of STEPS
steps that asks 128 questions of each data set every 20 steps, taken to the demo's 120 steps: its
steps and its measurements on the way are counted as often as there are then, and what comes before
and after them (engines, base, final measurement, report) once. The first measurement asks the base,
too.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from runs import RARL, finished

DEMO = "configs/demo.yaml"
STEPS, ALL_STEPS, EVERY = 40, 120, 20
WARM_UP = 4  # steps


def seconds_of(command: str, folder: Path, settings: list[str]) -> float:
    """Runs the command on the demo's configuration; returns its wall seconds."""
    return finished([RARL, command, DEMO, f"run_dir={folder}", *settings])[1]


def cost_of_measuring(folder: Path, settings: list[str]) -> tuple[float, float, float]:
    """Returns the seconds of the first measurement on the way and of a later one, and those of a
    whole demo without any."""
    more = [f"train.steps={STEPS}", f"evaluation.every={EVERY}", "evaluation.examples=128"]
    whole = seconds_of("train", folder, [*more, *settings])
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    first, *later = (row["seconds/evaluate"] for row in rows if row["step"] % EVERY == 0)
    alone = [row["seconds/step"] - row["seconds/evaluate"] for row in rows[WARM_UP:]]
    without = whole - first - sum(later)
    return first, statistics.mean(later), without + (ALL_STEPS - STEPS) * statistics.median(alone)


def main(overrides: Annotated[list[str] | None, typer.Argument()] = None) -> None:
    settings, console = overrides or [], Console(width=100)
    with tempfile.TemporaryDirectory() as name:
        probe = seconds_of("probe", Path(name) / "probe", settings)
        console.print(f"rarl probe {DEMO}: {probe:.0f} s")
        first, later, demo = cost_of_measuring(Path(name) / "run", settings)
    spent = first + (ALL_STEPS // EVERY - 1) * later
    console.print(
        f"measuring every {EVERY} steps: {first:.1f} s the first time, then {later:.1f} s; "
        f"{spent:.0f} s in a demo that takes {demo:.0f} s without: {spent / (demo + spent):.1%} of "
        "its time"
    )


if __name__ == "__main__":
    typer.run(main)
