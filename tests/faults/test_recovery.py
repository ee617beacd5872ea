"""Parts of a run that are lost and come back, several workers and samplers: the same result to the last bit."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import ray

from rarl.errors import UserError
from rarl.grpo.policy import read_adapter
from rarl.rollout.pool import SamplerPool
from rarl.rollout.sampler import SamplerSettings
from rarl.training.metrics import read_metrics
from rarl.training.replay import replay
from rarl.training.run_dir import RunDir
from tests.faults.campaign import JudgeProcess, differences
from tests.judge_faults import free_port
from tests.runs import train_on

pytestmark = pytest.mark.slow
STEPS = 6
OVERRIDES = (f"train.steps={STEPS}", "train.learning_rate=0.01", "rollout.num_actors=2")
Train = Callable[..., RunDir]


@pytest.fixture(scope="module")
def train(pool: SamplerPool, dataset: Path, model_path: str, processor: Any) -> Train:
    """Runs on the session's engines while `accident` goes on; returns the run directory."""

    def run(folder: Path, *overrides: str, accident: Callable[[RunDir], Any] | None = None, on: Any = None) -> RunDir:
        run_dir, make = train_on(on or pool, folder, dataset, model_path, processor, *OVERRIDES, *overrides)
        thread = threading.Thread(target=accident or (lambda _: None), args=(run_dir,))
        thread.start()
        make()
        thread.join()
        return run_dir

    return run


@pytest.fixture(scope="module")
def undisturbed(train: Train, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return train(tmp_path_factory.mktemp("calm") / "run")


def after_step(step: int, then: Callable[[], Any]) -> Callable[[RunDir], None]:
    """Does it as soon as the step is made."""

    def accident(run_dir: RunDir) -> None:
        deadline = time.monotonic() + 200
        while len(read_metrics(run_dir.metrics)) < step and time.monotonic() < deadline:
            time.sleep(0.02)
        then()

    return accident


def processes(title: str) -> list[psutil.Process]:
    """Of this test's Ray cluster."""
    own = psutil.Process().children(recursive=True)
    return [p for p in own if p.is_running() and " ".join(p.cmdline()).startswith(f"ray::{title}")]


def assert_same(undisturbed: RunDir, run_dir: RunDir) -> None:
    assert differences(undisturbed.path, run_dir.path, STEPS) == []


def test_a_killed_sampler_comes_back_with_the_adapter_and_changes_nothing(
    train: Train, undisturbed: RunDir, tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill() -> None:
        victim = processes("Sampler")[0]
        killed.append(victim.pid)
        victim.kill()

    assert_same(undisturbed, train(tmp_path / "run", accident=after_step(2, kill)))
    assert len(processes("Sampler")) == 2 and killed[0] not in [p.pid for p in processes("Sampler")]


def test_a_hung_sampler_is_started_anew(pool: SamplerPool, train: Train, undisturbed: RunDir, tmp_path: Path) -> None:
    """Stopped, not dead: nothing tells but time."""
    impatient = SamplerPool(pool.launched, timeout=8)
    stop = after_step(2, lambda: os.kill(processes("Sampler")[0].pid, signal.SIGSTOP))
    assert_same(undisturbed, train(tmp_path / "run", accident=stop, on=impatient))


def test_a_killed_train_worker_continues_at_the_last_finished_step(
    train: Train, undisturbed: RunDir, tmp_path: Path
) -> None:
    kill = after_step(3, lambda: processes("RayTrainWorker")[0].kill())
    assert_same(undisturbed, train(tmp_path / "run", accident=kill))


def test_two_train_workers_learn_what_one_learns(train: Train, tmp_path: Path) -> None:
    longer = ("train.steps=10", "train.learning_rate=0.001")
    one, two = (train(tmp_path / name, *longer, f"train.num_workers={n}") for name, n in (("one", 1), ("two", 2)))
    rows = [read_metrics(run_dir.metrics) for run_dir in (one, two)]
    assert len(rows[0]) == len(rows[1]) == 10
    for a, b in zip(*rows, strict=True):
        for key in ("loss", "kl", "entropy", "reward/mean", "completion_tokens", "learning_rate"):
            assert a[key] == pytest.approx(b[key], abs=1e-5), (a["step"], key)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
    adapters = [read_adapter(run_dir.adapter)[0] for run_dir in (one, two)]
    for name, array in adapters[0].items():
        np.testing.assert_allclose(array, adapters[1][name], atol=1e-4)


def test_two_workers_imitate_what_one_imitates(train: Train, tmp_path: Path) -> None:
    sft = ("method=sft", "train.learning_rate=0.001")
    one, two = (train(tmp_path / name, *sft, f"train.num_workers={n}") for name, n in (("one", 1), ("two", 2)))
    for a, b in zip(read_metrics(one.metrics), read_metrics(two.metrics), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
        assert a["completion_tokens/total"] == b["completion_tokens/total"]


def test_three_samplers_draw_what_one_draws(
    pool: SamplerPool, sampler_settings: SamplerSettings, train: Train, tmp_path: Path
) -> None:
    third = SamplerPool.launch(sampler_settings, 1, tmp_path, timeout=300)
    third.wait_until_ready()
    try:
        texts = []
        for name, actors in (("one", pool.launched[:1]), ("three", [*pool.launched, *third.launched])):
            run_dir = train(tmp_path / name, "train.steps=2", on=SamplerPool(actors, timeout=300))
            texts.append(pq.read_table(run_dir.samples).column("completion").to_pylist())
    finally:
        third.stop()
    assert texts[0] == texts[1] and len(texts[0]) == 32


def test_a_sampler_that_does_not_come_back_leaves_its_work_to_the_other(
    pool: SamplerPool, train: Train, tmp_path: Path, sampler_settings: SamplerSettings
) -> None:
    second = SamplerPool.launch(sampler_settings, 1, tmp_path, timeout=300)
    second.wait_until_ready()
    both = SamplerPool([pool.launched[0], second.launched[0]], timeout=300, restart_timeout=5)
    lose = after_step(2, lambda: ray.kill(second.launched[0], no_restart=True))
    run_dir = train(tmp_path / "run", accident=lose, on=both)
    assert [row["step"] for row in read_metrics(run_dir.metrics)] == list(range(1, STEPS + 1))


def test_a_judge_that_is_away_stops_the_run_and_lets_it_go_on(train: Train, tmp_path: Path) -> None:
    port = free_port()
    away = (
        "judge.backend=serve",
        f"judge.url=http://127.0.0.1:{port}",
        "judge.retries=1",
        "judge.on_unreachable=stop",
    )
    with pytest.raises(UserError, match=rf"127.0.0.1:{port}"):
        train(tmp_path / "run", *away)
    judge = JudgeProcess(tmp_path, port)
    try:
        run_dir = train(tmp_path / "run", *away)
    finally:
        judge.process.kill()
    assert [row["step"] for row in read_metrics(run_dir.metrics)] == list(range(1, STEPS + 1))
    assert all(row["judge/unreachable"] == 0 for row in read_metrics(run_dir.metrics))


def test_a_gradient_that_is_no_number_stops_the_run_and_keeps_the_batch(train: Train, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"step \d: the gradient is not finite.*rarl replay .*step_\d+\.pkl"):
        train(tmp_path / "run", "train.learning_rate=1e30", "train.warmup_steps=0")
    (saved,) = (tmp_path / "run" / "failures").iterdir()
    found = list(replay(saved))
    assert len(found) == 4 and all(len(group.completions) == 4 for group in found)
    assert any(group.grad_norm is None for group in found)
