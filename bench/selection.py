"""Whether choosing what to ask saves steps on the tiny world.

    python bench/selection.py [--seeds 0,1,2] [--steps 90] [--out FOLDER]

The recipe with all of its 120 steps, with the fewer steps, and with the fewer steps and a selection
of questions: hard negatives, which nothing has to be asked for, and by a probe of all questions
as well. For each, greedy accuracy and reasoning in % and the seconds of training; the probe's stand
beside those that need one.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from runs import RARL, finished

RECIPE = "configs/recipes/tiny/rarl.yaml"
QUESTIONS = 960  # all that there are
DATA = ("phantoms-seen", "phantoms-unseen")
HARD = "data.select.hard_negatives=0.3"
# What is chosen, after how many steps (None: the fewer), and its settings.
WAYS: list[tuple[str, int | None, list[str]]] = [
    ("all", 120, []),
    ("all", None, []),
    ("hard negatives", None, [HARD]),
    ("difficulty and hard negatives", None, [HARD, "data.select.difficulty=[0.05, 0.95]"]),
]


def probed(run: Path, seed: int) -> float:
    """Probes all questions, and returns the seconds."""
    command = [RARL, "probe", RECIPE, f"run_dir={run}", f"seed={seed}", "data.eval={}"]
    return finished([*command, "--questions", str(QUESTIONS)])[1]


def trained(run: Path, seed: int, settings: list[str]) -> tuple[list[str], float]:
    """Trains and measures; returns accuracy and reasoning of each data set, and the seconds of the
    steps."""
    finished([RARL, "train", RECIPE, f"run_dir={run}", f"seed={seed}", *settings])
    summary = json.loads((run / "summary.json").read_text())
    cells = []
    for name in DATA:
        its = summary["trained"][name]
        cells += [f"{100 * its['accuracy']:.1f}", f"{100 * its['reasoning']['mean']:.1f}"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return cells, sum(row["seconds/step"] for row in rows)


def main(
    seeds: Annotated[str, typer.Option(help="with commas")] = "0,1,2",
    steps: int = 90,
    out: Annotated[Path | None, typer.Option(help="keep the runs there")] = None,
) -> None:
    table = Table(
        *("seed", "steps", "questions", "accuracy seen", "reasoning seen"),
        *("accuracy unseen", "reasoning unseen", "seconds of steps", "of the probe"),
        title=f"fewer steps and chosen questions; {RECIPE}",
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = out or Path(temporary)
        for seed in track([int(one) for one in seeds.split(",")], "seeds"):
            probe = folder / f"probe-{seed}"
            probe_seconds = probed(probe, seed)
            for way, taken, settings in WAYS:
                more = [f"train.steps={taken or steps}", *settings]
                needs = any(one.startswith("data.select.difficulty") for one in settings)
                more += [f"data.select.probe={probe}"] if needs else []
                run = folder / f"{way.replace(' ', '-')}-{taken or steps}-{seed}"
                cells, seconds = trained(run, seed, more)
                own = [f"{seconds:.0f}", f"{probe_seconds:.0f}" if needs else "–"]
                table.add_row(str(seed), str(taken or steps), way, *cells, *own)
    Console(width=160).print(table)


if __name__ == "__main__":
    typer.run(main)
