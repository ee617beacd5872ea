"""What a person sees: live progress on a terminal, a few plain lines anywhere else."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
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

from rarl.display_tables import (
    consistency_parts,
    group_parts,
    in_points,
    new_table,
    percent,
    row_of,
)
from rarl.evaluation.metrics import COLUMNS, IN_TERMINAL
from rarl.evaluation.probe import ADVICE, Probe, advise
from rarl.intervals import FEWEST_VALUES
from rarl.training.alarms import alarms
from rarl.training.log import read_metrics

if TYPE_CHECKING:
    from rarl.commands.replay import Replayed
    from rarl.commands.tune import Trial

TITLE = "accuracy (and reasoning score) in %, difference in points, with 95 % intervals"
LOG_WIDTH = 100  # columns, where there is no terminal to ask
PLAIN_LINES = 10  # at least, per training run, where there is no terminal
QUIET_SECONDS = 30.0  # that training is without a line there


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
        """Prints one line."""
        self.console.print(text, soft_wrap=True, markup=False)

    @contextmanager
    def working(self, what: str) -> Iterator[None]:
        """Shows a spinner while something of unknown length goes on."""
        if self.console.is_terminal:
            with self.console.status(f"{what} …"):
                yield
        else:
            self.note(f"{what} …")
            yield

    @contextmanager
    def counting(self, what: str, total: int) -> Iterator[Callable[[int], Any]]:
        """Shows a bar for `total` things; yields a function that is told how many more are
        done."""
        if not self.console.is_terminal:
            self.note(f"{what} ({total}) …")
            yield lambda _: None
            return
        text = TextColumn("{task.description}")
        columns = (SpinnerColumn(), text, BarColumn(), MofNCompleteColumn())
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(what, total=total)
            yield lambda done: progress.advance(task, done)

    @contextmanager
    def telling(self, what: str, total: int) -> Iterator[Callable[[int, str], Any]]:
        """Shows how many of `total` things are done, and more; yields a function that is told both.
        Without a terminal that is a line each `QUIET_SECONDS`."""
        if not self.console.is_terminal:
            self.note(f"{what} ({total}) …")
            since = time.monotonic()

            def line(done: int, more: str) -> None:
                nonlocal since
                if time.monotonic() - since >= QUIET_SECONDS:
                    since = time.monotonic()
                    self.note(f"{what} {done}/{total}  {more}")

            yield line
            return
        columns = (TextColumn(escape(what)), BarColumn(), MofNCompleteColumn())
        told = TextColumn("{task.fields[more]}", markup=False)
        with Progress(*columns, told, console=self.console, transient=True) as progress:
            task = progress.add_task(what, total=total, more="")
            yield lambda done, more: progress.update(task, completed=done, more=more)

    @contextmanager
    def training(self, metrics: Path, steps: int) -> Iterator[Callable[[], Any]]:
        """Follows a metrics file; yields the function that looks for news, and says what is
        wrong, once."""
        told = set[str]()

        def warn() -> None:
            for about, sentence in alarms(read_metrics(metrics)).items():
                if about not in told:
                    self.note(f"warning: {sentence}")
                told.add(about)

        if not self.console.is_terminal:
            show = plain_lines(self, metrics, steps)

            def refresh_lines() -> None:
                show()
                warn()

            yield refresh_lines
            warn()
            return
        bar = (TextColumn("training"), BarColumn(), MofNCompleteColumn())
        columns = (*bar, TextColumn("{task.description}"), TimeRemainingColumn())
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task("starting the worker", total=steps)

            def refresh() -> None:
                rows = read_metrics(metrics)
                if rows:
                    progress.update(task, completed=rows[-1]["step"], description=means_of(rows))
                warn()

            yield refresh
            refresh()

    def results(self, summary: dict[str, Any]) -> None:
        """Prints before → after with 95 % intervals: a row for each data set's accuracy, one for
        each answer type if there are several, those for reasoning, boxes, reports and a judge, and
        one for each floor and other prompt that the model is set against."""
        measured = [*summary["base"].values(), *summary["trained"].values()]
        drawn = [one["self_consistency"] for one in measured if "self_consistency" in one]
        how = f"of {drawn[0]['samples']:.0f} samples, the first's" if drawn else "greedy"
        table = new_table(f"{how} {TITLE}", ("data set",), ("n", "base", "trained", "difference"))
        for name, base in summary["base"].items():
            after = summary["trained"].get(name, {})
            change = summary["difference"].get(name, {})
            table.add_row(name, *row_of(base, after, change))
            for kind, part in base["by_type"].items() if len(base["by_type"]) > 1 else ():
                own = after.get("by_type", {}).get(kind)
                table.add_row(f"  {kind}", *row_of(part, own), style="dim")
            own, moved = after.get("reasoning"), change.get("reasoning")
            if base.get("reasoning") or own:
                table.add_row("  reasoning", *row_of(base.get("reasoning"), own, moved))
            for metric in IN_TERMINAL:
                parts = [one.get("metrics", {}).get(metric) for one in (base, after)]
                if any(parts):
                    table.add_row(f"  {COLUMNS[metric]}", *row_of(*parts), style="dim")
            for kind, label in (("floors", "no image: "), ("other_prompts", "")):
                for what, one in summary.get(kind, {}).get(name, {}).items():
                    cells = row_of(one, None, one["model_minus_this"])
                    table.add_row(f"  {label}{what}", *cells, style="dim")
            for kind, part in base.get("by_ability", {}).items():
                own = after.get("by_ability", {}).get(kind)
                table.add_row(f"  {kind} questions", *row_of(part, own), style="dim")
        self.console.print(table)
        self.parts(group_parts(summary))
        for name, change in summary["difference"].items():
            if change["clear"] and change["form"]["mostly"]:
                self.note(f"{name}: {change_in_words(change)}")

    def measured(self, way: str, summary: dict[str, Any]) -> None:
        """Prints one way of measuring: accuracy as in `results`, or the options' likelihood."""
        if way:
            self.note(f"{way}:")
        if "difference" not in summary:
            self.options(summary)
            return
        self.results(summary)
        if "medevalkit" in summary:
            self.medevalkit(summary["medevalkit"])
        self.parts(consistency_parts(summary))
        for label, by_data in summary.get("with_image_minus_this", {}).items():
            for name, change in by_data.items():
                told = f"with image minus without {in_points(change)}, n {change['n']}"
                self.note(f"{label} on {name}: {told}")
        for label in ("base", "trained"):
            for name, one in summary[label].items():
                if found := one.get("self_consistency"):
                    majority = f"majority of {found['samples']:.0f} samples {found['accuracy']:.1%}"
                    told = f"{majority}, agreement {found['agreement']:.1%}, the surest half"
                    told += f" {found['abstention']['0.5']:.1%}, n {found['n']}"
                    self.note(f"{label} on {name}: {told.replace('%', ' %')}")

    def medevalkit(self, scores: dict[str, Any]) -> None:
        """Prints what MedEvalKit would, by model and data set."""
        parts = ("total", "close", "open", "choice")
        numbers = (*parts, "open bleu1", "rouge1", "recall", "stops at")
        table = new_table("as MedEvalKit counts, in %", ("model", "data set"), numbers)
        for model, by_data in scores.items():
            for name, one in by_data.items():
                told = [one[part]["acc"] if part in one else None for part in parts]
                opened = one.get("open", {})
                told[2] = opened.get("em")
                told += [opened.get(score) for score in ("bleu1", "rouge1", "f1")]
                cells = ["–" if value is None else f"{100 * value:.1f}" for value in told]
                table.add_row(model, name, *cells, str(one["ends"]))
                if judged := one.get("judged"):
                    cells = [f"{100 * judged[p]['acc']:.1f}" if p in judged else "–" for p in parts]
                    if (own := judged.get("open")) is not None:
                        cells[2] = f"{100 * own['right'] / own['total']:.1f}"
                    table.add_row("", "  with the judge", *cells, "", "", "", "", style="dim")
        self.console.print(table)

    def options(self, summary: dict[str, Any]) -> None:
        """Prints what the likelihood of the options says."""
        numbers = ("n", "accuracy in %", "margin in nats", "probability in %")
        table = new_table("by the likelihood of the options", ("model", "data set"), numbers)
        for label, sets in summary.items():
            for name, one in sets.items():
                margin, (low, high) = one["margin"]["mean"], one["margin"]["ci95"]
                known = one["margin"]["n"] >= FEWEST_VALUES
                interval = f" ({low:+.2f} to {high:+.2f})" if known else ""
                cells = (percent(one["accuracy"]), f"{margin:+.2f}{interval}")
                count = str(one["accuracy"]["n"])
                table.add_row(label, name, count, *cells, percent(one["probability"]))
        self.console.print(table)

    def probed(self, found: Probe) -> None:
        """Prints what a probe found, and its advice."""
        first = found.parts[0]
        shares = (*(f"pass@{k}" for k in found.ks), "well formed", "mixed groups")
        numbers = ("n", "greedy", *shares, "kappa")
        title = "the untrained model's replies in %, with a 95 % interval of the greedy ones"
        table = new_table(title, ("data set",), numbers)
        for one in found.parts:
            whole = one.kind == "all"
            rates = (*(one.passes[k] for k in found.ks), one.well_formed, one.mixed)
            cells = [str(one.greedy), *(f"{100 * rate.mean:.1f}" for rate in rates)]
            cells.append("–" if one.agreement is None else f"{one.agreement.mean:.2f}")
            name = one.data if whole else f"  {one.kind}"
            table.add_row(name, str(one.questions), *cells, style="" if whole else "dim")
        self.console.print(table)
        numbers = ("pays on average", "silent in %", "groups of one value in %")
        table = new_table("the rewards of training", ("reward",), numbers)
        for name, pay in found.rewards.items():
            mean = "–" if pay.mean is None else f"{pay.mean:.2f}"
            percents = (f"{100 * one:.0f}" for one in (pay.silent, pay.without_spread))
            table.add_row(name, mean, *percents)
        if first.without_spread is not None:
            table.add_row("all together", "", "", f"{100 * first.without_spread.mean:.0f}")
        self.console.print(table)
        for data, floors in found.floors.items():
            told = ", ".join(f"{name} {100 * value:.1f}" for name, value in floors.items())
            self.note(f"{data} without any image: {told}")
        advice, reason = advise(found, first.data)
        self.note(f"advice: {ADVICE[advice]}. {reason[0].upper()}{reason[1:]}.")

    def tuned(self, trials: Sequence[Trial]) -> None:
        """Prints what each short run came to, and which one to take."""
        from rarl.commands.tune import best_of, choice_in_words

        data = trials[0].data
        numbers = (*((f"accuracy on {data}", "flips") if data else ()), "reward", "movement")
        numbers += ("groups of one reward",)
        table = new_table("after the last step, in %; the reward as it is", ("set",), numbers)
        for one in trials:
            cells = [str(one.accuracy or "–"), f"{100 * (one.flips or 0.0):.1f}"] if data else []
            cells += [f"{one.reward:.2f}", f"{100 * one.movement:.3g}"]
            table.add_row(", ".join(one.settings), *cells, f"{100 * one.without_spread:.0f}")
        self.console.print(table)
        self.note(choice_in_words(*best_of(trials)))

    def replayed(self, groups: list[Replayed]) -> None:
        """Prints a batch that stopped a run, group by group."""
        table = Table(title="each group of the batch alone", box=box.SIMPLE_HEAD)
        for column in ("group", "loss", "gradient norm", "first completion"):
            table.add_column(column)
        for number, group in enumerate(groups):
            values = (group.loss, group.grad_norm)
            cells = ("not finite" if value is None else f"{value:.4g}" for value in values)
            table.add_row(str(number), *cells, escape(group.completions[0]))
        self.console.print(table)

    def table(self, table: Table) -> None:
        """Prints a table that somebody else has made."""
        self.console.print(table)

    def parts(self, parts: Iterable[Table | str]) -> None:
        """Prints tables and lines."""
        for part in parts:
            if isinstance(part, str):
                self.note(part)
            else:
                self.table(part)


