"""Measurements while training goes on: their figures, and the adapter that the run ends with."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from rarl.commands.resolve import require_interim
from rarl.config import load_config
from rarl.errors import UserError
from rarl.grpo.policy import read_adapter
from rarl.replies.grading import is_correct
from rarl.replies.tags import parse_reply
from rarl.rollout.pool import SamplerPool
from rarl.rollout.sampler import SampleRequest, SamplingSettings
from rarl.training.interim import Track
from rarl.training.log import read_metrics
from rarl.training.run_dir import RunDir
from tests.faults.campaign import differences
from tests.runs import REPOSITORY, prepare_all, train_here


def test_the_best_is_remembered_with_how_often_nothing_better_came() -> None:
    track = Track(patience=2)
    for step, value in ((1, 0.5), (2, None), (3, 0.7), (4, 0.6)):
        track.add(step, value)
        assert not track.is_exhausted
    assert (track.best, track.step, track.since) == (0.7, 3, 1)
    track.add(5, 0.7)
    # As good as the best is no better, but its checkpoint is the one that is kept.
    assert (track.best, track.step, track.since) == (0.7, 5, 2)
    assert track.is_exhausted
    endless = Track(patience=None)
    for step in range(50):
        endless.add(step, 0.1)
    assert not endless.is_exhausted


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evaluation.every=5", "method=sft"], "only reinforcement is measured on the way"),
        (
            ["evaluation.every=5", "evaluation.validation=val"],
            "validation=val: no such data set in data.eval, which names phantoms-seen, phantoms-un",
        ),
        (["evaluation.validation=phantoms-seen"], "every evaluation.every steps, which is 0"),
        (["evaluation.every=5", "evaluation.patience=2"], "needs evaluation.validation"),
    ],
)
def test_what_cannot_be_measured_on_the_way_is_an_error(overrides: list[str], message: str) -> None:
    config = load_config(REPOSITORY / "configs/demo.yaml", overrides)
    with pytest.raises(UserError, match=message):
        require_interim(config)


@pytest.mark.slow
def test_the_figures_are_those_of_the_adapter_of_the_step(
    pool: SamplerPool, tmp_path: Path, dataset: Path, model_path: str, processor: Any
) -> None:
    how = ["evaluation.every=2", "train.learning_rate=0.003", "prompts.eval=plain"]
    how.append(f"data.eval={{held: {dataset}}}")
    run_dir, run = train_here(pool, tmp_path / "run", dataset, model_path, processor, *how)
    assert run() == 4
    rows = read_metrics(run_dir.metrics)
    names = {f"eval/held/{one}" for one in ("accuracy", "well_formed", "flips")}
    assert all(names <= row.keys() for row in rows)
    assert [row["eval/held/accuracy"] is not None for row in rows] == [False, True] * 2
    assert [row["seconds/evaluate"] > 0.001 for row in rows] == [False, True] * 2
    asked = prepare_all(dataset, processor)[:12]
    requests = [SampleRequest(one.prompt.text, one.pixels) for one in asked]
    greedy = SamplingSettings(1, 0.0, 48)
    pool.publish(300, *read_adapter(run_dir.adapter))
    answers = [
        [parse_reply(group[0].text).answer for group in pool.generate(requests, greedy, adapter)]
        for adapter in (True, False)
    ]
    right = [
        is_correct(answer, one.example.answer, one.example.options)
        for answer, one in zip(answers[0], asked, strict=True)
    ]
    assert rows[3]["eval/held/accuracy"] == pytest.approx(sum(right) / 12)
    flipped = sum(one != other for one, other in zip(*answers, strict=True))
    assert rows[3]["eval/held/flips"] == pytest.approx(flipped / 12) and flipped


@pytest.mark.slow
def test_a_run_that_falls_ends_early_with_its_best_adapter_also_when_it_is_continued(
    pool: SamplerPool, tmp_path: Path, dataset: Path, model_path: str, processor: Any
) -> None:
    how = ["train.steps=12", "train.learning_rate=0.03", "prompts.eval=plain", "evaluation.every=1"]
    how += [f"data.eval={{held: {dataset}}}", "evaluation.validation=held"]
    how += ["evaluation.patience=3", "train.keep_checkpoints=1", "train.checkpoint_every=5"]
    run_dir, run = train_here(pool, tmp_path / "run", dataset, model_path, processor, *how)
    last = run()
    rows = read_metrics(run_dir.metrics)
    values = [row["eval/held/accuracy"] for row in rows]
    best = max(range(last), key=lambda place: (values[place], place)) + 1
    assert last == len(rows) < 12
    assert max(values[:-3]) >= max(values[-3:]), "three measurements brought nothing better"
    kept = RunDir(run_dir.path).checkpoints / f"step_{best:06d}" / "adapter"
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (kept / name).read_bytes() == (run_dir.adapter / name).read_bytes()

    other, run = train_here(pool, tmp_path / "other", dataset, model_path, processor, *how)
    other.stop_request.touch()
    assert run() == 1, "asked to end after its first step"
    other.stop_request.unlink()
    _, run = train_here(pool, tmp_path / "other", dataset, model_path, processor, *how)
    assert run() == last
    assert differences(run_dir.path, other.path, last) == []
    # Ended before the adapter was at its place, it makes no further step.
    shutil.rmtree(other.adapter)
    _, run = train_here(pool, tmp_path / "other", dataset, model_path, processor, *how)
    assert run() == last
    assert differences(run_dir.path, other.path, last) == []
