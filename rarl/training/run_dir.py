"""The run directory: one folder that holds everything a run reads from its past and leaves
behind."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from rarl.config import Config, dump_config
from rarl.errors import UserError
from rarl.files import write_text
from rarl.keys import is_within

# What a run that is continued may have otherwise: where and how it is computed, not what. Samples
# stay the same; log-probs and gradients may differ in their last bits.
FREE_TO_CONTINUE = (
    "data.allow_same_files",
    "evaluation.by",
    "judge.allow_same",
    "judge.url",
    "judge.timeout_seconds",
    "judge.retries",
    "judge.concurrency",
    "judge.own_gpu",
    "judge.gpu_memory_share",
    "rollout.num_actors",
    "rollout.timeout_seconds",
    "rollout.kv_cache_mib",
    "rollout.max_sequences",
    "rollout.gpu_memory_share",
    "train.num_workers",
    "train.micro_batch_tokens",
    "train.gradient_checkpointing",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.max_restarts",
    "train.trackers",
)
# What the replies of a measurement depend on, beside what is in its key.
OF_REPLIES = (
    "seed",
    "model",
    "data.eval",
    "data.max_pixels",
    "data.max_images",
    "data.on_bad_row",
    "rollout.temperature",
    "rollout.max_completion_tokens",
    "prompts.templates",
    "judge",
    "evaluation",
)
# What a probe's replies do not depend on.
UNPROBED = ("data.select", "grpo", "train", "evaluation.every", "evaluation.examples")

UPLOADED = re.compile(r"^/.*/working_dir_files/_ray_pkg_\w+/")


class RunDir:
    """The paths in a run directory; README.md says what each file holds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # what became of what was found there, as lines for the user
        self.notes: list[str] = []
        self.config = path / "config.yaml"
        self.templates = path / "prompts.yaml"
        self.evaluation = path / "evaluation"
        self.data = path / "data"
        self.logs = path / "logs"
        self.metrics = path / "metrics.jsonl"
        self.tensorboard = path / "tensorboard"
        self.samples = path / "samples"
        self.interim = path / "interim"
        self.checkpoints = path / "checkpoints"
        self.failures = path / "failures"
        self.adapter = path / "adapter"
        self.training_data = path / "training-data.txt"
        self.trained_on = path / "trained-on.parquet"
        self.leaks = path / "leaks.json"
        self.probe = path / "probe"
        self.selection = path / "selection.parquet"
        self.fluency = path / "fluency.json"
        self.summary = path / "summary.json"
        self.seconds = path / "seconds.json"
        # exists while the run has been asked to end after the step that it is in
        self.stop_request = path / ".stop"

    def samples_of(self, step: int, rank: int) -> Path:
        """Returns the file with the samples that one train worker made in a step."""
        return self.samples / f"step_{step:06d}{f'-worker{rank}' if rank else ''}.parquet"

    def interim_of(self, data: str, step: int, rank: int) -> Path:
        """Returns the file with a train worker's greedy replies to the questions of a data set that
        are asked on the way, after a step."""
        folder = self.interim / f"data={quote(data, safe='')}"
        return folder / self.samples_of(step, rank).name

    def drop_samples_from(self, first_step: int) -> None:
        """Deletes the replies of steps that are made anew, perhaps by fewer train workers."""
        found = (*self.samples.glob("step_*.parquet"), *self.interim.glob("*/step_*.parquet"))
        for path in found:
            if path.name >= f"step_{first_step:06d}":
                path.unlink()

    def judge_cache_of(self, rank: int) -> Path:
        """Returns the file with the verdicts that one train worker asked for; those of the
        measurements are with rank 0's."""
        return self.path / f"judge{f'-{rank}' if rank else ''}.sqlite"

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Inside, no other process of this machine is at work in this folder. Raises UserError
        where one is."""
        lock = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise UserError(
                f"{self.path}: another process is at work in this run directory; wait for it"
            ) from None
        except OSError:
            pass  # a file system without locks
        try:
            yield
        finally:
            os.close(lock)

    def holds_steps(self) -> bool:
        """Returns True once a step is finished."""
        begun = self.metrics.is_file() and self.metrics.stat().st_size > 0
        return begun or any(one.exists() for one in (self.checkpoints, self.adapter, self.summary))

    def read_leaks(self) -> dict[str, dict[str, Any]]:
        """Returns what measured data sets share with the training data, by name."""
        if not self.leaks.is_file():
            return {}
        leaks: dict[str, dict[str, Any]] = json.loads(self.leaks.read_text(encoding="utf-8"))
        return leaks

    def read_summary(self) -> dict[str, Any] | None:
        """Returns the results of a finished run, or None."""
        if not self.summary.is_file():
            return None
        summary: dict[str, Any] = json.loads(self.summary.read_text())
        return summary


@dataclass(frozen=True)
class Change:
    """A key of a configuration that differs from the run directory's own; None: it is not set."""

    key: str
    held: Any
    wanted: Any

    @property
    def lengthens(self) -> bool:
        """Whether the run goes on with more steps, or has a further data set to measure on."""
        if self.key == "train.steps":
            return bool(self.wanted > (self.held or 0))
        return self.key.startswith("data.eval.") and self.held is None

    @property
    def changes_replies(self) -> bool:
        """Whether a measurement's replies would be others."""
        other_data = self.key.startswith("data.eval.") and None in (self.held, self.wanted)
        return not other_data and any(is_within(self.key, group) for group in OF_REPLIES)

    def __str__(self) -> str:
        return f"{self.key} is {self.held!r} there, {self.wanted!r} here"


