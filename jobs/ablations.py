"""RARL, what it is compared with, and RARL with one thing taken away, over several seeds, as one table.

    python jobs/ablations.py [--seeds 0,1,2] [--out runs/ablations] [--table docs/results.md] [key=value …]

Each line of the table is one recipe with at most one override. Finished runs are not repeated. Further overrides go to
every run.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from rarl.cli import run_and_explain
from rarl.errors import UserError
from rarl.evaluation.evaluate import Prediction, load_predictions
from rarl.evaluation.intervals import interval95
from rarl.files import write_text

REPOSITORY = Path(__file__).resolve().parent.parent
RECIPES = REPOSITORY / "configs" / "recipes" / "tiny"
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
    "rarl-plain-inference": Variant("RARL, plain inference prompt", "rarl", "prompts.eval=none", "rarl", "-none"),
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
    table: Annotated[Path, typer.Option(help="Where the table goes.")] = Path("docs/results.md"),
) -> None:
    numbers = [int(seed) for seed in seeds.split(",")]
    for name, variant in VARIANTS.items():
        for seed in numbers:
            run(variant, seed, out / f"{variant.trained_as or name}-{seed}", overrides or [])
    write_text(table, render(out, numbers, overrides or []))
    print(f"table in {table}")


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
    command = " ".join(["python jobs/ablations.py", f"--seeds {','.join(map(str, seeds))}", *overrides])
    lines = [
        "# Results on the tiny world",
        "",
        f"`{command}`, {machine()}. The tiny model on phantom radiographs, {len(seeds)} seeds, greedy answers; "
        "400 questions per data set and seed, pooled; brackets are 95 % bootstrap intervals over images. Reinforcement "
        "learning and SFT see `phantoms-seen` only; base and trained model are asked with the same prompt. `reasoning` "
        "is the reward of that name (docs/rewards.md); an answer-only prompt has none.",
    ]
    for data_set in DATA_SETS:
        lines += [
            "",
            f"## {data_set}",
            "",
            "| | accuracy | change | reasoning | change |",
            "| --- | --- | --- | --- | --- |",
        ]
        for name, variant in VARIANTS.items():
            lines.append(row(variant.name, pool(out, name, data_set, seeds)))
    lines += ["", "`change` is against the base model, paired by question. One override makes each ablation:", ""]
    lines += [f"- {v.name}: `{v.override}`" for v in VARIANTS.values() if v.override]
    return "\n".join(lines) + "\n"


def row(name: str, pooled: Pooled) -> str:
    correct = [(float(b.correct), float(t.correct)) for b, t in zip(pooled.base, pooled.trained, strict=True)]
    cells = cell(correct, pooled.images)
    reasons = [
        (b.reasoning, t.reasoning, image)
        for b, t, image in zip(pooled.base, pooled.trained, pooled.images, strict=True)
        if b.reasoning is not None and t.reasoning is not None
    ]
    cells += cell([(b, t) for b, t, _ in reasons], [image for _, _, image in reasons]) if reasons else ["–", "–"]
    return f"| {name} | " + " | ".join(cells) + " |"


def cell(pairs: list[tuple[float, float]], images: list[str]) -> list[str]:
    """Base → trained with the trained one's interval, and the paired change with its own, in percent and points."""
    base, trained = (100 * sum(column) / len(pairs) for column in zip(*pairs, strict=True))
    low, high = interval95([100 * t for _, t in pairs], images)
    change = [100 * (t - b) for b, t in pairs]
    less, more = interval95(change, images)
    return [f"{base:.1f} → {trained:.1f} [{low:.1f}, {high:.1f}]", f"{trained - base:+.1f} [{less:+.1f}, {more:+.1f}]"]


def machine() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if "model name" in line] if info.is_file() else []
    name = names[0].split(":")[1].strip() if names else platform.processor()
    return f"{os.cpu_count()} cores of {name}, no GPU"


if __name__ == "__main__":
    run_and_explain(typer.run, main)
