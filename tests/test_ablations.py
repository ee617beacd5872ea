"""The table of the ablations script, from replies with known scores."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from jobs.ablations import DATA_SETS, RECIPES, VARIANTS, pool, render, row
from rarl.config import load_config
from rarl.evaluation.prediction import Prediction, save_predictions


def prediction(index: int, correct: bool, reasoning: float | None) -> Prediction:
    image = f"image-{index // 2}"
    return Prediction(
        f"{index}", image, "closed", "q", "yes", "reason/0", "reply", "yes", True, correct, 5, reasoning=reasoning
    )


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """Two seeds: half right before, three quarters after; reasoning 0.2 before, 0.6 after, none without thinking."""
    for name, variant in VARIANTS.items():
        for seed in (0, 1):
            folder = tmp_path / f"{variant.trained_as or name}-{seed}" / "evaluation"
            for data_set in DATA_SETS:
                for label, right, reasoning in (("base", 2, 0.2), ("trained", 3, 0.6)):
                    known = None if variant.suffix else reasoning
                    replies = [prediction(i, i % 4 < right, known) for i in range(40)]
                    save_predictions(replies, folder / f"{label}-{data_set}{variant.suffix}.parquet")
    return tmp_path


def test_rows_hold_pooled_means_paired_changes_and_intervals(finished: Path) -> None:
    pooled = pool(finished, "rarl", "phantoms-seen", [0, 1])
    assert len(pooled.base) == len(pooled.trained) == len(pooled.images) == 80
    assert len(set(pooled.images)) == 40, "an image of another seed is another image"
    cells = [cell.strip() for cell in row("RARL", pooled, pooled, [0, 1]).strip("|").split("|")]
    assert cells[0] == "RARL"
    assert cells[1].startswith("50.0 → 75.0 [") and cells[2].startswith("+25.0 [")
    assert cells[3] == "20.0 → 60.0 [60.0, 60.0]" and cells[4] == "+40.0 [+40.0, +40.0]"
    assert cells[5] == "0: 75.0 / 60.0; 1: 75.0 / 60.0"
    assert cells[6] == "+0.0 [+0.0, +0.0]"
    alone = row("alone", pool(finished, "rarl-plain-inference", "phantoms-seen", [0, 1]), pooled, [0, 1])
    assert "| – | – | 0: 75.0; 1: 75.0 |" in alone


def test_a_table_can_be_made_of_the_runs_that_are_there(finished: Path) -> None:
    shutil.rmtree(finished / "rarl-no-judge-1")
    shutil.rmtree(finished / "rl-0")
    shutil.rmtree(finished / "rl-1")
    text = render(finished, [0, 1, 2], [])
    assert "| RARL, no judge | 50.0 → 75.0" in text and "| plain RL |" not in text
    [line] = {line for line in text.splitlines() if line.startswith("| RARL, no judge |")}
    assert "| 0: 75.0 / 60.0 |" in line


def test_the_page_names_command_machine_and_every_variant(finished: Path) -> None:
    text = render(finished, [0, 1], ["train.steps=4"])
    assert "`python jobs/ablations.py --seeds 0,1 train.steps=4`" in text
    assert "the seeds 0, 1 as far as they are" in text
    assert "no GPU" in text
    for variant in VARIANTS.values():
        assert text.count(f"| {variant.name} |") == len(DATA_SETS)
        if variant.override:
            assert f"`{variant.override}`" in text


@pytest.mark.parametrize("name", VARIANTS)
def test_each_variant_is_its_recipe_with_at_most_one_override(name: str) -> None:
    variant = VARIANTS[name]
    recipe = RECIPES / f"{variant.recipe}.yaml"
    config = load_config(recipe, [variant.override] if variant.override else [])
    assert (config != load_config(recipe)) == (variant.override is not None)
