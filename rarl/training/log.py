"""What a run leaves for those who watch it: metrics.jsonl, its picture, and copies for trackers.

A tracker never stops or slows a run: each has a thread of its own, and what it raises is told once.
Its own environment variables name server and user; without them most write into the run directory.
A continued run goes on in the same run there, whose id `tracker-NAME.json` keeps.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, TextIO

from rarl.config import Config
from rarl.errors import UserError
from rarl.files import replacing, write_text
from rarl.training.alarms import alarms, of_rewards
from rarl.training.run_dir import RunDir, flatten

PHASES = ("data", "rollout", "reward", "update", "publish", "evaluate", "save")  # of a step
RECENT = 10  # steps that a mean is over: of the score of a checkpoint, and of the curves
WAITING_ROWS = 1000  # that a slow tracker may be behind; after that it gets no more
KEPT_EVERY = 10.0  # seconds, of the time that a start has taken so far
CLOSE_SECONDS = 30.0  # that the end of a run waits for all trackers together
PROJECT = "rarl"


class Stopwatch:
    """Seconds by phase; what is in no phase is `other`, so that nothing is left out of the step."""

    def __init__(self) -> None:
        self.started, self.phases = time.perf_counter(), dict.fromkeys(PHASES, 0.0)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.phases[name] += time.perf_counter() - begin

    def lap(self) -> dict[str, float]:
        """Returns the seconds of the step that ends now; the next one begins."""
        now = time.perf_counter()
        whole = now - self.started
        seconds = self.phases | {"other": whole - sum(self.phases.values()), "step": whole}
        self.started, self.phases = now, dict.fromkeys(PHASES, 0.0)
        return {f"seconds/{name}": value for name, value in seconds.items()}


class SecondsLog(contextlib.AbstractContextManager["SecondsLog"]):
    """The wall seconds that a run has taken, in training and as a whole, start by start, in
    `seconds.json`. They are kept from time to time: a killed start loses the last few at most."""

    def __init__(self, path: Path, started: float) -> None:
        """`started` is when this start began, by `time.monotonic`."""
        self.path, self.started = path, started
        self.earlier: list[dict[str, float]] = (
            json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        )
        self.trained: Callable[[], float] = lambda: 0.0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.keep, daemon=True, name="seconds")
        self.thread.start()

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        begin = time.monotonic()
        self.trained = lambda: time.monotonic() - begin
        try:
            yield
        finally:
            taken = self.trained()
            self.trained = lambda: taken

    def over_all_starts(self) -> dict[str, Any]:
        """Returns the sums, `train` and `total`, and the same two of each start as `starts`."""
        own = {"train": self.trained(), "total": time.monotonic() - self.started}
        starts = [*self.earlier, own]
        return {name: sum(one[name] for one in starts) for name in own} | {"starts": starts}

    def keep(self) -> None:
        while not self.ended.wait(KEPT_EVERY):
            self.save()

    def save(self) -> None:
        """Best effort: a full disk is for those to report whose files matter."""
        with contextlib.suppress(OSError):
            write_text(self.path, json.dumps(self.over_all_starts()["starts"]))

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        self.thread.join()
        self.save()


class MetricsLog(contextlib.AbstractContextManager["MetricsLog"]):
    """Appends a line a step to metrics.jsonl, the same keys in each; a run that continues at step n
    first drops what an interrupted one wrote from n on."""

    def __init__(self, run_dir: RunDir, config: Config, first_step: int, writes: bool = True):
        """Opens the file; with `writes` False nothing is read or written, which is for the train
        workers beside the first."""
        self.rows: list[dict[str, Any]] = []
        self.told: set[str] = set()  # of the alarms
        self.stops = config.train.on_silent_reward == "stop"
        self.file: TextIO | None = None
        self.trackers: list[Tracker] = []
        if not writes:
            return
        kept = [row for row in read_metrics(run_dir.metrics) if row["step"] < first_step]
        write_text(run_dir.metrics, "".join(json.dumps(row) + "\n" for row in kept))
        self.rows.extend(kept)
        self.file = run_dir.metrics.open("a", encoding="utf-8")
        settings = flatten(config.model_dump())
        names = [name for name in dict.fromkeys(config.train.trackers) if is_installed(name)]
        self.trackers = [Tracker(name, run_dir.path, settings, first_step) for name in names]

    def write(self, row: dict[str, Any]) -> None:
        """Writes one step; the trackers get the numbers in it. What is wrong is printed,
        once. Raises UserError for a reward that trains nothing where `train.on_silent_reward` is
        "stop"."""
        if self.file is None:
            return
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        os.fsync(self.file.fileno())
        self.rows.append(row)
        numbers = {k: float(v) for k, v in row.items() if k != "step" and v is not None}
        for tracker in self.trackers:
            tracker.put(row["step"], numbers)
        for about, sentence in alarms(self.rows).items():
            if about not in self.told:
                print(f"step {row['step']}: warning: {sentence}", flush=True)
            self.told.add(about)
            if self.stops and of_rewards(about):
                raise UserError(f"{sentence} (train.on_silent_reward=stop)")

    def recent(self, key: str) -> float | None:
        """Returns the mean of the last ten steps' values; None where there are none."""
        values = [row[key] for row in self.rows[-RECENT:] if row[key] is not None]
        return sum(values) / len(values) if values else None

    def __exit__(self, *error: object) -> None:
        if self.file is not None:
            self.file.close()
        deadline = time.monotonic() + CLOSE_SECONDS
        for tracker in self.trackers:
            tracker.close(deadline)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns all complete lines; a last line that was cut off is left out."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines if line]