def open_run_dir(config: Config, trains: bool = True) -> RunDir:
    """Makes the folder, or continues one that was made with the same configuration, or, if it
    `trains`, with fewer steps or data sets. One without a finished step is taken over. Raises
    UserError when it holds steps of another configuration or cannot be written."""
    run_dir = RunDir(Path(config.run_dir).expanduser().resolve())
    try:
        run_dir.path.mkdir(parents=True, exist_ok=True)
        visible = [one for one in run_dir.path.iterdir() if not one.name.startswith(".")]
        if visible and not run_dir.config.exists():
            raise UserError(
                f"{run_dir.path}: not empty and not a run directory; choose another run_dir"
            )
        with run_dir.owned():
            changes = changes_of(run_dir, config)
            if refused := refused_of(changes, run_dir, trains):
                raise UserError(
                    f"{run_dir.path}: already holds a run with another configuration "
                    f"({refused[0]}); choose another run_dir, or delete that folder. A run that is "
                    "continued may have more train.steps and further data sets in data.eval, and "
                    f"change {', '.join(FREE_TO_CONTINUE)}"
                )
            if changes and not run_dir.holds_steps():
                take_over(run_dir, changes)
            elif longer := [one for one in changes if one.key == "train.steps"]:
                lengthen(run_dir, longer[0], config)
            for change in changes:
                (run_dir.data / f"{change.key}.parquet").unlink(missing_ok=True)
            if changes or not run_dir.read_summary():
                write_text(run_dir.config, dump_config(config))
            if config.prompts.templates is not None:
                write_text(run_dir.templates, read_templates(config))
    except OSError as error:
        raise UserError(
            f"{run_dir.path}: cannot be used as run directory: {error.strerror or error}"
        ) from None
    return run_dir


def changes_of(run_dir: RunDir, config: Config) -> list[Change]:
    """Returns what differs from the folder's own configuration, if it has one, and is not free.
    `run_dir` itself may be spelled otherwise, since the folder may have moved."""
    if not run_dir.config.exists():
        return []
    held, wanted = flatten(yaml.safe_load(run_dir.config.read_text())), flatten(config.model_dump())
    keys = sorted({*held, *wanted} - {"run_dir", *FREE_TO_CONTINUE})
    changes = [Change(key, held.get(key), wanted.get(key)) for key in keys]
    changes = [one for one in changes if as_submitted(one.held) != as_submitted(one.wanted)]
    if config.prompts.templates is not None and run_dir.templates.exists():
        texts = (run_dir.templates.read_text(encoding="utf-8"), read_templates(config))
        if texts[0] != texts[1]:
            changes.append(Change("prompts.templates", "the text in prompts.yaml", "another text"))
    return changes


