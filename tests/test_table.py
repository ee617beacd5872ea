"""The table of a comparison, from replies with known scores."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
from scipy.stats import binomtest

from rarl.evaluation.prediction import Prediction, save_predictions
from rarl.evaluation.table import Line, data_table, write_tables

MODELS = {"sft": "SFT", "rarl": "RARL", "alone": "RARL & answer alone"}


def prediction(
    index: int, right: bool, reasoning: float | None, wording: str, seed: int
) -> Prediction:
    return Prediction(
        example_id=f"{index}",
        image_id=f"image-{index // 2}",
        answer_type="closed",
        question=f"question of seed {seed}",
        reference="yes",
        wording=wording,
        reply="reply",
        answer="yes" if right else "no",
        well_formed=True,
        correct=right,
        completion_tokens=5,
        reasoning=reasoning,
    )


@pytest.fixture
def lines(tmp_path: Path) -> list[Line]:
    """Two seeds of 40 questions. Right of four: the base two, SFT three, RARL all, asked for the
    answer alone three."""
    made = []
    for name, right, reasoning in (("sft", 3, 0.6), ("rarl", 4, 0.8), ("alone", 3, None)):
        wording, suffix = ("none/0", "-none") if name == "alone" else ("reason/0", "")
        folders = {
            seed: tmp_path / f"{'rarl' if name == 'alone' else name}-{seed}/evaluation"
            for seed in (0, 1)
        }
        for seed, folder in folders.items():
            for label, of_four, score in (
                ("base", 2, reasoning and 0.2),
                ("trained", right, reasoning),
            ):
                replies = [prediction(i, i % 4 < of_four, score, wording, seed) for i in range(40)]
                save_predictions(replies, folder / f"{label}-here{suffix}.parquet")
        made.append(Line(name, MODELS[name], folders, suffix))
    return made


def test_rows_are_bases_by_prompt_and_models_with_pooled_means(lines: list[Line]) -> None:
    table = data_table(lines, "here", "rarl")
    assert table is not None
    assert [row.title for row in table.rows] == [
        "base (reason)",
        "base (none)",
        "SFT",
        "RARL",
        "RARL & answer alone",
    ]
    assert [row.n for row in table.rows] == [80] * 5
    titles = [column.title for column in table.columns]
    assert titles == ["accuracy", "closed", "reasoning", "well formed", "tokens"], (
        "columns without values are left out"
    )
    means = {row.title: [cell and round(cell.mean, 6) for cell in row.cells] for row in table.rows}
    assert means["base (reason)"] == [50.0, 50.0, 20.0, 100.0, 5.0]
    assert means["SFT"] == [75.0, 75.0, 60.0, 100.0, 5.0]
    assert means["RARL & answer alone"] == [75.0, 75.0, None, 100.0, 5.0]
    assert [row.by_seed for row in table.rows][2] == "0: 75.0 / 60.0; 1: 75.0 / 60.0"


def test_the_lead_is_paired_with_mcnemars_test(lines: list[Line]) -> None:
    table = data_table(lines, "here", "rarl")
    assert table is not None
    leads = {row.title: row.lead for row in table.rows}
    assert leads["RARL"] is None
    sft, base = leads["SFT"], leads["base (reason)"]
    assert sft is not None and base is not None
    assert (sft.points, sft.won, sft.lost) == (25.0, 20, 0)
    assert sft.p == pytest.approx(binomtest(0, 20, 0.5).pvalue)
    assert (base.points, base.won, base.lost) == (50.0, 40, 0)


def test_files_are_written_in_three_forms(lines: list[Line], tmp_path: Path) -> None:
    write_tables(tmp_path, "rarl compare x.yaml", lines, ["here", "not-measured-yet"], "rarl")
    text = (tmp_path / "results.md").read_text()
    assert "`rarl compare x.yaml`" in text and "## here" in text and "not-measured-yet" not in text
    [row] = [line for line in text.splitlines() if line.startswith("| SFT |")]
    assert "| +25.0 [" in row and row.endswith("| 20 / 0 | < 0.001 |")
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    [cell] = [r for r in rows if r["model"] == "SFT" and r["metric"] == "reasoning"]
    assert (cell["data_set"], cell["mean"]) == ("here", "60.0")
    latex = (tmp_path / "results.tex").read_text()
    assert latex.startswith("\\begin{tabular}{lrr}") and "RARL \\& answer alone & 75.0" in latex
    assert latex.count("\\\\") == 2 + 5


def test_a_table_is_made_of_what_is_there(lines: list[Line]) -> None:
    shutil.rmtree(lines[0].folders[1])
    shutil.rmtree(lines[1].folders[0])
    table = data_table(lines, "here", "rarl")
    assert table is not None
    by_title = {row.title: row for row in table.rows}
    assert (by_title["SFT"].n, by_title["SFT"].by_seed) == (40, "0: 75.0 / 60.0")
    assert by_title["SFT"].lead is None, "no seed that both have"
    assert data_table(lines, "elsewhere", "rarl") is None
