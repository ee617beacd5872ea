"""Trackers: the real ones get every step once and go on after an interruption; one that fails stops
nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rarl.config import Config, load_config
from rarl.errors import UserError
from rarl.training import trackers
from rarl.training.metrics import MetricsLog, read_metrics
from rarl.training.run_dir import RunDir, open_run_dir
from rarl.training.trackers import missing_trackers, read_state, tracker_problems
from tests.runs import REPOSITORY

# Names that a run really has: the second is the first with something behind a slash.
ROW = {"drift": 0.25, "drift/max": 0.5, "kl": None, "reward/rarl.rewards.length:length": 1.0}


@pytest.fixture(autouse=True)
def no_accounts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Whatever the developer's own account is, it is left alone."""
    for name in (
        "WANDB_API_KEY",
        "WANDB_MODE",
        "WANDB_PROJECT",
        "MLFLOW_TRACKING_URI",
        "MLFLOW_EXPERIMENT_NAME",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    yield


def open_run(tmp_path: Path, *names: str) -> tuple[RunDir, Config]:
    listed = ",".join(names)
    config = load_config(
        REPOSITORY / "configs/demo.yaml",
        [f"run_dir={tmp_path / 'run'}", f"train.trackers=[{listed}]"],
    )
    return open_run_dir(config), config


def write_steps(run_dir: RunDir, config: Config, first: int, last: int) -> None:
    with MetricsLog(run_dir, config, first_step=first) as metrics:
        for step in range(first, last + 1):
            metrics.write({"step": step, **ROW, "loss": float(step)})


def losses_in_mlflow(run_dir: RunDir) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=(run_dir.path / "mlruns").as_uri())
    history = client.get_metric_history(read_state(run_dir.path, "mlflow")["id"], "loss")
    return [(metric.step, metric.value) for metric in history]


@pytest.mark.slow
def test_mlflow_has_each_step_once_after_an_interruption(tmp_path: Path) -> None:
    run_dir, config = open_run(tmp_path, "mlflow")
    write_steps(run_dir, config, 1, 4)
    identity = read_state(run_dir.path, "mlflow")["id"]
    write_steps(run_dir, config, 3, 6)  # from the checkpoint of step 2
    assert tracker_problems(run_dir.path, ["mlflow"]) == []
    assert read_state(run_dir.path, "mlflow")["id"] == identity
    assert losses_in_mlflow(run_dir) == [(step, float(step)) for step in range(1, 7)]
    from mlflow import MlflowClient

    run = MlflowClient(tracking_uri=(run_dir.path / "mlruns").as_uri()).get_run(identity)
    assert run.data.metrics["drift"] == 0.25
    assert run.data.metrics["drift.max"] == 0.5
    assert "kl" not in run.data.metrics
    assert run.data.params["rollout.group_size"] == "8"
    assert run.info.status == "FINISHED"


@pytest.mark.slow
def test_wandb_writes_offline_files_under_one_id(tmp_path: Path) -> None:
    run_dir, config = open_run(tmp_path, "wandb")
    write_steps(run_dir, config, 1, 3)
    identity = read_state(run_dir.path, "wandb")["id"]
    write_steps(run_dir, config, 4, 5)
    assert tracker_problems(run_dir.path, ["wandb"]) == []
    assert read_state(run_dir.path, "wandb")["id"] == identity
    files = sorted((run_dir.path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2
    assert all(identity in file.name for file in files)
    first, second = (file.read_bytes() for file in files)
    assert b"drift/max" in first
    assert b"drift/max" in second


@pytest.mark.slow
def test_tensorboard_is_the_default_and_has_every_step(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = load_config(REPOSITORY / "configs/demo.yaml", [f"run_dir={tmp_path / 'run'}"])
    run_dir = open_run_dir(config)
    write_steps(run_dir, config, 1, 3)
    events = EventAccumulator(str(run_dir.tensorboard))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (1, 1.0),
        (2, 2.0),
        (3, 3.0),
    ]


class Broken:
    """A tracker as a user might see it: well at first, then not."""

    def __init__(self, after: int, error: BaseException) -> None:
        self.left, self.error = after, error

    def log(self, step: int, values: dict[str, float]) -> None:
        self.left -= 1
        if self.left < 0:
            raise self.error

    def close(self) -> None:
        self.log(0, {})


@pytest.mark.parametrize("after", [0, 2, 5])
@pytest.mark.parametrize(
    "error", [RuntimeError("the server is gone\nsecond line"), SystemExit(1), OSError(28, "full")]
)
def test_a_tracker_that_raises_is_told_once_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, after: int, error: BaseException
) -> None:
    monkeypatch.setitem(
        trackers.OPENERS, "tensorboard", lambda *given: (Broken(after, error), None)
    )
    run_dir, config = open_run(tmp_path, "tensorboard")
    write_steps(run_dir, config, 1, 5)
    assert [row["step"] for row in read_metrics(run_dir.metrics)] == [1, 2, 3, 4, 5]
    (problem,) = tracker_problems(run_dir.path, ["tensorboard"])
    assert problem.startswith("tracker tensorboard: ")
    assert "second line" not in problem
    assert capsys.readouterr().out.count("tracker tensorboard: ") == 1


def test_a_tracker_that_hangs_delays_neither_steps_nor_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(*given: Any) -> Any:
        time.sleep(3600)

    monkeypatch.setitem(trackers.OPENERS, "tensorboard", hang)
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 0.2)
    monkeypatch.setattr(trackers, "WAITING_ROWS", 3)
    run_dir, config = open_run(tmp_path, "tensorboard")
    write_steps(run_dir, config, 1, 8)  # returns
    assert len(read_metrics(run_dir.metrics)) == 8
    assert tracker_problems(run_dir.path, ["tensorboard"])[0].startswith(
        "tracker tensorboard: is 3 steps behind"
    )
    write_steps(run_dir, config, 9, 9)
    assert "was not done" in tracker_problems(run_dir.path, ["tensorboard"])[0]


def test_a_server_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run_dir, config = open_run(tmp_path, "mlflow")
    write_steps(run_dir, config, 1, 2)
    assert len(read_metrics(run_dir.metrics)) == 2
    assert "tracker mlflow: " in tracker_problems(run_dir.path, ["mlflow"])[0]


def test_a_missing_package_is_named_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(trackers.PACKAGES, "wandb", "no_such_package")
    (line,) = missing_trackers(["tensorboard", "wandb", "wandb"])
    assert "wandb is not installed" in line
    assert "pip install 'rarl[wandb]'" in line
    run_dir, config = open_run(tmp_path, "wandb")
    write_steps(run_dir, config, 1, 2)
    assert len(read_metrics(run_dir.metrics)) == 2


def test_an_unknown_tracker_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"key 'train.trackers.0': Input should be 'tensorboard', 'wandb' or 'mlflow'",
    ):
        open_run(tmp_path, "comet")
