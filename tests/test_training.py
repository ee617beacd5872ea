"""Whole runs: what they leave behind, that they are not made twice, and that a stale sampler stops
them. How they end otherwise than well is in faults/."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rarl.config import RewardConfig
from rarl.data.parquet import ParquetRows, image_key
from rarl.data.prepared import PreparedExample, prepare_example
from rarl.errors import UserError
from rarl.evaluation.measurements import (
    Measurement,
    finished_measurements,
    folder_of,
    read_finished,
)
from rarl.files import write_text
from rarl.grpo.policy import adapter_parameters, load_adapter, load_policy, read_adapter
from rarl.prompts import as_turn, plain_prompt, rederive_text
from rarl.reading import Reader
from rarl.replies.tags import parse_reply
from rarl.rollout.pool import SamplerPool
from rarl.samples import read_samples
from rarl.training import log
from rarl.training.log import read_metrics
from rarl.training.run_dir import RunDir
from tests.conftest import FinishedRun
from tests.runs import FINISHED, SHORT, STEPS, assert_one_line_error, rarl_here, train_here

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
        assert family in ("explain", "short", "open", "structured")
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
    done = rarl_here("eval", finished, "--prompt", "reason,structured", pool=pool)
    assert done.returncode == 0, done.stdout + done.stderr
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


class StalePool(SamplerPool):
    """A deliberate fault: adapters after version 1 never reach the samplers."""

    def publish(
        self, version: int, tensors: Mapping[str, Any], peft_config: Mapping[str, Any]
    ) -> int:
        return super().publish(version, tensors, peft_config) if version <= 1 else 0


class LyingPool(SamplerPool):
    """A worse one: the samplers say that they have the new adapter, and have the first."""

    def publish(
        self, version: int, tensors: Mapping[str, Any], peft_config: Mapping[str, Any]
    ) -> int:
        if version <= 1:
            self.first = tensors
        return super().publish(version, self.first, peft_config)


@pytest.mark.parametrize(
    ("fault", "staleness", "finished_steps"),
    [(StalePool, 0, 2), (StalePool, 1, 3), (LyingPool, 0, 2), (LyingPool, 1, 3)],
)
def test_a_stale_sampler_stops_the_run_with_a_clear_message(
    pool: SamplerPool,
    tmp_path: Path,
    dataset: Path,
    model_path: str,
    processor: Any,
    fault: type[SamplerPool],
    staleness: int,
    finished_steps: int,
) -> None:
    overrides = ["train.steps=8", "train.learning_rate=0.01", f"rollout.max_staleness={staleness}"]
    faulty = fault(pool.actors, pool.timeout)
    run_dir, run = train_here(
        faulty, tmp_path / "stale", dataset, model_path, processor, *overrides
    )
    with pytest.raises(UserError) as caught:
        run()
    assert "the sampler does not sample from the policy" in str(caught.value)
    assert "stale" in str(caught.value)
    rows = read_metrics(run_dir.metrics)
    assert [row["step"] for row in rows] == list(range(1, finished_steps + 1)), (
        "the next step is the first stale one"
    )
    assert all(row["sampler_mismatch"] < 1e-5 for row in rows)
    assert not run_dir.adapter.exists()


def test_one_update_of_staleness_is_measured_against_the_adapter_that_sampled(
    pool: SamplerPool, tmp_path: Path, dataset: Path, model_path: str, processor: Any
) -> None:
    """With overlap, refills and two epochs at once."""
    overrides = [
        "train.learning_rate=0.003",
        "rollout.max_staleness=1",
        "grpo.max_refills=2",
        "grpo.epochs=2",
        "grpo.loss=dapo",
        "rollout.max_completion_tokens=24",
    ]
    run_dir, run = train_here(pool, tmp_path / "run", dataset, model_path, processor, *overrides)
    assert run() == 4
    rows = read_metrics(run_dir.metrics)
    assert rows[0]["staleness"] == 0
    for row in rows:
        assert 0 <= row["staleness"] <= 1
        assert row["sampler_mismatch"] < 1e-5
        assert row["groups/trained"] <= 4
        assert row["groups/sampled"] in (4, 8, 12)
        assert row["groups/trained"] == 4 or row["groups/sampled"] == 12
        assert row["shared_prefix"] == 1
    assert rows[1]["staleness"] > 0
    assert max(row["drift"] for row in rows[1:]) > 1e-4, "the policy has moved since it sampled"
    state = json.loads((run_dir.path / "checkpoints/step_000004/state.json").read_text())
    batches = sum(row["groups/sampled"] for row in rows) / 4
    score = np.mean([row["reward/mean"] for row in rows])
    assert state == {"step": 4, "batches": batches, "score": pytest.approx(score)}


def test_refills_are_bounded_and_a_step_without_spread_changes_nothing(
    pool: SamplerPool, tmp_path: Path, dataset: Path, model_path: str, processor: Any
) -> None:
    overrides = ["rewards={'tests.test_rewards:half': 1.0}", "grpo.max_refills=1", "train.steps=2"]
    run_dir, run = train_here(pool, tmp_path / "run", dataset, model_path, processor, *overrides)
    run()
    for row in read_metrics(run_dir.metrics):
        assert (row["groups/sampled"], row["groups/trained"], row["groups_without_spread"]) == (
            8,
            0,
            1,
        )
        assert row["loss"] is None
        assert row["sampler_mismatch"] is None
    tensors, _ = read_adapter(run_dir.adapter)
    assert all(not array.any() for name, array in tensors.items() if "lora_B" in name)


def test_fluency_has_the_floor_that_the_base_model_sets(pool: SamplerPool, tmp_path: Path) -> None:
    """And a run that is continued has the same."""
    run = tmp_path / "run"
    how = [f"run_dir={run}", *SHORT, "data.eval={}", "train.checkpoint_every=1"]
    explains = "explains: {weight: 1, gate: [format, fluency]}"
    how.append(f"rewards={{format: 0, accuracy: 1, {explains}, fluency: 0}}")
    done = rarl_here("train", "configs/demo.yaml", *how, "train.steps=1", pool=pool)
    assert done.returncode == 0, done.stderr
    found = json.loads((run / "fluency.json").read_text())
    assert found["replies"] > 100
    done = rarl_here("train", "configs/demo.yaml", *how, "train.steps=2", pool=pool)
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "fluency.json").read_text()) == found
    fluent = 0
    for one in read_samples(run / "samples/step_000001.parquet"):
        if one.reply.well_formed and one.reply.thinking:
            assert one.thinking_logprob is not None and one.score is not None
            below = min(0.0, one.thinking_logprob - found["floor"])
            assert one.rewards["fluency"] == pytest.approx(math.exp(below))
            accuracy, explained = one.rewards["accuracy"] or 0, one.rewards["explains"] or 0
            assert one.score.total == pytest.approx(accuracy + explained * math.exp(below))
            fluent += below == 0
    assert fluent > 8


def test_real_radiographs_train_with_a_users_reward_and_a_bad_row_is_skipped_counted_and_listed(
    pool: SamplerPool, vqa_rad: Path, tmp_path: Path
) -> None:
    data, damaged, run = tmp_path / "vqa-rad", tmp_path / "damaged.parquet", tmp_path / "run"
    prepared = rarl_here("prepare", "vqa-rad", vqa_rad, data, "--split", "image-disjoint")
    assert prepared.returncode == 0, prepared.stderr
    whole = pq.read_table(data / "train.parquet")
    images = whole["image"].to_pylist()
    images[5] = b"broken"
    column = pa.array(images, whole.schema.field("image").type)
    pq.write_table(
        whole.set_column(whole.schema.get_field_index("image"), "image", column), damaged
    )
    done = rarl_here(
        "train",
        "configs/vqa_rad_tiny.yaml",
        f"run_dir={run}",
        f"data.train={damaged}",
        f"data.eval.vqa-rad={data / 'test.parquet'}",
        "data.on_bad_row=skip",
        "rewards={format: 0.2, accuracy: 1.0, 'tests.test_rewards:half': 0.5}",
        *SHORT,
        pool=pool,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "train: 1 bad rows skipped, listed in skipped-train.txt" in done.stdout
    bad = whole["id"][5].as_py()
    assert (
        (run / "skipped-train.txt").read_text().startswith(f"row 5: example '{bad}': image cannot")
    )
    rows = read_metrics(run / "metrics.jsonl")
    assert len(rows) == 4
    # which scores some questions
    scored = [{k: v for k, v in row.items() if not k.endswith(":half")} for row in rows]
    assert all(math.isfinite(value) for row in scored for value in row.values())
    asked = {"reward/mean", "reward/format", "reward/accuracy", "reward/tests.test_rewards:half"}
    assert all({key for key in row if key.startswith("reward/")} == asked for row in rows)
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary["base"]["vqa-rad"]["by_type"]) == {"closed", "open"}
    assert summary["skipped_rows"] == {"train": 1, "vqa-rad": 0}


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_finished_run_is_made_longer_by_more_steps(
    tmp_path: Path, dataset: Path, model_path: str, processor: Any, schedule: str
) -> None:
    """Adapter, optimizer and data order go on; each step has the learning rate that it would have
    had in a run of that length from the beginning. Supervised, so that no engine is needed."""
    how = ["method=sft", f"train.schedule={schedule}", "train.warmup_steps=0"]
    how += ["train.prompts_per_step=2"]

    def run(name: str, steps: int) -> RunDir:
        pool = cast(SamplerPool, None)
        overrides = [*how, f"train.steps={steps}"]
        made, go = train_here(pool, tmp_path / name, dataset, model_path, processor, *overrides)
        assert go() == steps
        return made

    short = run("longer", 2)
    (short.evaluation / "model=trained").mkdir(parents=True)
    (short.evaluation / "model=base").mkdir()
    write_text(short.summary, "{}")
    longer, whole = run("longer", 3), run("whole", 3)

    rows = [read_metrics(one.metrics) for one in (longer, whole)]
    assert [row["step"] for row in rows[0]] == [1, 2, 3]
    assert rows[0][2]["learning_rate"] == rows[1][2]["learning_rate"] > 0
    adapters = [read_adapter(one.adapter)[0] for one in (longer, whole)]
    alike = all(np.array_equal(adapters[0][name], adapters[1][name]) for name in adapters[0])
    assert alike == (schedule == "constant")
    told = " ".join(longer.notes)
    assert "train.steps rises from 2 to 3" in told
    assert ("the learning rate is that of a cosine over all 3 steps" in told) == (not alike)

    kept = longer.path / "steps-2"
    assert f"results of the 2 steps are kept in {kept}" in told
    assert read_adapter(kept / "adapter") and (kept / "summary.json").is_file()
    assert (kept / "evaluation" / "model=trained").is_dir() and longer.read_summary() is None
    assert [one.name for one in longer.evaluation.iterdir()] == ["model=base"], "not paid for twice"


def test_the_seconds_of_all_starts_are_added_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one that is killed in training as of one that ends; by a clock that is set by hand."""
    now = 100.0
    monkeypatch.setattr(log, "time", SimpleNamespace(monotonic=lambda: now))
    killed = log.SecondsLog(tmp_path / "seconds.json", started=90.0)
    with killed.training():
        now = 130.0
        killed.save()  # as it does from time to time
        killed.ended.set()  # no more comes from it
        killed.thread.join()
    now = 1000.0
    with log.SecondsLog(tmp_path / "seconds.json", started=1000.0) as last:
        now = 1005.0
        with last.training():
            now = 1025.0
        now = 1030.0
    starts = [{"train": 30.0, "total": 40.0}, {"train": 20.0, "total": 30.0}]
    assert last.over_all_starts() == {"train": 50.0, "total": 70.0, "starts": starts}
    assert json.loads((tmp_path / "seconds.json").read_text()) == starts


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


