"""What docs/shortcut.md asks of a finished comparison in the world with a shortcut, as Markdown.

    rarl compare configs/compare/shortcut.yaml
    python bench/shortcut.py runs/compare-shortcut [--figure docs/shortcut.svg]

The planned comparisons with their p, clear or not over the seeds; who leans on the marker; the two
conditions; the controls; plain and faint lesions. Points and shares in per cent, 95 % intervals
over pictures, seeds pooled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from rarl.errors import UserError
from rarl.evaluation.lines import TableLine, models_of, read_compared
from rarl.evaluation.report.charts import COLOURS, GREY, dot_chart
from rarl.evaluation.results import differences
from rarl.files import write_text
from rarl.intervals import change_intervals95, fraction_intervals95, holm, p_in_words
from rarl.samples import Sample

ANSWERS, RATIONALES = "SFT on answers", "SFT on rationales"
PLAIN, RARL, TAUGHT = "plain RL", "RARL on answers alone", "RARL with rationales"
METHODS = (ANSWERS, RATIONALES, PLAIN, RARL, TAUGHT)
FLOOR = "majority answer"
SEEN, INDEPENDENT, REVERSED = "shortcut-seen", "shortcut-independent", "shortcut-reversed"
CONTROLS = "shortcut-controls"
# The planned comparisons of the primary measure; the three after the first are one family.
PLANNED = {
    "main": (RARL, ANSWERS),
    "A": (RARL, PLAIN),
    "B": (TAUGHT, RATIONALES),
    "C": (TAUGHT, RARL),
}
TEMPTED, BEHIND = 10.0, -5.0  # points: who leans, and who has learnt less


@dataclass(frozen=True)
class Share:
    """A share of replies with its interval, in [0, 1]."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} ({100 * self.low:.1f} to {100 * self.high:.1f})"


Reply = tuple[int, Sample]  # with its seed


def share_of(replies: Iterable[Reply], counts: Callable[[Sample], bool] | None = None) -> Share:
    """Returns the share of the replies that count, or that are right. A picture of one seed is one
    cluster."""
    known = list(replies)
    values = [float(counts(one) if counts else one.is_right) for _, one in known]
    units = [f"{seed}/{one.example.unit}" for seed, one in known]
    [(low, high)] = fraction_intervals95([(values, units)])
    return Share(math.fsum(values) / len(values), low, high, len(values))


def apart(first: Share, second: Share) -> tuple[float, float, float]:
    """Returns how far two shares of different pictures lie apart, in points, with the interval that
    theirs come to (Newcombe 1998, method 10)."""
    points = first.mean - second.mean
    low = points - math.hypot(first.mean - first.low, second.high - second.mean)
    high = points + math.hypot(first.high - first.mean, second.mean - second.low)
    return 100 * points, 100 * low, 100 * high


def replies_of(line: TableLine, data: str, **extra: str) -> list[Reply]:
    """Returns the replies of all seeds to the questions that have this in their columns."""
    return [
        (seed, one)
        for seed, samples in line.replies[data].items()
        for one in samples
        if all(one.example.extra.get(name) == value for name, value in extra.items())
    ]


def about_lesions(line: TableLine, data: str) -> list[Reply]:
    """Returns the replies to "is there a lesion?"."""
    return [
        (seed, one)
        for seed, one in replies_of(line, data)
        if one.example.extra.get("marker") in ("agrees", "disagrees")
    ]


def planned(models: dict[str, TableLine]) -> pd.DataFrame:
    """Returns the planned comparisons on the reversed pictures."""
    rows = []
    for name, (first, second) in PLANNED.items():
        before, after = (models[one].replies[REVERSED] for one in (second, first))
        row = differences({(first, second, REVERSED): (before, after)}, ("accuracy",)).iloc[0]
        by_seed = [
            differences({("", "", ""): ({seed: before[seed]}, {seed: after[seed]})}, ("accuracy",))
            for seed in before
        ]
        seeds = [float(one["points"].iloc[0]) for one in by_seed]
        sign = (row["low"] > 0) - (row["high"] < 0)
        same = all(one * sign > 0 for one in seeds)
        found = "not seen" if not sign else "clear" if same else "dependent on the seed"
        rows.append(
            {
                "comparison": name,
                "first": first,
                "second": second,
                "first − second": f"{row['points']:+.1f} ({row['low']:+.1f} to {row['high']:+.1f})",
                "by seed": ", ".join(f"{one:+.1f}" for one in seeds),
                "p": row["p"],
                "found": found,
            }
        )
    table = pd.DataFrame(rows)
    table["p"] = list(map(p_in_words, [table["p"][0], *holm(table["p"].tolist()[1:])]))
    return table