def draw_curve(metrics: Path, out: Path) -> None:
    """Draws reward with its parts (or the loss) and the sampler mismatch (or the gradient) over the
    steps, as a PNG."""
    import matplotlib
    import pandas as pd

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    steps = pd.DataFrame(read_metrics(metrics), dtype=float).set_index("step")
    rewarded, sampled = "reward/mean" in steps, "sampler_mismatch" in steps
    shown = steps.filter(regex="^reward/" if rewarded else "^loss$")
    shown = shown.rename(columns=lambda key: key.removeprefix("reward/"))
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    # Trailing means, gaps left out.
    means = shown.rolling(RECENT, min_periods=1).mean()
    strong = list(means.plot(ax=left, legend=False).lines)
    colours = [line.get_color() for line in strong]
    shown.plot(ax=left, color=colours, alpha=0.2, linewidth=0.8, legend=False)
    left.legend(strong, shown.columns, frameon=False)
    left.set(title=f"{'reward' if rewarded else 'loss'} (mean of {RECENT} steps)")
    steps["sampler_mismatch" if sampled else "grad_norm"].plot(ax=right, logy=True)
    right.set(title="sampler mismatch, mean |Δ log-prob|" if sampled else "norm of the gradient")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    with replacing(out) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    plt.close(figure)


class Tracker:
    """One of accelerate's trackers in a thread, behind a queue. `state` is what tracker-NAME.json
    keeps: the run's id there, the last step that it has, and what went wrong first, or None."""

    def __init__(self, name: str, run_dir: Path, config: dict[str, Any], first_step: int) -> None:
        self.name, self.run_dir, self.config, self.first_step = name, run_dir, config, first_step
        self.state = {"id": None, "sent": 0} | read_state(run_dir, name) | {"problem": None}
        self.failing = threading.Lock()
        self.rows: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue(WAITING_ROWS)
        self.thread = threading.Thread(target=self.work, daemon=True, name=f"tracker-{name}")
        self.thread.start()

    def work(self) -> None:
        try:
            tracker = start_tracker(self)
            self.save()
            while (row := self.rows.get()) is not None:
                step, values = row
                # Steps made again after a crash have the same result, and most trackers would keep
                # both; TensorBoard has dropped the first.
                if step > self.state["sent"] or self.name == "tensorboard":
                    if self.name == "mlflow":  # cannot hold `drift` beside `drift/max`
                        values = {key.replace("/", "."): v for key, v in values.items()}
                    tracker.log(values, step=step)
                    self.save(sent=step)
            tracker.finish()
            if self.name == "wandb":  # its process writes the last of the files only now
                importlib.import_module("wandb").teardown()
        except BaseException as error:  # some of them raise SystemExit
            reason = str(error).strip().splitlines()
            self.fail(reason[0] if reason else type(error).__name__)

    def put(self, step: int, values: dict[str, float]) -> None:
        """Returns at once."""
        if self.state["problem"] is None:
            try:
                self.rows.put_nowait((step, values))
            except queue.Full:
                self.fail(f"is {WAITING_ROWS} steps behind")

    def close(self, deadline: float) -> None:
        """Waits for what is still to be sent, until `deadline` (`time.monotonic`)."""
        with self.failing:  # whoever is telling a problem is done with it
            if self.state["problem"] is not None:
                return
        with contextlib.suppress(queue.Full):  # then it is not done in time, either
            self.rows.put(None, timeout=max(0.0, deadline - time.monotonic()))
        self.thread.join(max(0.0, deadline - time.monotonic()))
        if self.thread.is_alive():
            self.fail(f"was not done {CLOSE_SECONDS:.0f} s after the last step")

    def fail(self, problem: str) -> None:
        with self.failing:
            if self.state["problem"] is None:
                told = f"tracker {self.name}: {problem}; the run went on without it"
                self.save(problem=f"{told}, and metrics.jsonl has everything")
                print(self.state["problem"], flush=True)

    def save(self, **changes: Any) -> None:
        """Best effort: a full disk is for those to report whose files matter."""
        self.state |= changes
        try:
            write_text(self.run_dir / f"tracker-{self.name}.json", json.dumps(self.state))
        except OSError as error:
            print(f"tracker {self.name}: its id could not be kept: {error}", flush=True)


