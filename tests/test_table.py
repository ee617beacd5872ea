"""The table of a comparison, from replies with known scores."""

from __future__ import annotations

import csv
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from scipy.stats import binomtest

from rarl.evaluation.lines import ComparedModel, models_of
from rarl.evaluation.measurements import Measurement
from rarl.evaluation.results import compare_models
from rarl.evaluation.tables import comparison_table, write_tables
from rarl.schema import Verdict
from tests.records import example, reply_to, write_measurement

MODELS = {"sft": "SFT", "rarl": "RARL", "alone": "RARL & answer alone"}


@pytest.fixture
def lines(tmp_path: Path) -> list[ComparedModel]:
    """Two seeds of 40 questions. Right of four: the base two, SFT three, RARL all, asked for the
    answer alone three."""
    made = []
    for name, right, reasoning in (("sft", 3, 0.6), ("rarl", 4, 0.8), ("alone", 3, None)):
        prompt = "none" if name == "alone" else "reason"
        folders = {
            seed: tmp_path / f"{'rarl' if name == 'alone' else name}-{seed}/evaluation"
            for seed in (0, 1)
        }
        for seed, folder in folders.items():
            for label, of_four, score in (
                ("base", 2, reasoning and 0.2),
                ("trained", right, reasoning),
            ):
                replies = [
                    reply_to(
                        example(i, image_id=f"image-{i // 2}", question=f"question of seed {seed}"),
                        "yes" if i % 4 < of_four else "no",
                        {"reasoning": score, "well_formed": True},
                        f"{prompt}/0",
                    )
                    for i in range(40)
                ]
                write_measurement(folder, Measurement(label, "here", prompt), replies)
        made.append(ComparedModel(MODELS[name], folders, prompt))
    return made


def tables(
    lines: list[ComparedModel], data_set: str = "here"
) -> tuple[dict[tuple[str, str], dict[Any, Any]], dict[str, dict[Any, Any]], dict[str, Any]]:
    """Means by model and metric, leads by model, and the lines of the table as readers see it."""
    found = compare_models(models_of(lines), [data_set], "RARL")
    means, leads = (one.to_dict("records") for one in found)
    table = comparison_table(*found) if means else pd.DataFrame()
    return (
        {(row["model"], row["metric"]): row for row in means},
        {row["against"]: row for row in leads if row["metric"] == "accuracy"},
        {str(row[""]): row for row in table.to_dict("records")},
    )


def test_rows_are_bases_by_prompt_and_models_with_pooled_means(lines: list[ComparedModel]) -> None:
    means, _, table = tables(lines)
    assert list(table) == [
        "base (prompt reason)",
        "base (prompt none)",
        "SFT",
        "RARL",
        "RARL & answer alone",
    ]
    assert [row["n"] for row in table.values()] == ["80"] * 5
    titles = ["accuracy", "closed", "reasoning", "well formed", "tokens"]
    rest = ["by seed", "RARL − this", "won / lost", "p", "RARL − this, reasoning"]
    assert list(table["SFT"]) == ["", "n", *titles, *rest], "columns without values are left out"
    names = ("accuracy", "closed", "reasoning", "format", "completion_tokens")
    found = {
        model: [
            round(means[model, name]["mean"], 6) if (model, name) in means else None
            for name in names
        ]
        for model in table
    }
    assert found["base (prompt reason)"] == [0.5, 0.5, 0.2, 1.0, 5.0]
    assert found["SFT"] == [0.75, 0.75, 0.6, 1.0, 5.0]
    assert found["RARL & answer alone"] == [0.75, 0.75, None, 1.0, 5.0]
    assert table["RARL & answer alone"]["reasoning"] == "–"
    assert table["SFT"]["reasoning"].startswith("60.0 [")
    assert table["SFT"]["tokens"] == "5.0 [5.0, 5.0]"
    assert table["SFT"]["by seed"] == "0: 75.0 / 60.0; 1: 75.0 / 60.0"