def test_consistency_asks_the_policy_itself_without_the_image(
    pool: SamplerPool, tmp_path: Path, dataset: Path, model_path: str, processor: Any
) -> None:
    """What is recorded as re-derived is what transformers says to the same prompt, for every step's
    own adapter."""
    overrides = [
        "rewards={accuracy: 1, consistency: 0.5}",
        "rollout.max_staleness=1",
        "train.steps=3",
    ]
    run_dir, run = train_here(pool, tmp_path / "run", dataset, model_path, processor, *overrides)
    run()
    rows = pq.read_table(run_dir.samples / "step_000001.parquet").to_pylist()
    scored = [row for row in rows if row["rederived"] is not None]
    assert len(scored) > len(rows) / 2
    by_id = {example.example.id: example.example for example in prepare_all(dataset, processor)}
    policy = load_policy(model_path, "float32", "cpu", 8, 16, seed=0).get_base_model()
    for row in scored[:6]:
        thinking = parse_reply(row["rollout/text"]).thinking or ""
        prompt = as_turn(processor, rederive_text(by_id[row["example/id"]], thinking), image=False)
        ids = processor.tokenizer(prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            own = policy.generate(input_ids=ids, max_new_tokens=64, do_sample=False)
        assert (
            processor.tokenizer.decode(own[0, ids.shape[1] :], skip_special_tokens=True)
            == row["rederived"]
        )
    for row in rows:
        agrees = row["rederived"] is not None and (
            parse_reply(row["rederived"], "answer").answer
            == parse_reply(row["rollout/text"]).answer
        )
        assert not agrees or row["score/rewards/consistency"] == 1.0
    metrics = read_metrics(run_dir.metrics)
    assert [row["step"] for row in metrics] == [1, 2, 3]
    assert all(0 <= row["reward/consistency"] <= 1 for row in metrics)


def test_explains_is_paid_by_what_the_base_model_reads_whatever_the_policy_has_become(
    pool: SamplerPool, tmp_path: Path, dataset: Path, model_path: str, processor: Any
) -> None:
    """The other questions about an image come from the training data."""
    overrides = ["rewards={accuracy: 1, explains: 0.5}", "train.steps=3"]
    run_dir, run = train_here(pool, tmp_path / "run", dataset, model_path, processor, *overrides)
    run()
    asked = ParquetRows(str(dataset)).questions_by_image()
    settings = {"explains": RewardConfig(weight=1.0)}
    reader = Reader(pool, settings, model_path, 512, asked)
    for step in (1, 3):
        samples = read_samples(run_dir.samples / f"step_{step:06d}.parquet")
        paid = [one.explained for one in samples]
        for one in samples:
            if one.explained is not None:
                assert len(one.explained.priors) == len(asked[image_key(one.example)])
            assert (one.explained is None) == (not one.reply.thinking)
            one.explained = None
        for reading in reader.start(samples, use_adapter=False):
            reading.write()
        for before, one in zip(paid, samples, strict=True):
            if before is not None and one.explained is not None:
                assert before.priors == pytest.approx(one.explained.priors, abs=1e-3)
                assert before.probabilities == pytest.approx(one.explained.probabilities, abs=1e-3)
            if one.reply.well_formed and before is not None:
                pairs = zip(before.probabilities, before.priors, strict=True)
                gain = np.mean([p - prior for p, prior in pairs])
                assert one.rewards["explains"] == pytest.approx((1 + gain) / 2)


def prepare_all(dataset: Path, processor: Any) -> list[PreparedExample]:
    rows = ParquetRows(str(dataset))
    return [
        prepare_example(example, processor, plain_prompt())
        for example in rows.read(list(range(len(rows))))
    ]
