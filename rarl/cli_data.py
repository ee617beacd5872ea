"""The commands about data: converting, checking, looking, explaining, reviewing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rarl.system.processes import interruptible

if TYPE_CHECKING:
    from rarl.display import Display

data_commands = typer.Typer(help="Prepared data: look at it, check it, explain it, review it.")


def open_display() -> Display:
    from rarl.display import Display  # takes a while, and `--help` does without

    return Display()


def prepare(
    source: Annotated[
        str,
        typer.Argument(
            help="vqa-rad, slake, path-vqa, pmc-vqa, omnimedvqa, medxpertqa, silvar-med, "
            "vqa-med-2019; folder: your own; or module:function."
        ),
    ],
    src: Annotated[
        str, typer.Argument(help="Its folder, as downloaded, or its hub id, such as owner/name.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder for the Parquet files.")],
    split: Annotated[
        str, typer.Option(help="official, image-disjoint, patient-disjoint, or site:NAME.")
    ] = "official",
    test_share: Annotated[float, typer.Option(help="Of the images or patients.")] = 0.2,
    validation_share: Annotated[
        float, typer.Option(help="Of them, for a validation split; 0: none.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the disjoint splits.", min=0)] = 0,
    against: Annotated[
        Path | None, typer.Option(help="A prepared data set: leave out what it has too.")
    ] = None,
    phrases: Annotated[str, typer.Option(help="vqa-rad: phrase types to keep.")] = "freeform,para",
    language: Annotated[str, typer.Option(help="slake: en, zh or all.")] = "en",
    images: Annotated[
        str, typer.Option(help="medxpertqa: of several images, all or first.")
    ] = "all",
    version: Annotated[
        int | None, typer.Option(help="pmc-vqa: 1 or 2, where both are there.")
    ] = None,
    answers: Annotated[
        str | None, typer.Option(help="silvar-med: a prepared SLAKE, for its short answers.")
    ] = None,
    map_: Annotated[
        list[str] | None,
        typer.Option("--map", help="folder, text: a column of another name: image='Image Name'."),
    ] = None,
    slices: Annotated[
        str | None,
        typer.Option(help="folder: how many of a DICOM series, evenly spaced, or all."),
    ] = None,
    drop: Annotated[str, typer.Option(help="Of repeats,contradictions: rows to leave out.")] = "",
    facts: Annotated[
        str | None,
        typer.Option(
            help="siblings: of the other questions about the image, for the reward facts."
        ),
    ] = None,
) -> None:
    """Converts a published data set, or your own, to the Parquet files that training reads, and
    checks it."""
    from rarl.prepare.convert import prepare_dataset
    from rarl.prepare.rows import Choices

    display = open_display()
    kept = tuple(phrase.strip() for phrase in phrases.split(","))
    choices = Choices(kept, language, images, version, answers, tuple(map_ or ()), slices)
    kinds = tuple(kind.strip() for kind in drop.split(",") if kind.strip())
    with display.working(f"preparing {src}"):
        report = prepare_dataset(
            source,
            src,
            out,
            split,
            test_share,
            seed,
            choices,
            against,
            kinds,
            facts,
            validation_share,
        )
    display.note(report)


@data_commands.command(name="check")
def check_data(
    paths: Annotated[
        list[Path],
        typer.Argument(help="Prepared folders, or data sets to hold against each other."),
    ],
) -> None:
    """Looks for bad rows and for what splits or data sets share. Exits with 1 where it is not
    sound."""
    from rarl.prepare.leaks import check_datasets

    display = open_display()
    with display.working("checking"):
        report, sound = check_datasets(paths)
    display.note(report)
    if not sound:
        raise typer.Exit(1)


@data_commands.command()
def show(
    path: Annotated[Path, typer.Argument(help="A prepared folder, or one of its Parquet files.")],
) -> None:
    """Counts, frequent answers, floors, and a contact sheet of random examples."""
    from rarl.prepare.show import show_dataset

    display = open_display()
    for part in show_dataset(path):
        if isinstance(part, str):
            display.note(part)
        else:
            display.table(part)


@data_commands.command()
def explain(
    data: Annotated[Path, typer.Argument(help="A Parquet file, such as a prepared train split.")],
    out: Annotated[Path, typer.Argument(help="Folder for rationales.parquet and all replies.")],
    teacher: Annotated[
        str, typer.Option(help="An OpenAI-compatible server's URL up to /v1; or self.")
    ],
    model: Annotated[
        str,
        typer.Option(help="As the server calls it; with self, a run, or MODEL[+ADAPTER] of ours."),
    ],
    attempts: Annotated[
        int, typer.Option("-n", min=1, help="Askings without the answer, until a reply is kept.")
    ] = 4,
    send_images: Annotated[
        bool, typer.Option("--send-images", help="The images may leave this machine.")
    ] = False,
    api_key_env: Annotated[
        str | None, typer.Option(help="The environment variable that holds the server's key.")
    ] = None,
    examples: Annotated[
        int | None, typer.Option(min=1, help="So many of the questions; a later start does more.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight.")] = 8,
) -> None:
    """Asks a teacher for explanations of the reference answers, and keeps the sound ones. See
    docs/rationales.md."""
    from rarl.commands.explain import ExplainRequest
    from rarl.commands.explain import explain as explain_data

    display = open_display()
    request = ExplainRequest(
        data=data,
        out=out,
        teacher=teacher,
        model=model,
        attempts=attempts,
        send_images=send_images,
        key_variable=api_key_env,
        concurrency=concurrency,
        most=examples,
    )
    with interruptible():
        found = explain_data(request, display)
    for line in found.lines():
        display.note(line)
    display.note(f"{out / 'rationales.parquet'}, and every reply in {out / 'replies.jsonl'}")


@data_commands.command()
def review(
    out: Annotated[Path, typer.Argument(help="The folder that `rarl data explain` has made.")],
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="8020.")] = None,
    reviewer: Annotated[str | None, typer.Option(help="Whose marks these are; you.")] = None,
    apply: Annotated[
        Path | None,
        typer.Option(
            metavar="NEW.parquet", help="Read the marks back into this file, and show no page."
        ),
    ] = None,
) -> None:
    """Shows a page on which a clinician accepts, edits or rejects rationales, on this machine
    alone. See docs/rationales.md."""
    from rarl.commands.review import read_back
    from rarl.commands.review import review as show_page

    say = open_display().note
    if apply is not None:
        return read_back(out, apply, say)
    show_page(out, reviewer, port, say)