def change_in_words(change: dict[str, Any]) -> str:
    """Returns what of a difference is form."""
    form = change["form"]
    told = (
        f"{form['points']:+.1f} of the {change['points']:+.1f} points come with the form: they are"
    )
    told += " on questions of which a reply, before or after, has not the form that was asked for"
    both = form["both_well_formed"]
    if both is None:
        return f"{told}; there are no others"
    return f"{told}; on the {both['n']} others the difference is {in_points(both)}"


def means_of(rows: list[dict[str, Any]]) -> str:
    """Returns the means of the last ten steps, since single steps are too noisy to read, and in how
    many of them a reward had nothing to score."""
    recent = rows[-10:]
    seconds = sum(row["seconds/step"] for row in recent)
    tokens = sum(row["completion_tokens/total"] for row in recent)
    rewarded = "reward/mean" in recent[-1]
    reward = f"reward {mean(recent, 'reward/mean'):.2f}" if rewarded else ""
    over = f"mean of {len(recent)} steps: " if len(recent) > 1 else ""
    parts = [over + (reward or f"loss {mean(recent, 'loss'):.3f}")]
    for key in (key for key in recent[-1] if key.startswith("reward/")):
        name = key.removeprefix("reward/")
        silent = sum(row.get(key) is None for row in recent)
        if name in ("accuracy", "reasoning") and silent < len(recent):
            parts.append(f"{name} {mean(recent, key):.2f}")
        if silent:
            parts.append(f"{name} scored nothing in {silent} of {len(recent)} steps")
    parts += measured_in_words(rows)
    lost = mean(recent, "judge/unreachable")
    if lost:
        parts.append(f"judge away for {100 * lost:.0f} %")
    if recent[-1].get("shared_prefix") == 0:
        parts.append("slow plain pass, see logs/train-worker.log")
    return "  ".join([*parts, f"{tokens / seconds:,.0f} tokens/s"])


