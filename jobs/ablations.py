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
from rarl.evaluation.intervals import interval95
from rarl.evaluation.prediction import Prediction, load_predictions
from rarl.files import write_text

REPOSITORY = Path(__file__).resolve().parent.parent
RECIPES = REPOSITORY / "configs" / "recipes" / "tiny"
COLUMNS = (
    "",
    "accuracy: base → trained",
    "change",
    "reasoning: base → trained",
    "change",
    "trained by seed: accuracy / reasoning",
    "RARL − this",
)
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
            run(variant, seed, folder_of(out, name, seed), overrides or [])
            write_text(path, render(out, numbers, overrides or []))
    print(f"table in {path}")


def folder_of(out: Path, name: str, seed: int) -> Path:
    return out / f"{VARIANTS[name].trained_as or name}-{seed}"


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


def finished(out: Path, name: str, seeds: list[int]) -> list[int]:
    """The seeds of which there are replies, so that the table can be read while runs are still to come."""
    last = f"evaluation/trained-{DATA_SETS[-1]}{VARIANTS[name].suffix}.parquet"
    return [seed for seed in seeds if (folder_of(out, name, seed) / last).is_file()]


def pool(out: Path, name: str, data_set: str, seeds: list[int]) -> Pooled:
    base: list[Prediction] = []
    trained: list[Prediction] = []
    images: list[str] = []
    for seed in seeds:
        folder, suffix = folder_of(out, name, seed) / "evaluation", VARIANTS[name].suffix
        base += load_predictions(folder / f"base-{data_set}{suffix}.parquet")
        trained += load_predictions(folder / f"trained-{data_set}{suffix}.parquet")
        images += [f"{seed}/{p.image_id}" for p in base[len(images) :]]
    return Pooled(base, trained, images)


def render(out: Path, seeds: list[int], overrides: list[str]) -> str:
    command = shlex.join(["python", "jobs/ablations.py", "--seeds", ",".join(map(str, seeds)), *overrides])
    lines = [
        "# Results on the tiny world",
        "",
        f"`{command}`, {machine()}.",
        "",
        f"The tiny model on phantoms, greedy answers, the seeds {', '.join(map(str, seeds))} as far as they are in the "
        "column of the seeds, questions pooled. Brackets are 95 % bootstrap intervals over images, which leave out "
        "what other seeds would have given: see that column. Reinforcement learning and SFT see `phantoms-seen` only. "
        "`base →` is the base model asked with the same prompt: SFT and plain RL are asked with `plain`, RARL with "
        "`reason`. `reasoning` is the reward of that name (docs/rewards.md), which an answer alone does not have. "
        "`RARL − this` is accuracy, paired by question.",
    ]
    for data in DATA_SETS:
        lines += ["", f"## {data}", "", f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"]
        for name in VARIANTS:
            done = [seed for seed in finished(out, name, seeds) if seed in finished(out, "rarl", seeds)]
            if done:
                own, rarl = pool(out, name, data, done), pool(out, "rarl", data, done)
                lines.append(row(VARIANTS[name].name, own, rarl, done))
    lines += ["", "One override makes each ablation:", ""]
    lines += [f"- {v.name}: `{v.override}`" for v in VARIANTS.values() if v.override]
    return "\n".join(lines) + "\n"


def row(name: str, own: Pooled, rarl: Pooled, seeds: list[int]) -> str:
    """Accuracy base → trained and its change, the reasoning score the same way, both by seed, RARL's lead in points."""
    accuracy = Scores([float(p.correct) for p in own.base], [float(p.correct) for p in own.trained], own.images)
    lead = [float(r.correct) - float(t.correct) for r, t in zip(rarl.trained, own.trained, strict=True)]
    reasoned = [i for i, p in enumerate(own.trained) if p.reasoning is not None and own.base[i].reasoning is not None]
    before, after = ([float(p[i].reasoning or 0.0) for i in reasoned] for p in (own.base, own.trained))
    reasoning = Scores(before, after, [own.images[i] for i in reasoned])
    cells = [*accuracy.cells(), *reasoning.cells()]
    return f"| {name} | {' | '.join([*cells, by_seed(own, seeds), points(lead, own.images)])} |"


def by_seed(own: Pooled, seeds: list[int]) -> str:
    """Of the trained model. The seeds' questions lie one after another."""
    size = len(own.trained) // len(seeds)
    parts = [own.trained[i * size : (i + 1) * size] for i in range(len(seeds))]
    texts = []
    for seed, part in zip(seeds, parts, strict=True):
        known = [p.reasoning for p in part if p.reasoning is not None]
        reasoning = f" / {100 * mean(known):.1f}" if known else ""
        texts.append(f"{seed}: {100 * mean(float(p.correct) for p in part):.1f}{reasoning}")
    return "; ".join(texts)


@dataclass(frozen=True)
class Scores:
    """In [0, 1], question by question."""

    base: list[float]
    trained: list[float]
    images: list[str]

    def cells(self) -> list[str]:
        if not self.trained:
            return ["–", "–"]
        low, high = interval95([100 * value for value in self.trained], self.images)
        change = [t - b for b, t in zip(self.base, self.trained, strict=True)]
        whole = f"{100 * mean(self.base):.1f} → {100 * mean(self.trained):.1f} [{low:.1f}, {high:.1f}]"
        return [whole, points(change, self.images)]


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