def as_submitted(value: Any) -> Any:
    """Returns a path in the working directory that a Ray job brings along as it is there, since Ray
    unpacks each job's in another place; any other value as it is."""
    return UPLOADED.sub("", value) if isinstance(value, str) else value


def refused_of(changes: list[Change], run_dir: RunDir, trains: bool = True) -> list[Change]:
    """Returns those that make it another run, which a folder with a finished step refuses."""
    if not run_dir.holds_steps():
        return []
    free = [one for one in changes if one.lengthens or is_unmeasured(one, run_dir)]
    return [one for one in changes if not (trains and one in free)]


def is_unmeasured(change: Change, run_dir: RunDir) -> bool:
    """Whether a data set is left out of which no reply was made, such as one with a bad row."""
    name = change.key.removeprefix("data.eval.")
    left_out = name != change.key and change.wanted is None
    return left_out and not any(run_dir.evaluation.rglob(f"data={quote(name, safe='')}"))


def read_templates(config: Config) -> str:
    return Path(str(config.prompts.templates)).read_text(encoding="utf-8")


def take_over(run_dir: RunDir, changes: list[Change]) -> None:
    """Clears away what an attempt with another configuration left that did not come to its first
    step. Measurements stay if their replies would be the same, or else are kept under another
    name."""
    if run_dir.evaluation.exists() and (other := [one for one in changes if one.changes_replies]):
        asides = (run_dir.path / f"evaluation.{number}" for number in count(1))
        aside = next(one for one in asides if not one.exists())
        run_dir.evaluation.rename(aside)
        run_dir.notes.append(
            f"measured anew, since {other[0]}; the measurements that were there are in {aside}"
        )
    shutil.rmtree(run_dir.data, ignore_errors=True)
    if not all(any(is_within(one.key, group) for group in UNPROBED) for one in changes):
        shutil.rmtree(run_dir.probe, ignore_errors=True)
    for path in (
        run_dir.templates,
        run_dir.fluency,
        run_dir.seconds,
        *run_dir.path.glob("tracker-*.json"),
    ):
        path.unlink(missing_ok=True)


def lengthen(run_dir: RunDir, change: Change, config: Config) -> None:
    """Moves what a finished run of fewer steps has made into a folder of its own, and tells what
    more steps mean. Killed on the way, it goes on where it stopped. Raises UserError if there is no
    checkpoint to go on from."""
    fewer, more = change.held, change.wanted
    if run_dir.adapter.exists():
        if not any(run_dir.checkpoints.glob("step_*")):
            raise UserError(
                f"{run_dir.path}: finished its {fewer} steps and has no checkpoint to go on from; "
                f"choose another run_dir, with model.adapter={run_dir.path} to start from this one"
            )
        aside = run_dir.path / f"steps-{fewer}"
        measured = run_dir.evaluation.rglob("model=trained")
        summaries = run_dir.evaluation.glob("summary*.json")
        move([run_dir.summary, *summaries, *measured, run_dir.adapter], run_dir.path, aside)
        run_dir.notes.append(f"results of the {fewer} steps are kept in {aside}")
    run_dir.notes.append(f"train.steps rises from {fewer} to {more}")
    if config.train.schedule == "cosine":
        run_dir.notes[-1] += (
            ": from here on the learning rate is that of a cosine over all "
            f"{more} steps, so it rises at once from where the cosine over {fewer} had fallen to, "
            f"and the result is not that of {more} steps from the beginning"
        )


def move(paths: Iterable[Path], root: Path, target: Path) -> None:
    """Moves those that are there from `root` to the same places in `target`."""
    for path in paths:
        if path.exists():
            place = target / path.relative_to(root)
            place.parent.mkdir(parents=True, exist_ok=True)
            path.rename(place)


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Returns nested mappings as one with dotted keys."""
    if not isinstance(tree, dict):
        return {prefix.rstrip("."): tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.")
    return flat
