"""Runs in this process: refills, staleness, rewards that read, runs that are made longer, and that
a stale sampler stops them. How they end otherwise than well is in faults/."""

from __future__ import annotations

import json
import math
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
from rarl.errors import UserError
from rarl.files import write_text
from rarl.grpo.policy import load_policy, read_adapter
from rarl.prompts import as_turn, rederive_text
from rarl.reading import Reader
from rarl.replies.tags import parse_reply
from rarl.rollout.pool import SamplerPool
from rarl.samples import read_samples
from rarl.training import log
from rarl.training.log import read_metrics
from rarl.training.run_dir import RunDir
from tests.runs import SHORT, prepare_all, rarl_here, train_here

pytestmark = pytest.mark.slow


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
        prompt = as_turn(processor, rederive_text(by_id[row["example/id"]], thinking), images=())
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