def test_the_lead_is_paired_with_mcnemars_test(lines: list[ComparedModel]) -> None:
    _, leads, _ = tables(lines)
    assert "RARL" not in leads
    sft, base = leads["SFT"], leads["base (prompt reason)"]
    assert (sft["points"], sft["won"], sft["lost"]) == (25.0, 20, 0)
    assert sft["p"] == pytest.approx(binomtest(0, 20, 0.5).pvalue)
    assert (base["points"], base["won"], base["lost"]) == (50.0, 40, 0)


def test_files_are_written_in_three_forms(lines: list[ComparedModel], tmp_path: Path) -> None:
    found = compare_models(models_of(lines), ["here", "not-measured-yet"], "RARL")
    write_tables(tmp_path, "rarl compare x.yaml", *found)
    text = re.sub(" +", " ", (tmp_path / "results.md").read_text())
    assert "`rarl compare x.yaml`" in text and "## here" in text and "not-measured-yet" not in text
    [row] = [line for line in text.splitlines() if line.startswith("| SFT |")]
    assert "| +25.0 [" in row and "| 20 / 0 | < 0.001 | +20.0 [" in row
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    [cell] = [r for r in rows if r["model"] == "SFT" and r["metric"] == "reasoning"]
    assert (cell["data_set"], cell["mean"]) == ("here", "60.0")
    [lead] = [r for r in rows if r["model"] == "SFT" and r["metric"] == "RARL - this"]
    assert (lead["mean"], lead["won"], lead["lost"]) == ("25.0", "20", "0")
    [lead] = [r for r in rows if r["metric"] == "RARL - this, reasoning" and r["model"] == "SFT"]
    assert (lead["mean"], lead["p"]) == ("20.0", ""), "scores that are not whole have no p"
    latex = (tmp_path / "results.tex").read_text()
    assert latex.startswith("\\begin{tabular}{lrrr}")
    assert "RARL \\& answer alone & 80 & 75.0" in latex
    assert latex.count("\\\\") == 2 + 5


def test_a_table_is_made_of_what_is_there(lines: list[ComparedModel]) -> None:
    shutil.rmtree(lines[0].folders[1])
    shutil.rmtree(lines[1].folders[0])
    _, leads, table = tables(lines)
    assert (table["SFT"]["n"], table["SFT"]["by seed"]) == ("40", "0: 75.0 / 60.0")
    assert "SFT" not in leads and table["SFT"]["p"] == "", "no seed that both have"
    assert tables(lines, "elsewhere") == ({}, {}, {})


def test_a_measurement_that_was_interrupted_is_not_shown(lines: list[ComparedModel]) -> None:
    for marker in lines[0].folders[1].rglob("_SUCCESS"):
        marker.unlink()
    assert tables(lines)[2]["SFT"]["n"] == "40"


def test_what_the_judge_says_stands_in_every_rendering(tmp_path: Path) -> None:
    """Of four verdicts one is each of 1, 2, 3, and one could not be read."""
    verdicts = [
        *(Verdict("scored", float(one), None, None, None) for one in (1, 2, 3)),
        Verdict("unparsable", 0.0, 0.0, 0.0, 0.0),
    ]
    replies = [reply_to(example(i), "yes", verdict=verdicts[i % 4]) for i in range(40)]
    for label in ("base", "trained"):
        key = Measurement(label, "here", "reason", judge="another")
        write_measurement(tmp_path / "evaluation", key, replies)
    line = ComparedModel("RARL", {0: tmp_path / "evaluation"}, "reason", "another")
    found = compare_models(models_of([line]), ["here"], "RARL")
    table = comparison_table(*found).set_index("").loc["RARL"]
    assert table["judged accuracy"].startswith("50.0 [")
    assert table["judged score"].startswith("50.0 [")
    write_tables(tmp_path, "rarl compare x.yaml", *found)
    for name in ("results.md", "results.csv", "results.tex"):
        held = (tmp_path / name).read_text()
        assert "judged accuracy" in held and "judged score" in held, name
    unasked = models_of([replace(line, judge="none")])
    assert "judged accuracy" not in comparison_table(*compare_models(unasked, ["here"], "RARL"))
