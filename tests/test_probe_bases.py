"""The probe of real bases: one that ships, one that knows, one that guesses; what it advises, and
whether the first steps of training are as it says."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rarl.data.parquet import write_examples
from rarl.rollout.pool import SamplerPool
from rarl.tiny.dataset import draw_examples
from rarl.training.log import read_metrics
from tests.bases import lessons, taught
from tests.runs import SHORT, rarl_here

pytestmark = pytest.mark.slow
DEMO = "configs/demo.yaml"


def probed(
    pool: SamplerPool, run: Path, *how: str
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Probes as the demo would; returns what was printed and what `probe.json` holds."""
    done = rarl_here(
        "probe", DEMO, f"run_dir={run}", *SHORT, "rollout.group_size=8", *how, pool=pool
    )
    assert done.returncode == 0, done.stderr
    return done, json.loads((run / "probe/probe.json").read_text())


def test_whoever_knows_has_nothing_to_gain(
    pool: SamplerPool, tmp_path: Path, model_path: str, processor: Any
) -> None:
    base = taught(tmp_path, lessons(640), 20, pool, model_path, processor)
    how = [f"model.adapter={base}", "--questions", "40", "-n", "8", "data.eval={}"]
    done, held = probed(pool, tmp_path / "probe", *how)
    print(done.stdout)
    assert "advice: there is nothing to gain. 100 % are right before any training." in done.stdout
    assert held["advice"] == "known"
    assert held["parts"][0]["greedy"]["mean"] >= 0.97


def test_whoever_guesses_of_lesions_is_taught_first(
    pool: SamplerPool, tmp_path: Path, model_path: str, processor: Any
) -> None:
    """It knows the body parts; of lesions it says what it says whatever is there, and one of its
    guesses is nearly always right."""
    base = taught(tmp_path, lessons(640, guesses_lesions=True), 20, pool, model_path, processor)
    how = [f"model.adapter={base}", "--questions", "96", "-n", "16", "data.eval={}"]
    done, held = probed(pool, tmp_path / "probe", *how)
    print(done.stdout)
    assert "advice: supervised fine-tuning first." in done.stdout
    assert held["advice"] == "sft"
    whole = held["parts"][0]
    assert whole["passes"]["16"]["mean"] > 0.8 and whole["mixed"]["mean"] > 0.3
    assert held["agreement"]["high"] < 0.08


@pytest.mark.long
@pytest.mark.parametrize("lesson_steps", [0, 8], ids=["shipped", "taught a little"])
def test_the_first_steps_have_as_many_groups_without_spread_as_the_probe_says(
    pool: SamplerPool, tmp_path: Path, model_path: str, processor: Any, lesson_steps: int
) -> None:
    """Within five points, by answers alone, of which many groups have none. The same questions are
    asked by both, so that few are enough."""
    data = tmp_path / "train.parquet"
    write_examples(data, draw_examples("seen", 64, 0, "train"))
    how = [f"data.train={data}", "data.eval={}", "rewards={format: 0.2, accuracy: 1.0}"]
    if lesson_steps:
        base = taught(tmp_path, lessons(480), lesson_steps, pool, model_path, processor)
        how.append(f"model.adapter={base}")
    _, held = probed(pool, tmp_path / "run", *how, "--questions", "64", "-n", "16")
    predicted = held["parts"][0]["without_spread"]["mean"]
    steps = ["rollout.group_size=8", "train.steps=5", "train.prompts_per_step=64"]
    done = rarl_here("train", DEMO, f"run_dir={tmp_path / 'run'}", *SHORT, *how, *steps, pool=pool)
    assert done.returncode == 0, done.stderr
    rows = read_metrics(tmp_path / "run/metrics.jsonl")
    found = float(np.mean([row["groups_without_spread"] for row in rows]))
    print(lesson_steps, predicted, [row["groups_without_spread"] for row in rows])
    assert len(rows) == 5 and abs(predicted - found) <= 0.05