def primary(models: dict[str, TableLine]) -> pd.DataFrame:
    """Returns, for each method, how it does where the marker misleads, and what may explain it."""
    floor = share_of(about_lesions(models[FLOOR], SEEN))
    rows = []
    for name, line in models.items():
        if name == FLOOR:
            continue
        agrees, disagrees = (
            share_of(replies_of(line, INDEPENDENT, marker=one)) for one in ("agrees", "disagrees")
        )
        points, low, high = apart(agrees, disagrees)
        seen = share_of(about_lesions(line, SEEN))
        row = {
            "line": name,
            REVERSED: str(share_of(replies_of(line, REVERSED))),
            "by seed": ", ".join(
                f"{100 * share_of([(seed, one) for one in samples]).mean:.1f}"
                for seed, samples in line.replies[REVERSED].items()
            ),
            "leaning": f"{points:+.1f} ({low:+.1f} to {high:+.1f})",
            "leans": "yes" if points >= TEMPTED and low > 0 else "no",
            "lesions, seen": str(seen),
            "above the majority": "yes" if seen.mean > floor.mean else "no",
        }
        rows.append(row)
    return pd.DataFrame(rows)


def further(models: dict[str, TableLine]) -> pd.DataFrame:
    """Returns what lesion a right reply was about, and what the marker does alone: how often "no"
    is said to pictures without a lesion."""
    rows = []
    for name, line in models.items():
        if name == FLOOR:
            continue
        row = {"line": name}
        for lesion in ("plain", "faint", "none"):
            row[f"reversed, {lesion}"] = str(share_of(replies_of(line, REVERSED, lesion=lesion)))
        for shown in ("nothing", "marker alone", "healthy", "healthy with marker"):
            own = share_of(replies_of(line, CONTROLS, shown=shown))
            row[f"no to {shown}"] = f"{100 * own.mean:.1f}"
        row["healthy − with marker"] = pair_in_words(line)
        rows.append(row)
    return pd.DataFrame(rows)


def pair_in_words(line: TableLine) -> str:
    """Returns how much oftener "no" is said to a healthy picture than to the same with a marker."""
    without, marked = (
        {
            (seed, one.example.image_id.rsplit("-", 1)[0]): float(one.is_right)
            for seed, one in replies_of(line, CONTROLS, shown=shown)
        }
        for shown in ("healthy", "healthy with marker")
    )
    changes = [value - marked[key] for key, value in without.items()]
    [(low, high)] = change_intervals95([(changes, [f"{seed}/{name}" for seed, name in without])])
    points = 100 * math.fsum(changes) / len(changes)
    return f"{points:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def draw(models: dict[str, TableLine], methods: Sequence[str], path: Path) -> None:
    """Draws lesions where the marker says the truth as in training, and where it never does."""
    rows = []
    for name, colour in zip(methods, COLOURS, strict=False):
        for data, shade in ((SEEN, GREY), (REVERSED, colour)):
            own = share_of(about_lesions(models[name], data))
            where = "as in training" if data == SEEN else "reversed"
            rows.append((f"{name}, {where}", 100 * own.mean, 100 * own.low, 100 * own.high, shade))
    chart = dot_chart("Is there a lesion? Right answers by what the marker does", rows)
    write_text(path, chart.file_text)


def main(out: Path, figure: Annotated[Path | None, typer.Option()] = None) -> None:
    compared = read_compared(out)
    if compared is None:
        raise UserError(f"{out}: `rarl compare configs/compare/shortcut.yaml` has made no tables")
    models = {one.name: one for one in models_of(compared.read_lines(out))}
    missing = [name for name in (*METHODS, FLOOR) if name not in models]
    if missing:
        raise UserError(f"{out}: {', '.join(missing)} was not measured yet; repeat `rarl compare`")
    behind = differences(
        {
            (first, second, SEEN): (models[second].replies[SEEN], models[first].replies[SEEN])
            for first, second in PLANNED.values()
        },
        ("accuracy",),
    )
    less = (behind["points"] < BEHIND) & (behind["high"] < 0)
    behind["learnt less"] = less.map({True: "yes", False: "no"})
    columns = ["model", "against", "points", "low", "high", "learnt less"]
    for title, table in (
        ("Planned comparisons", planned(models)),
        ("Where the marker misleads", primary(models)),
        ("Lesions and controls", further(models)),
        ("All questions as in training", behind[columns].round(1)),
    ):
        print(f"### {title}\n\n{table.to_markdown(index=False, disable_numparse=True)}\n")
    if figure:
        draw(models, METHODS, figure)


if __name__ == "__main__":
    typer.run(main)
