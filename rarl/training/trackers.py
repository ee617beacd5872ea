"""TensorBoard, Weights & Biases and MLflow: copies of metrics.jsonl for people who watch many runs.

A tracker never stops or slows a run. Each works in a thread of its own; what it raises is told
once, and the run goes on without it. Where its server is and who the user is, its own environment
variables say (WANDB_PROJECT, WANDB_API_KEY, WANDB_MODE, MLFLOW_TRACKING_URI, …); without them W&B
writes offline files and MLflow a file store, both in the run directory. A run that continues
continues the same run there: its id is kept in `tracker-NAME.json`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from rarl.files import write_text

# tracker → what it imports
PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
WAITING_ROWS = 1000  # that a slow tracker may be behind; what is above is not sent
CLOSE_SECONDS = 30.0  # that the end of a run waits for all trackers together
PROJECT = "rarl"


class Tracker(Protocol):
    """What a thread talks to. Any error may be raised."""

    def log(self, step: int, values: dict[str, float]) -> None: ...

    def close(self) -> None: ...


# (run directory, configuration by dotted keys, first step of this process, id of the run that is
# continued or None) → the tracker and the id to keep.
Opener = Callable[[Path, dict[str, Any], int, str | None], tuple[Tracker, str | None]]


class TensorBoard:
    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.events = SummaryWriter(str(folder), purge_step=first_step)

    def log(self, step: int, values: dict[str, float]) -> None:
        for key, value in values.items():
            self.events.add_scalar(key, value, step)
        self.events.flush()

    def close(self) -> None:
        self.events.close()


class WeightsAndBiases:
    """Offline without a key: `wandb sync` sends the files later."""

    def __init__(self, folder: Path, config: dict[str, Any], identity: str) -> None:
        import wandb

        mode = os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline")
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        settings = wandb.Settings(
            console="off", silent=True, disable_git=True, x_disable_stats=True
        )
        self.run = wandb.init(
            project=project,
            name=folder.name,
            dir=str(folder),
            id=identity,
            resume="allow",
            config=config,
            mode=mode,  # type: ignore[arg-type]
            settings=settings,
        )

    def log(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values, step=step)

    def close(self) -> None:
        import wandb

        self.run.finish()
        wandb.teardown()  # its process writes the last of the files only now


def has_key() -> bool:
    return bool(os.environ.get("WANDB_API_KEY")) or "api.wandb.ai" in read_if_there(
        Path.home() / ".netrc"
    )


def read_if_there(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


class MLflow:
    """Slashes in names become dots: the file store cannot hold `drift` beside `drift/max`."""

    def __init__(self, folder: Path, config: dict[str, Any], identity: str | None) -> None:
        # MLflow 3 refuses its own file store otherwise
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        uri = os.environ.get("MLFLOW_TRACKING_URI") or (folder / "mlruns").resolve().as_uri()
        self.client, self.metric = MlflowClient(tracking_uri=uri), Metric
        self.last = 0
        if identity is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            found = self.client.get_experiment_by_name(name)
            experiment = found.experiment_id if found else self.client.create_experiment(name)
            identity = self.client.create_run(experiment, run_name=folder.name).info.run_id
            params = [Param(key, str(value)[:500]) for key, value in config.items()]
            for start in range(0, len(params), 100):
                self.client.log_batch(identity, params=params[start : start + 100])
        else:
            self.client.update_run(identity, status="RUNNING")
            self.last = max(
                (m.step for m in self.client.get_metric_history(identity, "step")), default=0
            )
        self.identity = identity

    def log(self, step: int, values: dict[str, float]) -> None:
        # made again after a crash, with the same result; MLflow would keep both
        if step <= self.last:
            return
        now = int(1000 * time.time())
        named = {"step": float(step)} | {
            key.replace("/", "."): value for key, value in values.items()
        }
        self.client.log_batch(
            self.identity, metrics=[self.metric(k, float(v), now, step) for k, v in named.items()]
        )

    def close(self) -> None:
        self.client.set_terminated(self.identity)


def open_tensorboard(
    folder: Path, config: dict[str, Any], first_step: int, identity: str | None
) -> tuple[Tracker, str | None]:
    return TensorBoard(folder / "tensorboard", first_step), None


def open_wandb(
    folder: Path, config: dict[str, Any], first_step: int, identity: str | None
) -> tuple[Tracker, str | None]:
    identity = identity or uuid.uuid4().hex[:12]
    return WeightsAndBiases(folder, config, identity), identity


def open_mlflow(
    folder: Path, config: dict[str, Any], first_step: int, identity: str | None
) -> tuple[Tracker, str | None]:
    tracker = MLflow(folder, config, identity)
    return tracker, tracker.identity


OPENERS: dict[str, Opener] = {
    "tensorboard": open_tensorboard,
    "wandb": open_wandb,
    "mlflow": open_mlflow,
}


class TrackerThread:
    """One tracker behind a queue. `problem` is what went wrong first, or None."""

    def __init__(self, name: str, run_dir: Path, config: dict[str, Any], first_step: int) -> None:
        self.name, self.run_dir = name, run_dir
        self.problem: str | None = None
        self.failing = threading.Lock()
        self.rows: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue(WAITING_ROWS)
        self.identity = read_state(run_dir, name).get("id")
        self.thread = threading.Thread(
            target=self.work, args=(config, first_step), daemon=True, name=f"tracker-{name}"
        )
        self.thread.start()

    def work(self, config: dict[str, Any], first_step: int) -> None:
        try:
            tracker, self.identity = OPENERS[self.name](
                self.run_dir, config, first_step, self.identity
            )
            self.save()
            while (row := self.rows.get()) is not None:
                tracker.log(*row)
            tracker.close()
        except BaseException as error:  # some of them raise SystemExit
            reason = str(error).strip().splitlines()
            self.fail(reason[0] if reason else type(error).__name__)

    def put(self, step: int, values: dict[str, float]) -> None:
        """Returns at once."""
        if self.problem is None:
            try:
                self.rows.put_nowait((step, values))
            except queue.Full:
                self.fail(f"is {WAITING_ROWS} steps behind")

    def close(self, deadline: float) -> None:
        """Waits for what is still to be sent, until `deadline` (`time.monotonic`)."""
        with self.failing:  # whoever is telling a problem is done with it
            if self.problem is not None:
                return
        with contextlib.suppress(queue.Full):  # then it is not done in time, either
            self.rows.put(None, timeout=max(0.0, deadline - time.monotonic()))
        self.thread.join(max(0.0, deadline - time.monotonic()))
        if self.thread.is_alive():
            self.fail(f"was not done {CLOSE_SECONDS:.0f} s after the last step")

    def fail(self, problem: str) -> None:
        with self.failing:
            if self.problem is None:
                print(explain(self.name, problem), flush=True)
                self.save(problem)
                self.problem = problem

    def save(self, problem: str | None = None) -> None:
        """Best effort: a full disk is for those to report whose files matter."""
        try:
            write_text(
                state_file(self.run_dir, self.name),
                json.dumps({"id": self.identity, "problem": problem}),
            )
        except OSError as error:
            print(f"tracker {self.name}: its id could not be kept: {error}", flush=True)


class Trackers:
    """All trackers of a run."""

    def __init__(
        self, names: Sequence[str], run_dir: Path, config: dict[str, Any], first_step: int
    ) -> None:
        there = [name for name in dict.fromkeys(names) if is_installed(name)]
        self.threads = [TrackerThread(name, run_dir, config, first_step) for name in there]

    def log(self, row: dict[str, Any]) -> None:
        """Numbers of one step, as in metrics.jsonl; what is None is left out."""
        values = {
            key: float(value) for key, value in row.items() if key != "step" and value is not None
        }
        for thread in self.threads:
            thread.put(row["step"], values)

    def close(self) -> None:
        deadline = time.monotonic() + CLOSE_SECONDS
        for thread in self.threads:
            thread.close(deadline)


def is_installed(name: str) -> bool:
    return importlib.util.find_spec(PACKAGES[name]) is not None


def missing_trackers(names: Sequence[str]) -> list[str]:
    """A line for each tracker whose package is not there, with what to install. To be said before a
    run."""
    return [
        f"train.trackers: {name} is not installed, so the run goes on without it; .venv/bin/pip install 'rarl[{name}]'"
        for name in dict.fromkeys(names)
        if not is_installed(name)
    ]


def tracker_problems(run_dir: Path, names: Sequence[str]) -> list[str]:
    """A line for each tracker that failed while the run went on."""
    found = {name: read_state(run_dir, name).get("problem") for name in dict.fromkeys(names)}
    return [explain(name, problem) for name, problem in found.items() if problem]


def explain(name: str, problem: str) -> str:
    return (
        f"tracker {name}: {problem}; the run went on without it, and metrics.jsonl has everything"
    )


def state_file(run_dir: Path, name: str) -> Path:
    return run_dir / f"tracker-{name}.json"


def read_state(run_dir: Path, name: str) -> dict[str, Any]:
    try:
        held = json.loads(state_file(run_dir, name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return held if isinstance(held, dict) else {}
