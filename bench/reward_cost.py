"""What each reward for the reasoning adds to the seconds of a training step.

    python bench/reward_cost.py [key=value …] [--rounds 2] [--only facts,explains]

Plain reinforcement learning on phantoms, alone and with one reward more, which has the weight 0: it
is computed and logged and changes nothing, so that every run samples and learns the same, and only
its seconds differ. Facts are the sentences of the rationales. Medians of the steps after the
first four, over rounds in which the order of the runs is turned round. The whole step's difference
holds the noise of sampling and update, which do the same in all; that of the rewards' phase is what
the reward itself takes.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from runs import RARL, finished

ADDED = ["facts", "reasoning", "consistency", "explains", "fluency", "judge"]
PHASES = ("step", "rollout", "reward", "update")
STEPS, WARM_UP = 16, 4


def steps_with(reward: str, overrides: list[str]) -> list[dict[str, Any]]:
    """The metrics of the steps that count."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [RARL, "train", "configs/recipes/tiny/rl.yaml", f"run_dir={run}", "data.eval={}"]
        command += [f"train.steps={STEPS}", "data.train=rarl.tiny.dataset:write_train_with_facts"]
        command += [f"rewards.{reward}=0"] if reward else []
        finished(command + overrides)
        lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[WARM_UP:]]


def main(
    overrides: Annotated[list[str] | None, typer.Argument()] = None,
    rounds: int = 2,
    only: Annotated[str, typer.Option(help="rewards, with commas")] = ",".join(ADDED),
) -> None:
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    asked = ["", *only.split(",")]
    orders = [asked if turn % 2 == 0 else asked[::-1] for turn in range(rounds)]
    for reward in track([one for order in orders for one in order], "runs"):
        rows[reward] += steps_with(reward, overrides or [])
    medians = {
        reward: [statistics.median(row[f"seconds/{phase}"] for row in rows[reward])
                 for phase in PHASES]
        for reward in asked
    }  # fmt: skip
    plain_step, plain_rewards = medians[""][0], medians[""][PHASES.index("reward")]
    columns = ("step, % more", "rewards, % of a plain step", "loss of the last step")
    table = Table("rewards", *PHASES, *columns, title="median seconds")
    for reward in asked:
        more = 100 * (medians[reward][0] / plain_step - 1)
        own = 100 * (medians[reward][PHASES.index("reward")] - plain_rewards) / plain_step
        cells = [f"{seconds:.3f}" for seconds in medians[reward]]
        loss = f"{rows[reward][-1]['loss']:.6f}"
        table.add_row(
            f"with {reward}" if reward else "plain", *cells, f"{more:+.1f}", f"{own:+.1f}", loss
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    typer.run(main)
