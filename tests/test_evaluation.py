"""Intervals and summaries against independent computations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from rarl.evaluation.intervals import interval95
from rarl.evaluation.prediction import Prediction, load_predictions, save_predictions
from rarl.evaluation.summary import difference, summarise


def prediction(index: int, correct: bool, kind: str = "closed", image: str | None = None) -> Prediction:
    return Prediction(
        str(index), image or f"image-{index}", kind, "q", "yes", "plain/0", "reply", "yes", True, correct, 5
    )


def test_interval_equals_scipys_bootstrap_for_independent_questions() -> None:
    values = np.random.default_rng(0).random(300) < 0.7
    ours = interval95(values, [str(i) for i in range(300)])
    theirs = stats.bootstrap((values.astype(float),), np.mean, method="percentile", n_resamples=10_000, rng=1)
    assert ours == pytest.approx(tuple(theirs.confidence_interval), abs=0.007)


def test_questions_about_one_image_count_as_one() -> None:
    values = (np.random.default_rng(0).random(100) < 0.5).astype(float)
    alone = interval95(values, [str(i) for i in range(100)])
    repeated = interval95(np.repeat(values, 4), [str(i) for i in range(100) for _ in range(4)])
    assert repeated == pytest.approx(alone, abs=1e-9)
    assert interval95(values, [str(i) for i in range(100)]) == alone, "the same input must give the same interval"


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Clusters of unequal size with a shared difficulty."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        sizes = rng.integers(1, 4, 120)
        clusters = np.repeat(np.arange(120), sizes).astype(str).tolist()
        chance = np.repeat(rng.beta(6, 4, 120), sizes)
        low, high = interval95((rng.random(len(chance)) < chance).astype(float), clusters)
        covered += low <= 0.6 <= high
    assert 180 <= covered <= 199  # 95 % of 200, and four standard deviations


def test_summary_by_type_and_paired_difference(tmp_path: Any) -> None:
    before = [prediction(i, i % 2 == 0, "closed" if i < 40 else "open", f"image-{i // 2}") for i in range(100)]
    after = [prediction(i, i % 2 == 0 or i % 5 == 0, p.answer_type, p.image_id) for i, p in enumerate(before)]
    summary = summarise(before)
    assert (summary["n"], summary["accuracy"], summary["well_formed"]) == (100, 0.5, 1.0)
    assert {kind: part["n"] for kind, part in summary["by_type"].items()} == {"closed": 40, "open": 60}
    change = difference(before, after)
    assert change["points"] == pytest.approx(10.0)
    assert 0 < change["ci95"][0] < 10 < change["ci95"][1]
    with pytest.raises(ValueError, match="not of the same questions"):
        difference(before, after[::-1])
    save_predictions(before, tmp_path / "p.parquet")
    assert load_predictions(tmp_path / "p.parquet") == before