def start_tracker(own: Tracker) -> Any:
    """Starts accelerate's tracker: of a new run there, or of the one whose id was kept."""
    from accelerate import tracking

    # accelerate's own logger joins process groups to learn whether this is the main process
    tracking.logger = logging.getLogger("accelerate.tracking")
    name, title, folder, kept = own.name, own.run_dir.name, own.run_dir.resolve(), own.state["id"]
    run, prefix = kept or uuid.uuid4().hex, name.removesuffix("_ml").upper()
    # MLflow 3 refuses its own file store otherwise
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    os.environ.setdefault("MLFLOW_TRACKING_URI", (folder / "mlruns").as_uri())
    login = Path.home() / (".swanlab/.netrc" if name == "swanlab" else ".netrc")
    keyed = any(os.environ.get(f"{prefix}_{end}") for end in ("MODE", "API_KEY"))
    keyed = keyed or (login.is_file() and f"api.{name}." in login.read_text(errors="replace"))
    named = {"name": title, "config": own.config, "resume": "allow"}
    account = named | ({} if keyed else {"mode": "offline"})
    quiet = {"console": "off", "silent": True, "disable_git": True, "x_disable_stats": True}
    options: dict[str, dict[str, Any]] = {
        "tensorboard": {"logging_dir": folder, "purge_step": own.first_step},
        "wandb": account | {"id": run, "dir": str(folder), "settings": quiet},
        "mlflow": {"run_id": kept, "run_name": title},
        "comet_ml": {"experiment_key": run},
        "aim": {"logging_dir": folder, "run_hash": kept, "system_tracking_interval": None},
        "clearml": {"task_name": title, "continue_last_task": kept or False},
        "dvclive": {"dir": str(folder / "dvclive"), "resume": True, "save_dvc_exp": False},
        "swanlab": account | {"id": run[:21], "logdir": str(folder / "swanlog")},
        "trackio": named | {"name": f"{title}-{run[:8]}"},
    }
    fixed = {"tensorboard": "tensorboard", "aim": title}  # a folder, and the name of the run
    project = os.environ.get(f"{prefix}_PROJECT") or os.environ.get(f"{prefix}_PROJECT_NAME")
    start = tracking.LOGGER_TYPE_TO_CLASS[name]
    tracker = start(fixed.get(name) or project or PROJECT, **options[name])
    tracker.main_process_only = False  # it would ask that logger's question, too
    tracker.start()
    if name == "clearml":
        tracker.tracker.set_initial_iteration(0)  # it would count on from the last step
    if kept is None and name in ("mlflow", "comet_ml", "aim", "clearml", "dvclive"):
        tracker.store_init_configuration({k: str(v)[:500] for k, v in own.config.items()})
    chosen_there = {"mlflow": "info.run_id", "aim": "hash", "clearml": "id"}.get(name)
    own.state["id"] = attrgetter(chosen_there)(tracker.tracker) if chosen_there else run
    return tracker


def is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def missing_trackers(names: Sequence[str]) -> list[str]:
    """Returns a line for each tracker whose package is not there, with what to install. To be said
    before a run."""
    packages = {"mlflow": "'rarl[mlflow]'", "wandb": "'rarl[wandb]'"}
    return [
        f"train.trackers: {name} is not installed, so the run goes on without it; "
        f".venv/bin/pip install {packages.get(name, name)}"
        for name in dict.fromkeys(names)
        if not is_installed(name)
    ]


def tracker_problems(run_dir: Path, names: Sequence[str]) -> list[str]:
    """Returns a line for each tracker that failed while the run went on."""
    states = [read_state(run_dir, name) for name in dict.fromkeys(names)]
    return [state["problem"] for state in states if state.get("problem")]


def read_state(run_dir: Path, name: str) -> dict[str, Any]:
    """Returns what tracker-NAME.json holds; nothing where it is not there or damaged."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return dict(json.loads((run_dir / f"tracker-{name}.json").read_text(encoding="utf-8")))
    return {}
