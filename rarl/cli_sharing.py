"""The commands about adapters that leave their run: merging, federations, whole models, a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rarl.cli_data import open_display
from rarl.system.processes import interruptible


def merge(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Run directories, or PEFT folders.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the merged adapter.")],
    weights: Annotated[
        str, typer.Option(help="Shares by hand, such as 0.3,0.7; else by answer tokens.")
    ] = "",
    validation: Annotated[
        str, typer.Option(help="Shares by exp(1 - loss) on these data, a Parquet file.")
    ] = "",
    exact: Annotated[
        bool, typer.Option("--exact", help="The average of the changes themselves, of all ranks.")
    ] = False,
    rank: Annotated[
        int | None, typer.Option(min=1, help="The same, cut back to this rank by SVD.")
    ] = None,
) -> None:
    """Makes one adapter of several, such as those of several sites."""
    from rarl.commands.merge import merge as merge_runs
    from rarl.sharing.members import next_round, told

    display = open_display()
    with interruptible():
        origin = merge_runs(runs, out, weights, validation, exact, rank, display)
    for line in (*told(origin), f"merged adapter {out}", next_round(out)):
        display.note(line)


def federate(
    federation: Path,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="out=FOLDER, seeds=0,1 and rounds=3 are the federation's; every other key=value "
            "goes to every training."
        ),
    ] = None,
) -> None:
    """Trains at several sites in rounds, merges after each, measures all, and makes one table."""
    from rarl.commands.federate import federate as federate_sites
    from rarl.evaluation.report import write_report

    display = open_display()
    with interruptible():
        out = federate_sites(federation, overrides or [], display.note)
        report_path = write_report(out)
    display.note(f"tables {out / 'results.md'}, .csv and .tex; report {report_path}")


def export(
    run: Annotated[str, typer.Argument(help="A run directory, or a PEFT folder.")],
    merged: Annotated[Path, typer.Option(help="Folder for base and adapter as one model.")],
    dtype: Annotated[
        str, typer.Option(help="float32, or shorter: bfloat16, float16, which rounds.")
    ] = "float32",
    gguf: Annotated[
        bool, typer.Option("--gguf", help="As GGUF too, by llama.cpp's converter on the PATH.")
    ] = False,
) -> None:
    """Writes base and adapter as one model with its card, for transformers and vLLM."""
    from rarl.commands.export import export as export_run

    display = open_display()
    with interruptible():
        export_run(run, merged, dtype, gguf, display)


def push(
    target: Annotated[
        str, typer.Argument(metavar="RUN", help="A run directory, a PEFT folder, or an export.")
    ],
    repo: Annotated[str, typer.Argument(help="owner/name on the hub.")],
    public: Annotated[
        bool, typer.Option("--public", help="A repository that is made is for everybody.")
    ] = False,
) -> None:
    """Uploads an adapter with its card, or an exported model, to a hub."""
    from rarl.commands.export import push as push_run

    display = open_display()
    with interruptible():
        push_run(target, repo, public, display)
