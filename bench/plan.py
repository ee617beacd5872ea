"""`rarl plan` against a real run on CPU: peak memory of all its processes, and seconds of a step.

    python bench/plan.py [CONFIG] [key=value …] [--json FILE]
    python bench/plan.py --activations

Without arguments the demo, cut to 6 steps and 20 questions of each measurement. Memory is the sum
of PSS over the process tree, sampled 5 times a second; see tree_memory.py. `--activations` compares
the formula for activations, which the GPU plan uses too, with the update's peak for the shapes of
bench/update.py.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from cases import CASES, Case, model_config
from rich.console import Console
from rich.table import Table
from runs import RARL, REPOSITORY, environment
from tree_memory import Peak, run_watched
from update import in_own_process

SHORT = ["train.steps=6", "train.checkpoint_every=6", "evaluation.max_examples=20"]
WARM_UP = 2  # steps that are left out of the medians


def compare(config: Path, overrides: list[str]) -> dict[str, Any]:
    """Runs the configuration; MiB by kind of process and seconds by phase, predicted and
    measured."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [
            RARL,
            "train",
            str(config),
            f"run_dir={run}",
            *overrides,
        ]
        peak, seconds, done = run_watched(command, str(REPOSITORY), environment())
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][
            WARM_UP:
        ]
    measured = {
        key: statistics.median(row[key] for row in rows)
        for key in rows[0]
        if key.startswith("seconds/")
    }
    memory, step = predict(config, overrides)
    return beside(memory, peak) | {
        "samples": peak.samples,
        "completion_tokens": statistics.mean(row["completion_tokens"] for row in rows),
        "step": {
            name: {"predicted": value, "measured": measured[f"seconds/{name}"]}
            for name, value in step.items()
        },
        "run_seconds": seconds,
    }


def beside(memory: dict[str, float], peak: Peak) -> dict[str, Any]:
    """The predicted memory beside the measured."""
    measured = peak.private | {"shared pages": peak.shared}
    rows = {
        kind: {
            "predicted": mib,
            "measured": measured.get(kind, 0.0),
            "count": peak.counts.get(kind, 0),
        }
        for kind, mib in memory.items()
    }
    return {"memory": rows, "total": {"predicted": sum(memory.values()), "measured": peak.pss}}


def predict(config: Path, overrides: list[str]) -> tuple[dict[str, float], dict[str, float]]:
    """MiB by kind of process, and seconds by phase of a step."""
    from rarl.config import load_config
    from rarl.planning.plan import make_plan

    plan = make_plan(load_config(config, overrides))
    assert plan.processes is not None, "bench/plan.py is for configurations on CPU"
    step = plan.step
    phases = {
        "rollout": step.rollout,
        "reward": step.reward,
        "update": step.update,
        "publish": step.publish,
    }
    return {kind: process.total for kind, process in plan.processes.items()}, phases | {
        "step": step.total
    }


def activations(case: Case) -> dict[str, float]:
    """MiB of one group's update, head included, by the formula and by the high-water mark of a
    process that does nothing else."""
    from rarl.planning.memory import HEAD_CHUNK_MIB
    from rarl.planning.sizes import activation_bytes, model_shapes
    from rarl.tiny.dataset import base_model

    config = (
        model_shapes(str(base_model())) if case.model == "tiny" else model_config(case.model, None)
    )
    tokens = case.prompt + case.group * case.completion
    row = in_own_process(case.name, "shared prefix", ["--repeats", "1"])
    formula = tokens * activation_bytes(config, checkpointing=False, value_bytes=4) / 2**20
    return {"predicted": formula + 2 * HEAD_CHUNK_MIB, "measured": row["peak_mb"]}


def show(title: str, rows: dict[str, dict[str, float]], digits: int) -> None:
    table = Table(title=title)
    for column in ("", "predicted", "measured", "predicted / measured"):
        table.add_column(column, justify="right" if column else "left")
    for name, row in rows.items():
        ratio = f"{row['predicted'] / row['measured']:.2f}" if row["measured"] else ""
        count = f" ({row['count']})" if row.get("count") else ""
        table.add_row(
            name + count, f"{row['predicted']:.{digits}f}", f"{row['measured']:.{digits}f}", ratio
        )
    Console(width=100).print(table)


def main(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[CONFIG] [key=value]...")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="write the comparison there")
    ] = None,
    check_activations: Annotated[
        bool, typer.Option("--activations", help="the formula of the GPU plan")
    ] = False,
) -> None:
    if check_activations:
        rows = {name: activations(case) for name, case in CASES.items()}
        show("memory of one group's update, MiB", rows, 0)
        return
    given = list(arguments or [])
    config = (
        Path(given.pop(0))
        if given and "=" not in given[0]
        else REPOSITORY / "configs" / "demo.yaml"
    )
    found = compare(config, [*SHORT, *given])
    cores = os.cpu_count()
    show(
        f"peak memory by kind of process, MiB ({cores} cores)",
        found["memory"] | {"all": found["total"]},
        0,
    )
    show("seconds of a step; predicted: an estimate", found["step"], 3)
    print(
        f"{found['samples']} samples; completions of {found['completion_tokens']:.0f} tokens on "
        "average"
    )
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
