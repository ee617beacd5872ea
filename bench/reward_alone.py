"""What a policy learns that is paid by one reward for the reasoning, and else for its form alone.

    python bench/reward_alone.py [--steps 300] [--seed 0] [--only explains,facts] [--out FOLDER]

The tiny model on phantoms, by the prompts of the recipe, once for each reward. Private codes,
leaked answers and rote phrases would show in what it says most often, and a reward that is earned
without looking in a score that rises as much where the same questions have a blank image. The
reasoning is held against the rationales, which only the rewards `reasoning` and `judge` are shown.
Facts are the sentences of the rationales, beside other images' facts as `rarl prepare` puts them.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from runs import RARL, finished

from rarl.evaluation.measurements import finished_measurements, read_finished
from rarl.samples import Sample

WEIGHTS = {"explains": 2.0, "facts": 1.0, "consistency": 1.0, "reasoning": 1.0, "judge": 1.0}
DATA = "phantoms-seen"
SHOWN = 3  # of the thinkings


def train_on(reward: str, run: Path, steps: int, seed: int) -> None:
    """Trains and measures, with the images and with blank ones."""
    weights = f"rewards={{format: 0.2, {reward}: {WEIGHTS[reward]}}}"
    command = [RARL, "train", "configs/recipes/tiny/rarl.yaml", f"run_dir={run}", weights]
    command += [f"train.steps={steps}", f"train.checkpoint_every={steps}", f"seed={seed}"]
    command += ["data.train=rarl.tiny.dataset:write_train_with_facts"] if reward == "facts" else []
    finished(command)
    finished([RARL, "eval", str(run), "--control", "blank"])


def row_of(samples: Sequence[Sample]) -> list[str]:
    """Returns accuracy and reasoning in %, how many different thinkings there are, and those that
    are said most often with their share."""
    right = sum(one.is_right for one in samples) / len(samples)
    scores = [one.score.rewards["reasoning"] for one in samples if one.score is not None]
    known = [score for score in scores if score is not None]
    said = Counter(one.reply.thinking or "(nothing)" for one in samples)
    often = [f"{count / len(samples):.0%} {text}" for text, count in said.most_common(SHOWN)]
    reasoning = 100 * sum(known) / max(1, len(known))
    return [f"{100 * right:.1f}", f"{reasoning:.1f}", str(len(said)), "\n".join(often)]


def measured(run: Path, model: str, control: str) -> list[str]:
    """Returns the cells of one measurement of the run."""
    folder = run / "evaluation"
    for key in finished_measurements(folder):
        if (key.model, key.data, key.control) == (model, DATA, control):
            samples = read_finished(folder, key)
            if samples is not None:
                return row_of(samples)
    sys.exit(f"{run}: {model} was not measured on {DATA} with control {control}")


def main(
    steps: int = 300,
    seed: int = 0,
    only: Annotated[str, typer.Option(help="rewards, with commas")] = ",".join(WEIGHTS),
    out: Annotated[Path | None, typer.Option(help="keep the runs there")] = None,
) -> None:
    table = Table(
        *("reward", "model", "image", "accuracy", "reasoning", "different", "said most often"),
        title=f"{steps} steps on one reward and the form, seed {seed}; {DATA}",
    )
    with tempfile.TemporaryDirectory() as folder:
        for reward in track(only.split(","), "rewards"):
            run = (out or Path(folder)) / f"{reward}-{seed}"
            train_on(reward, run, steps, seed)
            for model in ("base", "trained"):
                for control, image in (("none", "its own"), ("blank", "blank")):
                    table.add_row(reward, model, image, *measured(run, model, control))
    Console(width=160).print(table)


if __name__ == "__main__":
    typer.run(main)
