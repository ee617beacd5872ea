"""Trackers: the real ones get every step once and go on after an interruption; one that fails stops
nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest

from rarl.config import Config, load_config
from rarl.errors import UserError
from rarl.evaluation.report.charts import seconds_chart
from rarl.training import log
from rarl.training.log import (
    PHASES,
    MetricsLog,
    Stopwatch,
    missing_trackers,
    read_metrics,
    read_state,
    tracker_problems,
)
from rarl.training.run_dir import RunDir, open_run_dir
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
def test_tensorboard_is_the_default_and_has_every_step_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = load_config(REPOSITORY / "configs/demo.yaml", [f"run_dir={tmp_path / 'run'}"])
    run_dir = open_run_dir(config)
    write_steps(run_dir, config, 1, 3)
    write_steps(run_dir, config, 3, 4)  # from the checkpoint of step 2
    events = EventAccumulator(str(run_dir.tensorboard))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert found == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    assert tracker_problems(run_dir.path, ["tensorboard"]) == []


class Broken:
    """A tracker as a user might see it: well at first, then not."""

    def __init__(self, after: int, error: BaseException) -> None:
        self.left, self.error = after, error

    def log(self, values: dict[str, float], step: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise self.error

    def finish(self) -> None:
        self.log({}, 0)


@pytest.mark.parametrize("after", [0, 2, 5])
@pytest.mark.parametrize(
    "error", [RuntimeError("the server is gone\nsecond line"), SystemExit(1), OSError(28, "full")]
)
def test_a_tracker_that_raises_is_told_once_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, after: int, error: BaseException
) -> None:
    monkeypatch.setattr(log, "start_tracker", lambda own: Broken(after, error))
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
    def hang(own: log.Tracker) -> Any:
        time.sleep(3600)

    monkeypatch.setattr(log, "start_tracker", hang)
    monkeypatch.setattr(log, "CLOSE_SECONDS", 0.2)
    monkeypatch.setattr(log, "WAITING_ROWS", 3)
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
    monkeypatch.setattr(log, "is_installed", lambda name: name == "tensorboard")
    (line,) = missing_trackers(["tensorboard", "wandb", "wandb"])
    assert "wandb is not installed" in line
    assert "pip install 'rarl[wandb]'" in line
    assert missing_trackers(["comet_ml"])[0].endswith("pip install comet_ml")
    run_dir, config = open_run(tmp_path, "wandb")
    write_steps(run_dir, config, 1, 2)
    assert len(read_metrics(run_dir.metrics)) == 2


def test_an_unknown_tracker_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"key 'train.trackers.0': Input should be 'tensorboard', 'wandb', 'mlflow', .* or "
        "'trackio'",
    ):
        open_run(tmp_path, "comet")


class Library:
    """Stands in for the package of a tracker that is not installed here: it takes everything, and
    notes what its run was begun with and what that run was told."""

    __version__ = "4.0.0"

    def __init__(self) -> None:
        self.begun: list[dict[str, Any]] = []
        self.told: list[tuple[str, float, int]] = []
        self.info = SimpleNamespace(run_id="chosen-there")
        self.hash = self.id = "chosen-there"
        self.config: dict[str, Any] = {}
        self.first_iteration, self.step = -1, 0

    def begin(self, *given: Any, **options: Any) -> Library:
        self.begun.append(options)
        return self

    # Comet, SwanLab and Trackio, Aim, ClearML, DVCLive
    start = init = Run = Live = begin

    @property
    def Task(self) -> Library:  # noqa: N802
        return self

    def current_task(self) -> None:
        return None

    def set_initial_iteration(self, number: int) -> None:
        self.first_iteration = number

    def log(self, values: dict[str, float], step: int) -> None:
        self.told += [(name, value, step) for name, value in values.items()]

    def log_metric(self, name: str, value: float, step: int = 0) -> None:
        self.told.append((name, value, step or self.step))

    def track(self, value: float, name: str, step: int) -> None:
        self.told.append((name, value, step))

    def report_scalar(self, title: str, series: str, value: float, iteration: int) -> None:
        self.told.append((title, value, iteration))

    def get_logger(self) -> Library:
        return self

    def __setitem__(self, key: str, value: Any) -> None:
        self.config[key] = value

    def ignored(self, *given: Any, **options: Any) -> None:
        pass

    def set_step(self, step: int) -> None:
        self.step = step

    log_parameters = connect_configuration = log_params = next_step = ignored
    end = close = finish = ignored


@pytest.mark.parametrize(
    ("name", "key", "first", "then"),
    [
        ("comet_ml", "experiment_key", "kept", "kept"),
        ("aim", "run_hash", None, "chosen-there"),
        ("clearml", "continue_last_task", False, "chosen-there"),
        ("dvclive", "resume", True, True),
        ("swanlab", "id", "kept", "kept"),
        ("trackio", "name", "run-kept", "run-kept"),
    ],
)
def test_the_other_trackers_get_each_step_once_and_go_on_with_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, key: str, first: Any, then: Any
) -> None:
    """What accelerate passes on to them; their packages are not installed here."""
    library = Library()
    for module in (name, "dvclive.plots"):
        monkeypatch.setitem(sys.modules, module, cast(ModuleType, library))
    library.plots = library.Metric = library  # type: ignore[attr-defined]
    library.could_log = lambda value: True  # type: ignore[attr-defined]
    monkeypatch.setattr(log, "is_installed", lambda name: True)
    monkeypatch.setattr(log.uuid, "uuid4", lambda: SimpleNamespace(hex="kept"))
    run_dir, config = open_run(tmp_path, name)
    write_steps(run_dir, config, 1, 4)
    write_steps(run_dir, config, 3, 6)
    assert tracker_problems(run_dir.path, [name]) == []
    assert [begun[key] for begun in library.begun] == [first, then]
    losses = [(value, step) for key, value, step in library.told if key == "loss"]
    assert losses == [(float(step), step) for step in range(1, 7)]
    if name == "clearml":
        assert library.first_iteration == 0
    if name == "swanlab":
        assert library.begun[0]["mode"] == "offline"


def test_the_report_shows_all_phases_of_a_step() -> None:
    clock = Stopwatch()
    for phase in PHASES:
        with clock.phase(phase):
            time.sleep(0.001)
    rows = [{"step": step, **clock.lap()} for step in (1, 2)]
    rows[1] = rows[0] | {"step": 2}
    chart = seconds_chart([cast(Any, SimpleNamespace(metrics=rows, name="trained"))])
    assert chart is not None
    assert [name for name, _ in chart.legend] == [*PHASES, "other"]
