"""The probe of real bases that know more or less than the one that ships, and whether the first
steps of training are as it says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rarl.data.images import png_bytes
from rarl.data.parquet import write_examples
from rarl.rollout.pool import SamplerPool
from rarl.schema import Example
from rarl.tiny.dataset import draw_examples
from rarl.training.log import read_metrics
from tests.runs import SHORT, rarl_here, train_here

pytestmark = [pytest.mark.slow, pytest.mark.whole]
DEMO = "configs/demo.yaml"
ASKED = 64


@pytest.fixture(scope="module")
def asked() -> list[Example]:
    return draw_examples("seen", ASKED, 0, "train")


def taught(
    folder: Path, lessons: Sequence[Example], steps: int, pool: SamplerPool, *model: Any
) -> Path:
    """Returns the run directory whose adapter on the tiny base has learnt what the lessons say."""
    data = folder / "lessons.parquet"
    write_examples(data, lessons)
    how = ["method=sft", f"train.steps={steps}", "train.prompts_per_step=32"]
    how += ["train.learning_rate=0.003", "train.schedule=cosine", f"train.checkpoint_every={steps}"]
    run_dir, run = train_here(pool, folder / "run", data, *model, *how)
    assert run() == steps
    return run_dir.path


def probe(
    folder: Path, asked: Sequence[Example], pool: SamplerPool, *how: str
) -> tuple[str, dict[str, Any]]:
    """Returns what the demo's probe prints, and what `probe.json` holds."""
    data = folder / "train.parquet"
    write_examples(data, asked)
    how = (f"data.train={data}", "data.eval={}", *SHORT, "rollout.group_size=8", *how)
    more = ("--questions", str(len(asked)), f"run_dir={folder}/probed")
    done = rarl_here("probe", DEMO, *how, *more, pool=pool)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((folder / "probed/probe/probe.json").read_text())


def test_whoever_knows_has_nothing_to_gain(
    pool: SamplerPool, asked: list[Example], tmp_path: Path, model_path: str, processor: Any
) -> None:
    """It is asked what it was taught."""
    base = taught(tmp_path, asked, 60, pool, model_path, processor)
    printed, held = probe(tmp_path, asked, pool, f"model.adapter={base}", "-n", "4")
    assert held["advice"] == "known"
    assert "advice: there is nothing to gain." in printed
    assert held["parts"][0]["greedy"]["mean"] >= 0.97


def test_whoever_cannot_see_is_taught_first(pool: SamplerPool, tmp_path: Path) -> None:
    """The base that ships, before images that show nothing: its guesses are often right, and one of
    eight nearly always, which is no reason to reinforce them."""
    rng = np.random.default_rng(0)
    blind = [
        replace(one, images=(png_bytes(noise(rng)),), boxes=None)
        for one in draw_examples("seen", 320, 0, "train")
    ]
    printed, held = probe(tmp_path, blind, pool, "-n", "8")
    assert held["advice"] == "sft"
    assert "advice: supervised fine-tuning first." in printed
    assert held["agreement"]["low"] < 0 and held["parts"][0]["passes"]["8"]["mean"] > 0.5


def noise(rng: np.random.Generator) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (56, 56), dtype=np.uint8))


@pytest.mark.long
@pytest.mark.parametrize("lessons", [0, 8], ids=["shipped", "taught a little"])
def test_the_first_steps_have_as_many_groups_without_spread_as_the_probe_says(
    pool: SamplerPool,
    asked: list[Example],
    tmp_path: Path,
    model_path: str,
    processor: Any,
    lessons: int,
) -> None:
    """Within five points, by answers alone, of which many groups have none. The same questions are
    asked by both, so that few are enough."""
    how = ["rewards={format: 0.2, accuracy: 1.0}"]
    if lessons:
        others = draw_examples("seen", 480, 1, "train")
        base = taught(tmp_path, others, lessons, pool, model_path, processor)
        how.append(f"model.adapter={base}")
    _, held = probe(tmp_path, asked, pool, *how, "-n", "16")
    predicted = held["parts"][0]["without_spread"]["mean"]
    run = tmp_path / "steps"
    short = [f"run_dir={run}", *SHORT, f"data.train={tmp_path}/train.parquet", "data.eval={}", *how]
    short += ["rollout.group_size=8", "train.steps=5", f"train.prompts_per_step={ASKED}"]
    done = rarl_here("train", DEMO, *short, pool=pool)
    assert done.returncode == 0, done.stderr
    found = [row["groups_without_spread"] for row in read_metrics(run / "metrics.jsonl")]
    assert len(found) == 5
    assert float(np.mean(found)) == pytest.approx(predicted, abs=0.05)
