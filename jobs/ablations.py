"""RARL, what it is compared with, and RARL with one thing taken away, over several seeds, as one table.

    python jobs/ablations.py [--seeds 0,1,2] [--out runs/ablations] [--table runs/ablations/results.md] [key=value …]

Each line of the table is one recipe with at most one override. Finished runs are not repeated. Further overrides go to
every run.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean as mean
from typing import Annotated

import typer

from rarl.cli import run_and_explain
from rarl.errors import UserError
from rarl.evaluation.evaluate import Prediction, load_predictions
from rarl.evaluation.intervals import interval95
from rarl.files import write_text

REPOSITORY = Path(__file__).resolve().parent.parent
RECIPES = REPOSITORY / "configs" / "recipes" / "tiny"
COLUMNS = ("", "accuracy: base → trained", "change", "seeds", "RARL − this", "reasoning: base → trained", "change")
DATA_SETS = ("phantoms-seen", "phantoms-unseen")


@dataclass(frozen=True)
class Variant:
    """A line of the table."""

    name: str
    recipe: str
    override: str | None = None
    trained_as: str | None = None  # another variant, of which only the measurements are repeated
    suffix: str = ""  # of the files with the replies


VARIANTS = {
    "sft": Variant("SFT", "sft"),
    "rl": Variant("plain RL", "rl"),
    "rarl": Variant("RARL", "rarl"),
    "rarl-no-reasoning": Variant("RARL, no reasoning reward", "rarl", "rewards.reasoning=0"),
    "rarl-no-diversity": Variant("RARL, no diversity prompting", "rarl", "prompts.train={plain: 1}"),
    "rarl-no-judge": Variant("RARL, no judge", "rarl", "rewards.judge=0"),
    "rarl-plain-inference": Variant(
        "RARL, plain inference prompt (answer alone)", "rarl", "prompts.eval=none", "rarl", "-none"
    ),
}


@dataclass(frozen=True)
class Pooled:
    """One data set, all seeds: base and trained replies, question by question."""

    base: list[Prediction]
    trained: list[Prediction]
    images: list[str]  # of different seeds never equal


def main(
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, for every run")] = None,
    seeds: Annotated[str, typer.Option()] = "0,1,2",
    out: Annotated[Path, typer.Option(help="Folder of the run directories.")] = Path("runs/ablations"),
    table: Annotated[Path | None, typer.Option(help="Where the table goes; results.md in the folder.")] = None,
) -> None:
    if not re.fullmatch(r"\d+(,\d+)*", seeds):
        raise UserError(f"--seeds {seeds}: expected numbers, such as 0,1,2")
    numbers = [int(seed) for seed in seeds.split(",")]
    path = table or out / "results.md"
    for name, variant in VARIANTS.items():
        for seed in numbers:
            run(variant, seed, out / f"{variant.trained_as or name}-{seed}", overrides or [])
    write_text(path, render(out, numbers, overrides or []))
    print(f"table in {path}")


def run(variant: Variant, seed: int, folder: Path, overrides: list[str]) -> None:
    """One run in a process of its own."""
    print(f"{variant.name}, seed {seed}", flush=True)
    own = [variant.override] if variant.override else []
    arguments = ["train", str(RECIPES / f"{variant.recipe}.yaml"), f"run_dir={folder}", f"seed={seed}", *overrides]
    if variant.trained_as:
        arguments = ["eval", str(folder)]
    done = subprocess.run([sys.executable, "-m", "rarl", *arguments, *own], check=False)
    if done.returncode != 0:
        raise UserError(f"{folder}: the run failed; mend it and start again, finished runs are kept")


def pool(out: Path, name: str, data_set: str, seeds: list[int]) -> Pooled:
    variant = VARIANTS[name]
    base: list[Prediction] = []
    trained: list[Prediction] = []
    images: list[str] = []
    for seed in seeds:
        folder = out / f"{variant.trained_as or name}-{seed}" / "evaluation"
        base += load_predictions(folder / f"base-{data_set}{variant.suffix}.parquet")
        trained += load_predictions(folder / f"trained-{data_set}{variant.suffix}.parquet")
        images += [f"{seed}/{p.image_id}" for p in base[len(images) :]]
    return Pooled(base, trained, images)


def render(out: Path, seeds: list[int], overrides: list[str]) -> str:
    command = shlex.join(["python", "jobs/ablations.py", "--seeds", ",".join(map(str, seeds)), *overrides])
    pools = {(name, data): pool(out, name, data, seeds) for name in VARIANTS for data in DATA_SETS}
    questions = len(pools["rarl", DATA_SETS[0]].base) // len(seeds)
    lines = [
        "# Results on the tiny world",
        "",
        f"`{command}`, {machine()}.",
        "",
        f"The tiny model on phantoms, {len(seeds)} seeds, greedy answers, {questions} questions per data set "
        "and seed, pooled. Brackets are 95 % bootstrap intervals over images, which leave out what other seeds would "
        "have given: see the column of the seeds for that. Reinforcement learning and SFT see `phantoms-seen` only. "
        "`base →` is the base model asked with the same prompt: SFT and plain RL are asked with `plain`, RARL with "
        "`reason`. `reasoning` is the reward of that name (docs/rewards.md), which an answer alone does not have. "
        "`RARL − this` is accuracy, paired by question.",
    ]
    for data in DATA_SETS:
        lines += ["", f"## {data}", "", f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"]
        lines += [row(VARIANTS[name].name, pools[name, data], pools["rarl", data], len(seeds)) for name in VARIANTS]
    lines += ["", "One override makes each ablation:", ""]
    lines += [f"- {v.name}: `{v.override}`" for v in VARIANTS.values() if v.override]
    return "\n".join(lines) + "\n"


def row(name: str, own: Pooled, rarl: Pooled, seeds: int) -> str:
    """Accuracy base → trained, its change, each seed's, RARL's lead in points, and the reasoning score the same way."""
    accuracy = Scores([float(p.correct) for p in own.base], [float(p.correct) for p in own.trained], own.images)
    lead = [float(r.correct) - float(t.correct) for r, t in zip(rarl.trained, own.trained, strict=True)]
    cells = [*accuracy.cells(), accuracy.by_seed(seeds), points(lead, own.images)]
    known = [i for i, p in enumerate(own.trained) if p.reasoning is not None and own.base[i].reasoning is not None]
    if not known:
        return f"| {name} | {' | '.join([*cells, '–', '–'])} |"
    before, after = ([float(p[i].reasoning or 0.0) for i in known] for p in (own.base, own.trained))
    reasoning = Scores(before, after, [own.images[i] for i in known])
    return f"| {name} | {' | '.join([*cells, *reasoning.cells()])} |"


@dataclass(frozen=True)
class Scores:
    """In [0, 1], question by question."""

    base: list[float]
    trained: list[float]
    images: list[str]

    def cells(self) -> list[str]:
        low, high = interval95([100 * value for value in self.trained], self.images)
        change = [t - b for b, t in zip(self.base, self.trained, strict=True)]
        whole = f"{100 * mean(self.base):.1f} → {100 * mean(self.trained):.1f} [{low:.1f}, {high:.1f}]"
        return [whole, points(change, self.images)]

    def by_seed(self, seeds: int) -> str:
        """Of the trained model; the seeds' questions lie one after another."""
        size = len(self.trained) // seeds
        return ", ".join(f"{100 * mean(self.trained[i * size : (i + 1) * size]):.1f}" for i in range(seeds))


def points(change: list[float], images: list[str]) -> str:
    low, high = interval95([100 * value for value in change], images)
    return f"{100 * mean(change):+.1f} [{low:+.1f}, {high:+.1f}]"


def machine() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if "model name" in line] if info.is_file() else []
    name = names[0].split(":")[1].strip() if names else platform.processor()
    return f"{os.cpu_count()} cores of {name}, no GPU"


if __name__ == "__main__":
    run_and_explain(typer.run, main)
