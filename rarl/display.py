"""What a person sees: live progress on a terminal, a few plain lines anywhere else."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from rarl.training.log import read_metrics

if TYPE_CHECKING:
    from rarl.commands.replay import Replayed

TITLE = "greedy accuracy (and reasoning score) in %, difference in points, with 95 % intervals"
LOG_WIDTH = 100  # columns, where there is no terminal to ask
PLAIN_LINES = 10  # per training run, where there is no terminal


class Display:
    """All of the program's output to people. Results can be read from files; nothing parses this.

    Writes to a copy of standard output, which stays the terminal's while the libraries' output goes
    to a log file.
    """

    def __init__(self) -> None:
        sys.stdout.flush()
        self.console = Console(file=os.fdopen(os.dup(1), "w", encoding="utf-8"), highlight=False)
        if not self.console.is_terminal:
            self.console.width = LOG_WIDTH

    def note(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, markup=False)

    @contextmanager
    def working(self, what: str) -> Iterator[None]:
        """A spinner while something of unknown length goes on."""
        if self.console.is_terminal:
            with self.console.status(f"{what} …"):
                yield
        else:
            self.note(f"{what} …")
            yield

    @contextmanager
    def counting(self, what: str, total: int) -> Iterator[Callable[[int], Any]]:
        """A bar for `total` things; yields a function that is told how many more are done."""
        if not self.console.is_terminal:
            self.note(f"{what} ({total}) …")
            yield lambda _: None
            return
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(what, total=total)
            yield lambda done: progress.advance(task, done)

    @contextmanager
    def training(self, metrics: Path, steps: int) -> Iterator[Callable[[], Any]]:
        """Follows a metrics file; yields the function that looks for news."""
        if not self.console.is_terminal:
            yield plain_lines(self, metrics, steps)
            return
        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task("starting the worker", total=steps)

            def refresh() -> None:
                rows = read_metrics(metrics)
                if rows:
                    progress.update(task, completed=rows[-1]["step"], description=describe(rows))

            yield refresh
            refresh()

    def results(self, summary: dict[str, Any]) -> None:
        """Before → after with 95 % intervals."""
        table = Table(title=TITLE, box=box.SIMPLE_HEAD)
        for column in ("data set", "n", "base", "trained", "difference"):
            table.add_column(
                column, justify="left" if column == "data set" else "right", no_wrap=True
            )
        for name, base in summary["base"].items():
            add_rows(
                table, name, base, summary["trained"].get(name), summary["difference"].get(name)
            )
        self.console.print(table)

    def measured(self, way: str, summary: dict[str, Any]) -> None:
        """One way of measuring: accuracy as in `results`, or what the options' likelihood says."""
        if way:
            self.note(f"[{way}]")
        if "difference" in summary:
            self.results(summary)
            for label in ("base", "trained"):
                for name, one in summary[label].items():
                    if found := one.get("self_consistency"):
                        self.note(
                            f"{label} on {name}: majority of {found['samples']:.0f} samples "
                            f"{100 * found['accuracy']:.1f} %, agreement {100 * found['agreement']:.1f} %, "
                            f"the surest half {100 * found['abstention']['0.5']:.1f} %"
                        )
            return
        table = Table(title="by the likelihood of the options", box=box.SIMPLE_HEAD)
        for column in (
            "model",
            "data set",
            "n",
            "accuracy in %",
            "margin in nats",
            "probability in %",
        ):
            table.add_column(column, justify="left" if column in ("model", "data set") else "right")
        for label, sets in summary.items():
            for name, one in sets.items():
                margin, (low, high) = one["margin"]["mean"], one["margin"]["ci95"]
                cells = (percent(one["accuracy"]), f"{margin:+.2f} ({low:+.2f} to {high:+.2f})")
                table.add_row(
                    label, name, str(one["accuracy"]["n"]), *cells, percent(one["probability"])
                )
        self.console.print(table)

    def replayed(self, groups: list[Replayed]) -> None:
        """A batch that stopped a run, group by group."""
        table = Table(title="each group of the batch alone", box=box.SIMPLE_HEAD)
        for column in ("group", "loss", "gradient norm", "first completion"):
            table.add_column(column)
        for number, group in enumerate(groups):
            loss, norm = (
                "not finite" if value is None else f"{value:.4g}"
                for value in (group.loss, group.grad_norm)
            )
            table.add_row(str(number), loss, norm, escape(group.completions[0]))
        self.console.print(table)

    def table(self, table: Table) -> None:
        self.console.print(table)


