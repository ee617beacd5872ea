"""A comparison's table as Markdown, CSV and LaTeX: renderings of what `compare_models` returns."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rarl.evaluation.claims import CheckedClaim
from rarl.evaluation.consistency import ABILITY
from rarl.evaluation.group_table import groups_in
from rarl.evaluation.groups import FEWEST_UNITS, GAP
from rarl.evaluation.metrics import COLUMNS, RELATED, UNBOUNDED, WORDS
from rarl.evaluation.results import IN_FORM, WITH_IMAGE
from rarl.files import write_text
from rarl.intervals import FEWEST_VALUES, p_in_words

OF_GROUPS: dict[str, str] = WORDS["of_groups"]  # further ones, in the tables of groups
# How the column of a difference ends, by its metric.
OF_LEADS = {"accuracy": "", IN_FORM: ", both well formed", "reasoning": ", reasoning"}


def write_tables(
    out: Path,
    command: str,
    means: pd.DataFrame,
    leads: pd.DataFrame,
    claims: Sequence[CheckedClaim] = (),
) -> None:
    """Writes `results.md`, `results.csv` and `results.tex` into the folder `out`, from what
    `compare_models` returns; they were made by `command`. `claims` are the first table of the
    Markdown."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    machine = f"{os.cpu_count()} cores of {names[0] if names else platform.processor()}"
    text = ["# Results", "", f"`{command}`, {machine}.", "", WORDS["about"]]
    if claims:
        rows = pd.DataFrame([one.cells() for one in claims])
        told = rows.to_markdown(index=False, disable_numparse=True)
        text += ["", f"## {WORDS['claims']['title']}", "", WORDS["claims"]["about"], "", told]
    for data in means["data"].unique():
        own, lead = (side[side["data"] == data] for side in (means, leads))
        table = comparison_table(own, lead).to_markdown(index=False, disable_numparse=True)
        text += ["", f"## {data}", "", table]
        for title, further in further_tables(own):
            shown_as = further.to_markdown(index=False, disable_numparse=True)
            text += ["", f"### {data}, {title}", "", shown_as]
    write_text(out / "results.md", "\n".join(text) + "\n")
    write_text(out / "results.csv", to_csv(means, leads))
    write_text(out / "results.tex", to_latex(means, leads))


def shown(means: pd.DataFrame, titles: Mapping[str, str] = COLUMNS) -> pd.DataFrame:
    """Returns the rows of these metrics, in per cent but for tokens and nats, with the titles of
    their metrics."""
    rows = means[means["metric"].isin(titles.keys())].copy()
    scale = np.where(rows["metric"].isin(list(UNBOUNDED)), 1.0, 100.0)
    for name in ("mean", "low", "high"):
        rows[name] *= scale
    return rows.assign(metric=rows["metric"].map(titles))


