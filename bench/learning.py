"""Plain reinforcement learning by RARL and by TRL's own GRPO trainer: where it ends, and how long
it takes to get there.

    python bench/learning.py [key=value …] [--seeds 0,1,2]

The recipe `configs/recipes/tiny/rl.yaml`: the same model, questions, prompt, rewards, loss, size of
adapter and learning rate. TRL is tuned as in `step.py` and generates with transformers, the faster
of its two ways here. Each adapter is then measured by one command. "Until 90 %": five steps in a
row whose replies are right so often on average; steps alone, and from the command's start on.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from runs import RARL, REPOSITORY, finished

from rarl.config import dump_config, load_config

RECIPE = "configs/recipes/tiny/rl.yaml"
TESTS = ("seen-test", "unseen-test")
AIM, WINDOW = 0.9, 5


@dataclass(frozen=True)
class Learnt:
    """`seconds` and `accuracy` of every step; `whole` seconds of the command; greedy accuracy on
    each of TESTS."""

    seconds: list[float]
    accuracy: list[float]
    whole: float
    tests: tuple[float, ...]

    def until_aim(self) -> float:
        """Seconds of the steps until the aim; infinite where it was not reached."""
        for end in range(WINDOW, len(self.accuracy) + 1):
            if statistics.mean(self.accuracy[end - WINDOW : end]) >= AIM:
                return sum(self.seconds[:end])
        return math.inf

    def start(self) -> float:
        """Seconds of the command that are none of its steps'."""
        return self.whole - sum(self.seconds)


def by_rarl(folder: Path, settings: list[str]) -> Learnt:
    run = folder / "rarl"
    more = [f"run_dir={run}", "data.eval={}", *settings]
    _, whole = finished([RARL, "train", RECIPE, *more])
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seconds, accuracy = ([row[key] for row in rows] for key in ("seconds/step", "reward/accuracy"))
    return Learnt(seconds, accuracy, whole, greedy(run / "adapter", folder / "of-rarl", settings))


def by_trl(folder: Path, settings: list[str]) -> Learnt:
    out, kept = folder / "trl", folder / "config.yaml"
    kept.write_text(dump_config(load_config(REPOSITORY / RECIPE, settings)))
    code = (
        "import json, sys; sys.path.insert(0, 'bench'); from trl_baseline import trl_learning; "
        "from rarl.config import load_config; "
        f"print(json.dumps(trl_learning(load_config({str(kept)!r}), {str(out)!r})))"
    )
    output, whole = finished([sys.executable, "-c", code])
    (line,) = (line for line in output.splitlines() if line.startswith('{"seconds"'))
    return Learnt(whole=whole, tests=greedy(out, folder / "of-trl", settings), **json.loads(line))


def greedy(adapter: Path, out: Path, settings: list[str]) -> tuple[float, ...]:
    """Returns the adapter's greedy accuracy on each of TESTS."""
    tests = [f"rarl.tiny.dataset:write_{name.replace('-', '_')}" for name in TESTS]
    more = ["device=cpu", "prompts.eval=plain", "rollout.max_completion_tokens=48"]
    more += ["rollout.max_model_length=256", *settings]
    target = f"rarl.tiny.dataset:base_model+{adapter}"
    finished([RARL, "eval", target, *tests, *more, "--out", str(out)])
    (summary,) = (out / "evaluation").glob("summary*.json")
    trained = json.loads(summary.read_text())["trained"]
    return tuple(trained[name]["accuracy"] for name in TESTS)


def main(
    overrides: Annotated[list[str] | None, typer.Argument()] = None, seeds: str = "0,1,2"
) -> None:
    table = Table("seed", "system", "seen %", "unseen %", "until 90 %: steps, s", "with start, s")
    ratios = []
    for seed in seeds.split(","):
        settings = [f"seed={seed}", *(overrides or [])]
        with tempfile.TemporaryDirectory() as name:
            found = {
                system: learn(Path(name), settings)
                for system, learn in (("RARL", by_rarl), ("TRL", by_trl))
            }
        for system, one in found.items():
            tests = [f"{100 * accuracy:.1f}" for accuracy in one.tests]
            until = one.until_aim()
            table.add_row(seed, system, *tests, f"{until:.0f}", f"{until + one.start():.0f}")
        ratios.append(found["TRL"].until_aim() / found["RARL"].until_aim())
    Console(width=100).print(table)
    print("TRL's seconds over RARL's:", ", ".join(f"{ratio:.2f}" for ratio in ratios))


if __name__ == "__main__":
    typer.run(main)
