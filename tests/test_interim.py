"""Measurements while training goes on: their figures, and the adapter that the run ends with."""

from __future__ import annotations

import itertools
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rarl.commands.resolve import require_interim
from rarl.config import load_config
from rarl.data.parquet import write_examples
from rarl.errors import UserError
from rarl.grpo.policy import read_adapter
from rarl.intervals import fraction_intervals95
from rarl.replies.grading import is_correct
from rarl.replies.tags import parse_reply
from rarl.rollout.pool import SamplerPool
from rarl.rollout.sampler import SampleRequest, SamplingSettings
from rarl.schema import Example
from rarl.training.alarms import WINDOW, alarms
from rarl.training.interim import FIGURES, Track, read_interim
from rarl.training.log import read_metrics
from tests.faults.campaign import differences
from tests.runs import REPOSITORY, outcome_here, prepare_all, train_here


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
    names = {f"eval/held/{one}" for one in FIGURES}
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
    units = [one.example.unit for one in asked]
    ends = [rows[3][f"eval/held/accuracy/{end}"] for end in ("low", "high")]
    assert ends == pytest.approx(fraction_intervals95([(right, units)])[0])
    flipped = sum(one != other for one, other in zip(*answers, strict=True))
    assert rows[3]["eval/held/flips"] == pytest.approx(flipped / 12) and flipped
    kept = read_interim(run_dir, "held", 4)
    by_id = {one.example.id: answer for one, answer in zip(asked, answers[0], strict=True)}
    assert {one.example.id: one.reply.answer for one in kept} == by_id
    assert sum(one.is_right for one in kept) == sum(right)
    assert read_interim(run_dir, "held", 3) == []


class Killed(BaseException):
    """Ends a run as a kill does: nothing on the way takes it for an error."""


@contextmanager
def killed_at(moment: int) -> Iterator[None]:
    """Inside, a run ends where it waits for the disk for the time with this number. What it has
    written by then is there, and nothing after it happens."""
    wait, waits = os.fsync, itertools.count(1)

    def wait_or_end(handle: int) -> None:
        # Trackers have threads of their own, of which no result depends.
        if threading.current_thread() is threading.main_thread() and next(waits) == moment:
            raise Killed
        wait(handle)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", wait_or_end)
        yield


@pytest.mark.slow
def test_a_run_whose_unseen_accuracy_falls_ends_early_with_its_best_adapter_also_when_it_is_killed(
    pool: SamplerPool, tmp_path: Path, examples: list[Example], model_path: str, processor: Any
) -> None:
    """It is trained on the seen domain, by steps that are far too large."""
    seen, unseen = tmp_path / "seen.parquet", tmp_path / "unseen.parquet"
    write_examples(seen, examples[:12])
    write_examples(unseen, examples[12:])
    how = ["train.steps=12", "train.learning_rate=0.03", "prompts.eval=plain", "evaluation.every=1"]
    how += [f"data.eval={{unseen: {unseen}}}", "evaluation.validation=unseen"]
    how += ["evaluation.patience=3", "train.keep_checkpoints=1", "train.checkpoint_every=5"]
    shown = (seen, model_path, processor, *how)
    run_dir, run = outcome_here(pool, tmp_path / "run", *shown)
    outcome = run()
    rows, last = read_metrics(run_dir.metrics), outcome.steps
    values = [row["eval/unseen/accuracy"] for row in rows]
    best = max(range(last), key=lambda place: (values[place], place)) + 1
    assert last == len(rows) < 12
    assert max(values[:-3]) >= max(values[-3:]), "three measurements brought nothing better"
    assert values[-1] < max(values), "it falls"
    assert outcome.ended == (
        f"training ended after step {last}: 3 measurements on unseen without a better one than "
        f"{100 * max(values):.1f} after step {best}"
    )
    kept = run_dir.checkpoints / f"step_{best:06d}" / "adapter"
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (kept / name).read_bytes() == (run_dir.adapter / name).read_bytes()

    other, run_on = train_here(pool, tmp_path / "other", *shown)
    other.stop_request.touch()
    assert run_on() == 1, "asked to end after its first step"
    other.stop_request.unlink()
    kills = 0
    for moment in (2, 5, 9, 14, 20):
        _, run_on = train_here(pool, tmp_path / "other", *shown)
        try:
            with killed_at(moment):
                run_on()
        except Killed:
            kills += 1
    assert kills >= 3
    _, run_on = train_here(pool, tmp_path / "other", *shown)
    assert run_on() == last
    assert differences(run_dir.path, other.path, last) == []
    # Ended before the adapter was at its place, it makes no further step.
    shutil.rmtree(other.adapter)
    _, run_on = train_here(pool, tmp_path / "other", *shown)
    assert run_on() == last
    assert differences(run_dir.path, other.path, last) == []


@pytest.mark.slow
def test_a_learning_rate_that_moves_nothing_is_warned_about_and_one_that_trains_is_not(
    pool: SamplerPool,
    tmp_path: Path,
    dataset: Path,
    model_path: str,
    processor: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    how = [f"train.steps={WINDOW}", "train.prompts_per_step=2", f"train.checkpoint_every={WINDOW}"]
    how.append("rewards={format: 0.2, accuracy: 1.0}")
    told = {}
    for rate in ("1e-9", "1e-3"):
        shown = (dataset, model_path, processor, *how, f"train.learning_rate={rate}")
        run_dir, run = train_here(pool, tmp_path / rate, *shown)
        assert run() == WINDOW
        told[rate] = alarms(read_metrics(run_dir.metrics)).get("adapter/movement")
        assert ("warning: the adapter has moved" in capsys.readouterr().out) == bool(told[rate])
    assert told["1e-3"] is None
    assert "raise train.learning_rate (now 1e-09)" in str(told["1e-9"])