def further_tables(means: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yields the tables of one data set below that of a comparison, each with its title: how the
    replies to one image's questions fit together, then the groups of each column."""
    rows = shown(means[means["by"] == "all"], RELATED)
    if len(rows):
        rows["text"] = [with_n("{:.1f} [{:.1f}, {:.1f}]", row) for row in rows.to_dict("records")]
        table = rows.pivot(index="model", columns="metric", values="text").fillna("–")
        titles = [one for one in RELATED.values() if one in table]
        lines = [one for one in means["model"].unique() if one in table.index]
        table = table.loc[lines, titles].rename_axis(index="", columns=None)
        yield "questions about one image", table.reset_index()
    for column in means["by"].unique():
        own = means[means["by"] == column]
        if column != "all" and own["group"].nunique() > 1:
            yield f"by {column}", group_table(own)


def group_table(means: pd.DataFrame) -> pd.DataFrame:
    """Returns the groups of one column and data set as text: a line for each group and metric, and
    for how far the groups lie apart, with a column for each model. A line names the worst of the
    groups that are ranked, and how likely chance alone would bring it so far below the others."""
    rows = shown(means, COLUMNS | OF_GROUPS)
    rows["text"] = [with_n("{:.1f} [{:.1f}, {:.1f}]", row) for row in rows.to_dict("records")]
    small = ~rows["ranked"] & (rows["group"] != GAP) & rows["by"].ne(ABILITY)
    rows["group"] += np.where(small & (rows["units"] < FEWEST_UNITS), " (not ranked)", "")
    table = rows.pivot(index=["metric", "group"], columns="model", values="text").fillna("–")
    order = rows[["metric", "group"]].drop_duplicates()
    table = table.loc[list(order.itertuples(index=False, name=None)), means["model"].unique()]
    table = table.rename_axis(index=["metric", "group"], columns=None).reset_index()
    worst = {"metric": "accuracy", "group": "worst"}
    for model, own in means.groupby("model", sort=False):
        last = groups_in(own, own["by"].iloc[0], "").worst
        if last is not None:
            worst[str(model)] = f"{last.name} ({p_in_words(last.p['accuracy'])})"
    if len(worst) == 2:
        return table
    first = table["metric"] == "accuracy"
    return pd.concat([table[first], pd.DataFrame([worst]), table[~first]]).fillna("")


def with_n(form: str, row: Mapping[Any, Any]) -> str:
    """Returns mean, interval and n of a row."""
    return f"{cell(form, *(row[name] for name in ('n', 'mean', 'low', 'high')))} (n={row['n']})"


def cell(form: str, n: int, mean: float, low: float, high: float) -> str:
    """Returns mean and interval in a form such as "{:.1f} [{:.1f}, {:.1f}]", or the mean alone if
    it is of too few for an interval."""
    return (form if n >= FEWEST_VALUES else form.split()[0]).format(mean, low, high)


def texts(rows: pd.DataFrame, form: str) -> list[str]:
    """Returns the `cell` of each row, and its n where it is another than that of the line's
    accuracy."""
    accuracy = rows[rows["metric"] == COLUMNS["accuracy"]]
    lines = zip(accuracy["model"], accuracy["data"], strict=True)
    counts = dict(zip(lines, accuracy["n"], strict=True))
    names = ["model", "data", "n", "mean", "low", "high"]
    return [
        cell(form, n, mean, low, high) + ("" if n == counts.get((model, data), n) else f" (n={n})")
        for model, data, n, mean, low, high in rows[names].itertuples(index=False, name=None)
    ]


def comparison_table(means: pd.DataFrame, leads: pd.DataFrame) -> pd.DataFrame:
    """Returns one data set's table as text: a line for each model, a column for each metric that
    any has, and the differences of `compare_models`."""
    means = means[means["by"] == "all"]
    rows = shown(means)
    rows["text"] = texts(rows, "{:.1f} [{:.1f}, {:.1f}]")
    table = rows.pivot(index="model", columns="metric", values="text").fillna("–")
    table = table[[title for title in COLUMNS.values() if title in table]]
    accuracy, reasoning = (
        means[means["metric"] == metric].set_index("model") for metric in ("accuracy", "reasoning")
    )
    table = table.loc[accuracy.index]
    table.insert(0, "n", accuracy["n"].astype(str))
    for model, by_seed in accuracy["seeds"].items():
        further = reasoning["seeds"].get(model, {})
        seeds = [
            f"{seed}: {100 * mean:.1f}" + (f" / {100 * further[seed]:.1f}" if further else "")
            for seed, mean in by_seed.items()
        ]
        table.loc[model, "by seed"] = "; ".join(seeds)
    whole = leads[leads["metric"] == "accuracy"].set_index(["model", "against"])["n"]
    for _, lead in leads.iterrows():
        points, low, high = lead[["points", "low", "high"]]
        n = "" if str(lead["n"]) == table.loc[lead["against"], "n"] else f" (n={lead['n']})"
        text = cell("{:+.1f} [{:+.1f}, {:+.1f}]", lead["n"], points, low, high) + n
        # where all replies have their form it would say the same again
        if lead["metric"] == IN_FORM and lead["n"] == whole[lead["model"], lead["against"]]:
            continue
        table.loc[lead["against"], f"{lead['model']} − this{OF_LEADS[lead['metric']]}"] = text
        if lead["metric"] == "accuracy" and lead["model"] != WITH_IMAGE:
            p = f"{lead['p']:.3f}" if lead["p"] >= 0.001 else "< 0.001"
            table.loc[lead["against"], ["won / lost", "p"]] = (f"{lead['won']} / {lead['lost']}", p)
    return table.fillna("").rename_axis(index="", columns=None).reset_index()


def to_csv(means: pd.DataFrame, leads: pd.DataFrame) -> str:
    """Returns one line for each number: data set, model, metric, n, mean and interval; where groups
    were compared, also the column and the group, and how likely chance alone would bring it so far
    from the others."""
    named = leads["model"] + " - this" + leads["metric"].map(OF_LEADS)
    ahead = leads.assign(metric=named, model=leads["against"])
    ahead["p"] = ["" if pd.isna(p) else f"{p:.4g}" for p in leads["p"]]
    told = shown(means, COLUMNS | OF_GROUPS | RELATED)
    told["p"] = ["" if pd.isna(p) else f"{p:.4g}" for p in told["p"]]
    table = pd.concat([told, ahead.rename(columns={"points": "mean"})])
    names = {"data": "data_set", "model": "model", "metric": "metric", "n": "n", "mean": "mean"}
    names |= {"low": "low95", "high": "high95"}
    if len(leads):
        names |= {name: name for name in ("won", "lost", "p")}
        table = table.astype({"won": "Int64", "lost": "Int64"})
    if (told["by"] != "all").any():
        names |= {name: name for name in ("p", "by", "group", "units")}
        table = table.fillna({"by": "all", "group": "all"}).astype({"units": "Int64"})
    table = table[list(names)].rename(columns=names).round(4)
    return str(table.to_csv(index=False, lineterminator="\n"))


def to_latex(means: pd.DataFrame, leads: pd.DataFrame) -> str:
    """Returns one table: n, accuracy, reasoning and what a judge says, with their intervals, for
    each data set, and how far a model with the image is ahead of a control, where controls were
    measured (booktabs)."""
    means = means[means["by"] == "all"]
    rows = shown(means)
    rows["text"] = texts(rows, "{:.1f} {{\\scriptsize [{:.1f}, {:.1f}]}}")
    counts = rows[rows["metric"] == "accuracy"].assign(metric="n")
    counts["text"] = counts["n"].astype(str)
    ahead = leads[(leads["model"] == WITH_IMAGE) & (leads["metric"] == "accuracy")]
    ahead = ahead.assign(metric=f"{WITH_IMAGE} $-$ this", model=ahead["against"])
    numbers = zip(*(ahead[name] for name in ("n", "points", "low", "high")), strict=True)
    ahead["text"] = [cell("{:+.1f} {{\\scriptsize [{:+.1f}, {:+.1f}]}}", *one) for one in numbers]
    judged = [COLUMNS[one] for one in ("judged_accuracy", "judge_correctness")]
    known = [title for title in judged if title in set(rows["metric"])]
    titles = ["n", "accuracy", "reasoning", *known, *ahead["metric"].unique()]
    columns = [(data, one) for data in means["data"].unique() for one in titles]
    rows = pd.concat([counts, rows, ahead])
    table = rows.pivot(index="model", columns=["data", "metric"], values="text")
    table = table.reindex(index=means["model"].unique(), columns=columns).fillna("--")
    table = table.rename(index=escape, columns=escape, level=0).rename_axis((None, None), axis=1)
    form = "l" + "r" * len(columns)
    table = table.rename_axis(None)
    return str(table.to_latex(column_format=form, multicolumn_format="c", escape=False))


def escape(text: str) -> str:
    """Returns a text for LaTeX."""
    return "".join(f"\\{char}" if char in "&%$#_{}" else char for char in text)
