"""What a second look is worth, and what it costs, beside one look and beside looks elsewhere.

    python bench/second_look.py [key=value …] [--seeds 0,1,2] [--out FOLDER]

Trains `configs/recipes/tiny/second_look.yaml`, each seed in a run directory of its own below
`--out`, and measures base and adapter in every way: greedy accuracy, how far 5 samples agree,
tokens of prompts and replies of a question (both turns), and its seconds. What is measured is not
measured again, and has no tokens and seconds then.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import mean
from typing import Annotated, get_args

import typer
from rich.console import Console
from rich.table import Table
from runs import RARL, REPOSITORY, finished

from rarl.commands.evaluate import key_of, measure_all
from rarl.commands.resolve import Setup, resolve
from rarl.commands.session import Session, open_session
from rarl.config import load_config
from rarl.display import Display
from rarl.evaluation.measurements import in_groups, marker_of
from rarl.evaluation.self_consistency import Sampled, vote
from rarl.evaluation.ways import Look, Way
from rarl.grpo.policy import read_adapter
from rarl.prompts import LOOK
from rarl.samples import Sample

RECIPE = "configs/recipes/tiny/second_look.yaml"
DATA, PROMPT, SAMPLES = "second-look", "reason", 5
TEST = f"data.eval={{{DATA}: rarl.tiny.second_look:write_test}}"
WAYS = (None, *get_args(Look))


def trained(seed: str, out: Path, settings: list[str]) -> Path:
    """Returns the run directory of a finished run."""
    run = out / f"second-look-{seed}"
    how = [f"run_dir={run.resolve()}", f"seed={seed}", "data.eval={}"]
    finished([RARL, "train", RECIPE, *how, *settings])
    return run


def agreement(samples: list[Sample]) -> float:
    """Returns the mean share of a question's samples that give the majority's answer."""
    return mean(vote(Sampled.of(group)).agreement for group in in_groups(samples))


def tokens(sample: Sample) -> int:
    """Returns those of both turns: prompts and replies."""
    look = sample.detail.look_tokens if sample.detail is not None else 0
    return len(sample.rollout.prompt_token_ids) + len(sample.rollout.completion_token_ids) + look


def measured(setup: Setup, live: Session, model: str) -> list[list[str]]:
    """Returns a row of the table for each way."""
    display, rows = Display(), []
    for control in WAYS:
        way = Way(PROMPT, control)
        known = marker_of(setup.evaluation, key_of(setup, model, DATA, way)).exists()
        started = time.perf_counter()
        greedy = measure_all(setup, live, model, display, way)[DATA]
        seconds = (time.perf_counter() - started) / len(greedy)
        several = Way(PROMPT, control, SAMPLES)
        sampled = measure_all(setup, live, model, display, several)[DATA]
        named = [one for one in greedy if one.detail is not None]
        rows.append(
            [
                " ".join(way.words(PROMPT)) or "one look",
                f"{100 * mean(one.is_right for one in greedy):.1f}",
                f"{100 * agreement(sampled):.1f}",
                f"{100 * len(named) / len(greedy):.1f}",
                "" if known else f"{mean(map(tokens, greedy)):.0f}",
                "" if known else f"{seconds:.3f}",
            ]
        )
    return rows


def main(
    overrides: Annotated[list[str] | None, typer.Argument()] = None,
    seeds: str = "0,1,2",
    out: Path = REPOSITORY / "runs/second-look",
) -> None:
    columns = ("accuracy %", "agreement %", "named a place %", "tokens", "seconds a question")
    table = Table("seed", "model", "shown", *columns)
    for seed in seeds.split(","):
        path = trained(seed, out, overrides or []) / "config.yaml"
        config = load_config(path, [TEST])
        setup = resolve(config, load_config(path))
        with open_session(setup, Display(), setup.eval_data, families=[PROMPT, LOOK]) as live:
            assert live.pool is not None, "engines were asked for"
            live.pool.publish(config.train.steps, *read_adapter(setup.run_dir.adapter))
            for model in ("base", "trained"):
                for row in measured(setup, live, model):
                    table.add_row(seed, model, *row)
    Console(width=140).print(table)


if __name__ == "__main__":
    typer.run(main)