def add_rows(table: Table, name: str, base: dict[str, Any], trained: Any, change: Any) -> None:
    """One row for the data set's accuracy, one for each answer type where there are several, one
    for the reasoning."""
    table.add_row(name, str(base["n"]), percent(base), percent(trained), in_points(change))
    if len(base["by_type"]) > 1:
        for kind, part in base["by_type"].items():
            after = trained["by_type"][kind] if trained else None
            table.add_row(
                f"  {kind}", str(part["n"]), percent(part), percent(after), "", style="dim"
            )
    reasoning = base.get("reasoning")
    if reasoning:
        after = trained["reasoning"] if trained else None
        points = in_points(change["reasoning"]) if change else ""
        table.add_row(
            "  reasoning", str(reasoning["n"]), percent(reasoning), percent(after), points
        )


def in_points(change: dict[str, Any] | None) -> str:
    return (
        f"{change['points']:+.1f} ({change['ci95'][0]:+.1f} to {change['ci95'][1]:+.1f})"
        if change
        else ""
    )


def percent(result: dict[str, Any] | None) -> str:
    """An accuracy, or another mean in [0, 1]."""
    if result is None:
        return ""
    low, high = result["ci95"]
    value = result["accuracy"] if "accuracy" in result else result["mean"]
    return f"{100 * value:.1f} ({100 * low:.0f}–{100 * high:.0f})"


def describe(rows: list[dict[str, Any]]) -> str:
    """The mean of the last ten steps: single steps are too noisy to read."""
    recent = rows[-10:]
    seconds = sum(row["seconds/step"] for row in recent)
    tokens = sum(row["completion_tokens/total"] for row in recent)
    parts = [
        f"reward {mean(recent, 'reward/mean'):.2f}"
        if "reward/mean" in recent[-1]
        else f"loss {mean(recent, 'loss'):.3f}"
    ]
    for name in ("accuracy", "reasoning"):
        if recent[-1].get(f"reward/{name}") is not None:
            parts.append(f"{name} {mean(recent, f'reward/{name}'):.2f}")
    lost = mean(recent, "judge/unreachable") if "judge/unreachable" in recent[-1] else 0.0
    if lost:
        parts.append(f"judge away for {100 * lost:.0f} %")
    if recent[-1].get("shared_prefix") == 0:
        parts.append("slow plain pass, see logs/train-worker.log")
    return "  ".join([*parts, f"{tokens / seconds:,.0f} tokens/s"])


def mean(rows: list[dict[str, Any]], key: str) -> float:
    values = [row[key] for row in rows if row.get(key) is not None]
    return sum(values) / len(values)


def plain_lines(display: Display, metrics: Path, steps: int) -> Callable[[], Any]:
    """Prints about `PLAIN_LINES` lines over a run."""
    every = max(1, steps // PLAIN_LINES)
    printed = 0

    def refresh() -> None:
        nonlocal printed
        rows = read_metrics(metrics)
        if not rows or rows[-1]["step"] // every <= printed:
            return
        printed = rows[-1]["step"] // every
        left = mean(rows[-10:], "seconds/step") * (steps - rows[-1]["step"])
        display.note(f"step {rows[-1]['step']}/{steps}  {describe(rows)}  {left / 60:.1f} min left")

    return refresh