def measured_in_words(rows: list[dict[str, Any]]) -> list[str]:
    """Returns what was measured on the way last: the accuracy in %, with its interval, for each
    data set."""
    told = []
    for key in (one for one in rows[-1] if re.fullmatch("eval/.+/accuracy", one)):
        known = [row for row in rows if row.get(key) is not None]
        if not known:
            continue
        low, high = (known[-1].get(f"{key}/{end}") for end in ("low", "high"))
        interval = "" if low is None or high is None else f" ({100 * low:.0f}–{100 * high:.0f})"
        name = key.removeprefix("eval/").removesuffix("/accuracy")
        told.append(f"{name} {100 * known[-1][key]:.0f} %{interval}")
    return told


def mean(rows: list[dict[str, Any]], key: str) -> float:
    """Returns the mean of the values that are there; 0 where there are none."""
    values = [row[key] for row in rows if row.get(key) is not None]
    return sum(values) / len(values) if values else 0.0


def plain_lines(display: Display, metrics: Path, steps: int) -> Callable[[], Any]:
    """Returns a function that prints a line when there is news: at least `PLAIN_LINES` in a run,
    and after `QUIET_SECONDS` what there is, if only that a step is still under way."""
    every = max(1, steps // PLAIN_LINES)
    before = read_metrics(metrics)
    printed = before[-1]["step"] if before else 0
    since = arrived = time.monotonic()
    seen = printed

    def refresh() -> None:
        nonlocal printed, since, seen, arrived
        rows, now = read_metrics(metrics), time.monotonic()
        step = rows[-1]["step"] if rows else 0
        if step != seen:
            seen, arrived = step, now
        quiet = now - since >= QUIET_SECONDS
        if step // every > printed // every or (quiet and step > printed):
            left = mean(rows[-10:], "seconds/step") * (steps - step)
            display.note(f"step {step}/{steps}  {means_of(rows)}  {left / 60:.1f} min left")
        elif quiet:
            display.note(f"step {step + 1}/{steps} under way for {now - arrived:.0f} s")
        else:
            return
        printed, since = step, now

    return refresh
