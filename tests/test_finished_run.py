"""A whole run: what it prints and leaves behind, that it is not made twice, and that it is measured
as it was made."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from rarl.evaluation.group_table import known_columns
from rarl.evaluation.measurements import (
    Measurement,
    finished_measurements,
    folder_of,
    read_finished,
)
from rarl.grpo.policy import adapter_parameters, load_adapter, load_policy, read_adapter
from rarl.rollout.pool import SamplerPool
from rarl.training.log import read_metrics
from tests.conftest import FinishedRun
from tests.runs import FINISHED, STEPS, assert_one_line_error, rarl_here

pytestmark = pytest.mark.slow

NAMES = ("format", "accuracy", "reasoning", "judge", "explains")  # of the demo's rewards
STABLE_KEYS = {
    "step",
    "reward/mean",
    "reward/format",
    "reward/accuracy",
    "reward/reasoning",
    "reward/judge",
    "spread/accuracy",
    "without_spread/accuracy",
    "unscored/reasoning",
    "judge/unparsable",
    "judge/unreachable",
    "judge/correctness",
    "judge/explanation",
    "sampler_mismatch",
    "kl",
    "grad_norm",
    "completion_tokens",
    "entropy",
    "drift",
    "staleness",
    "shared_prefix",
    "seconds/data",
    "seconds/rollout",
    "seconds/reward",
    "seconds/update",
    "seconds/publish",
    "seconds/other",
    "seconds/step",
}


@pytest.fixture
def finished(finished_run: FinishedRun) -> Path:
    return finished_run.folder


def test_a_run_prints_its_progress_and_its_result_and_nothing_else(
    finished_run: FinishedRun,
) -> None:
    assert f"step {STEPS}/{STEPS}" in finished_run.printed
    assert "phantoms-unseen" in finished_run.printed
    assert "Ray" not in finished_run.printed.replace("phantoms", ""), (
        "start-up noise belongs in the log files"
    )


def test_metrics_have_one_line_a_step_with_stable_keys(finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for row in rows:
        assert row.keys() >= STABLE_KEYS
        assert row.keys() == rows[0].keys()
        # where all prompts of a step ask for answers alone
        may_be_missing = {"reward/reasoning", "spread/reasoning"}
        assert all(
            math.isfinite(v) for key, v in row.items() if not (v is None and key in may_be_missing)
        )
        assert row["sampler_mismatch"] < 1e-5
        phases = ("data", "rollout", "reward", "update", "publish", "evaluate", "save", "other")
        assert sum(row[f"seconds/{name}"] for name in phases) == pytest.approx(row["seconds/step"])
        # Rank 8 and 4 bytes, for in + out of q, k, v, o, gate, up and down in each of 4 layers.
        assert row["published_bytes"] == 4 * 8 * 4 * (256 + 192 + 192 + 256 + 512 + 512 + 512)
    assert rows[0]["kl"] == 0.0, "the first step's policy is the base model"
    assert rows[-1]["kl"] > 0
    assert list((finished / "tensorboard").glob("events.out.tfevents.*"))


def test_samples_hold_every_completion_with_its_scores(finished: Path) -> None:
    files = sorted((finished / "samples").glob("*.parquet"))
    assert [file.stem for file in files] == [f"step_{step:06d}" for step in range(1, STEPS + 1)]
    rows = pq.read_table(files[2]).to_pylist()
    assert len(rows) == 16
    metrics = read_metrics(finished / "metrics.jsonl")[2]
    for row in rows:
        assert row["example/image_id"].startswith("seen-train-")
        assert row["rollout/adapter_version"] == 2
        family = row["prompt/wording"].split("/")[0]
        assert family in ("reason", "explain", "short", "open", "structured")
        assert row["example/question"] in row["prompt/text"]
        reward = {name: row[f"score/rewards/{name}"] for name in NAMES}
        assert (reward["reasoning"] is None) == (family == "short")
        assert row["verdict/status"] == "scored" and row["verdict/reason"]
        expected = 0.2 * reward["format"] + reward["accuracy"] + 0.3 * reward["judge"]
        expected += 0.5 * reward["accuracy"] * (reward["reasoning"] or 0.0)
        expected += 2.0 * (reward["explains"] or 0.0)
        assert row["score/total"] == pytest.approx(expected)
        assert row["step"] == 3
    assert (
        len({row["prompt/wording"] for row in pq.read_table(finished / "samples").to_pylist()}) > 4
    )
    assert np.mean([row["score/total"] for row in rows]) == pytest.approx(metrics["reward/mean"])


def test_the_adapter_is_a_standard_peft_folder(finished: Path, model_path: str) -> None:
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    base = AutoModelForImageTextToText.from_pretrained(model_path, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, finished / "adapter")
    names = [name for name, _ in loaded.named_parameters() if "lora_B" in name]
    assert len(names) == 4 * 7
    assert all("visual" not in name for name in names)
    assert any(p.abs().max() > 0 for name, p in loaded.named_parameters() if "lora_B" in name)
    saved, _ = read_adapter(finished / "checkpoints" / f"step_{STEPS:06d}" / "adapter")
    final, _ = read_adapter(finished / "adapter")
    assert all(np.array_equal(saved[name], final[name]) for name in final)


def test_the_summary_compares_base_and_trained(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    for name in ("phantoms-seen", "phantoms-unseen"):
        for label in ("base", "trained"):
            result = summary[label][name]
            assert result["n"] == 30
            assert result["ci95"][0] <= result["accuracy"] <= result["ci95"][1]
        points = 100 * (summary["trained"][name]["accuracy"] - summary["base"][name]["accuracy"])
        assert summary["difference"][name]["points"] == pytest.approx(points)
        reasoning = [summary[label][name]["reasoning"]["mean"] for label in ("base", "trained")]
        change = summary["difference"][name]["reasoning"]["points"]
        assert change == pytest.approx(100 * (reasoning[1] - reasoning[0]))
        assert len(summary["difference"][name]["ci95"]) == 2
    assert 0 < summary["seconds"]["train"] < summary["seconds"]["total"]
    assert (finished / "curve.png").read_bytes()[:4] == b"\x89PNG"


def test_a_finished_run_is_not_repeated_and_refuses_another_configuration(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.glob("*.json*")}
    again = rarl_here("train", "configs/demo.yaml", f"run_dir={finished}", *FINISHED)
    assert again.returncode == 0
    assert "already finished" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in finished.glob("*.json*")} == before
    other = rarl_here("train", "configs/demo.yaml", f"run_dir={finished}", *FINISHED, "seed=9")
    assert_one_line_error(
        other, "already holds a run with another configuration (seed is 0 there, 9 here)"
    )


def test_eval_measures_what_is_missing_with_every_prompt_that_is_named(
    pool: SamplerPool, finished: Path
) -> None:
    evaluation = finished / "evaluation"
    before = set(finished_measurements(evaluation))
    gone = Measurement("trained", "phantoms-seen", "reason")
    assert gone in before
    shutil.rmtree(folder_of(evaluation, gone))
    asked = ("--prompt", "reason,structured", "--by", "answer_type,organ")
    done = rarl_here("eval", finished, *asked, pool=pool)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "phantoms-seen by answer_type: accuracy in %" in done.stdout
    assert "questions about one image, in %" in done.stdout
    assert known_columns(evaluation) == ["answer_type", "organ"]
    assert "measuring trained on phantoms-seen (30)" in done.stdout
    assert "measuring base on phantoms-seen (30)" not in done.stdout
    assert len(read_finished(evaluation, gone) or []) == 30
    assert set(finished_measurements(evaluation)) - before == {
        Measurement(model, f"phantoms-{name}", "structured")
        for model in ("base", "trained")
        for name in ("seen", "unseen")
        for prompt in ("reason", "structured")
    }
    summaries = {path.name for path in evaluation.glob("summary*")}
    assert summaries == {"summary.json", "summary-structured.json"}


def test_a_measurement_cannot_change_how_the_run_was_made(finished: Path) -> None:
    other = rarl_here("eval", finished, "train.steps=5")
    assert_one_line_error(
        other, f"train.steps=5: the run was made with {STEPS}, and a measurement cannot change it"
    )


def test_resuming_restores_adapter_and_optimizer_exactly(finished: Path, model_path: str) -> None:
    """The checkpoint holds all that the next step depends on."""
    policy = load_policy(model_path, "float32", "cpu", 8, 16, seed=0)
    folder = finished / "checkpoints" / f"step_{STEPS:06d}"
    load_adapter(policy, folder / "adapter")
    tensors, _ = read_adapter(folder / "adapter")
    assert sum(p.numel() for p in adapter_parameters(policy)) == sum(
        array.size for array in tensors.values()
    )
    state = torch.load(folder / "optimizer.pt", weights_only=True)
    assert {entry["step"].item() for entry in state["optimizer"]["state"].values()} == {
        float(STEPS)
    }
    score = np.mean([row["reward/mean"] for row in read_metrics(finished / "metrics.jsonl")[-10:]])
    assert json.loads((folder / "state.json").read_text()) == {
        "step": STEPS,
        "batches": STEPS,
        "score": pytest.approx(score),
    }
