"""The recipe for reports, from supervised fine-tuning to reinforcement with and without thinking,
on the tiny world's reports."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rarl.rollout.pool import SamplerPool
from rarl.training.log import read_metrics
from tests.runs import rarl_here

RECIPES = "configs/recipes/tiny"


@pytest.mark.slow
@pytest.mark.whole
def test_reports_are_learnt_with_and_without_thinking(pool: SamplerPool, tmp_path: Path) -> None:
    few = ["evaluation.max_examples=60"]
    sft = tmp_path / "sft"
    done = rarl_here(
        "sft", f"{RECIPES}/radiology_report_sft.yaml", f"run_dir={sft}", *few, pool=pool
    )
    assert done.returncode == 0, done.stderr
    tuned = json.loads((sft / "summary.json").read_text())
    before, after = (
        tuned[label]["reports"]["metrics"]["report_labels"]["mean"] for label in ("base", "trained")
    )
    assert before < 0.3 < 0.5 < after
    for name in ("radiology_report", "radiology_report_no_think"):
        run = tmp_path / name
        done = rarl_here(
            "train",
            f"{RECIPES}/{name}.yaml",
            f"run_dir={run}",
            f"model.adapter={sft}",
            "train.steps=4",
            *few,
            pool=pool,
        )
        assert done.returncode == 0, done.stderr
        rows = read_metrics(run / "metrics.jsonl")
        assert all(0 < row["reward/labels"] <= 1 for row in rows)
        measured = pq.read_table(run / "evaluation" / "model=trained" / "data=reports").to_pylist()
        assert len(measured) == 60
        thinks = ["<think>" in row["rollout/text"] for row in measured]
        assert sum(thinks) >= 55 if name == "radiology_report" else sum(thinks) <= 5
        summary = json.loads((run / "summary.json").read_text())
        assert summary["trained"]["reports"]["metrics"]["report_labels"]["mean"] > 0.5
