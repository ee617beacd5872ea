"""The tables of results in a terminal, and their cells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich import box
from rich.table import Table

from rarl.evaluation.metrics import RELATED
from rarl.intervals import FEWEST_VALUES


def group_parts(summary: dict[str, Any]) -> Iterator[Table | str]:
    """Yields the groups of each data set and column from the worst on, those that are too small for
    a rank in grey, and a line of what they come to."""
    for data, base in summary["base"].items():
        after = summary["trained"].get(data, {}).get("groups", {})
        for column, before in base.get("groups", {}).items():
            last = after.get(column) or before
            title = f"{data} by {column}: accuracy in %, with 95 % intervals"
            table = new_table(title, (column,), ("n", before["unit"], "base", "trained"))
            for name, its in last["groups"].items():
                n, *cells, _ = row_of(before["groups"].get(name), its if after else None)
                style, mark = ("", "") if its["ranked"] else ("bright_black", " (not ranked)")
                table.add_row(f"{name}{mark}", n, str(its["units"]), *cells, style=style)
            yield table
            yield f"{'trained' if after else 'base'} on {data} {last['told']}"


def consistency_parts(summary: dict[str, Any]) -> Iterator[Table]:
    """Yields how the replies to related questions fit together, and those to paraphrases."""
    table = new_table("questions about one image, in %", ("data set",), ("n", "base", "trained"))
    for data, base in summary["base"].items():
        before, after = base["metrics"], summary["trained"].get(data, {}).get("metrics", {})
        for metric, title in RELATED.items():
            if metric in before or metric in after:
                cells = row_of(before.get(metric), after.get(metric))
                table.add_row(f"{data}: {title}", *cells[:3])
    if table.row_count:
        yield table


def new_table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    """Returns an empty table with columns of text and columns of numbers."""
    table = Table(title=title, box=box.SIMPLE_HEAD)
    for column in (*left, *right):
        table.add_column(column, justify="left" if column in left else "right", no_wrap=True)
    return table


def row_of(
    base: dict[str, Any] | None,
    trained: dict[str, Any] | None,
    change: dict[str, Any] | None = None,
) -> tuple[str, str, str, str]:
    """Returns the cells of a row: how many replies each number is of, once if all agree, then the
    numbers."""
    counts = [str(one["n"]) for one in (base, trained, change) if one]
    n = counts[0] if len(set(counts)) == 1 else " / ".join(counts)
    return n, percent(base), percent(trained), in_points(change)


def in_points(change: dict[str, Any] | None) -> str:
    """Returns a difference, with its interval unless it is of too few pairs; or nothing."""
    if not change:
        return ""
    low, high = change["ci95"]
    interval = f" ({low:+.1f} to {high:+.1f})" if change["n"] >= FEWEST_VALUES else ""
    return f"{change['points']:+.1f}{interval}"


def percent(result: dict[str, Any] | None) -> str:
    """Returns an accuracy, or another mean in [0, 1], with its interval unless it is of too few
    values; or nothing."""
    if not result:
        return ""
    low, high = result["ci95"]
    interval = f" ({100 * low:.0f}–{100 * high:.0f})" if result["n"] >= FEWEST_VALUES else ""
    value = result["accuracy"] if "accuracy" in result else result["mean"]
    return f"{100 * value:.1f}{interval}"
