"""The run directory: one folder that holds everything a run reads from its past and leaves
behind."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from rarl.config import Config, dump_config
from rarl.errors import UserError
from rarl.files import write_text

# What a run that is continued may have otherwise: where and how it is computed, not what. Samples
# stay the same; log-probs and gradients may differ in their last bits.
FREE_TO_CONTINUE = (
    "data.allow_same_files",
    "judge.url",
    "judge.timeout_seconds",
    "judge.retries",
    "judge.concurrency",
    "rollout.num_actors",
    "rollout.timeout_seconds",
    "rollout.kv_cache_mib",
    "rollout.gpu_memory_share",
    "train.num_workers",
    "train.micro_batch_tokens",
    "train.gradient_checkpointing",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.max_restarts",
    "train.trackers",
)


class RunDir:
    """The paths in a run directory; README.md says what each file holds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.data = path / "data"
        self.logs = path / "logs"
        self.metrics = path / "metrics.jsonl"
        self.tensorboard = path / "tensorboard"
        self.samples = path / "samples"
        self.checkpoints = path / "checkpoints"
        self.failures = path / "failures"
        self.adapter = path / "adapter"
        self.trained_on = path / "trained-on.parquet"
        self.leaks = path / "leaks.json"
        self.summary = path / "summary.json"
        # exists while the run has been asked to end after the step that it is in
        self.stop_request = path / ".stop"

    def samples_of(self, step: int, rank: int) -> Path:
        """Returns the file with the samples that one train worker made in a step."""
        return self.samples / f"step_{step:06d}{f'-worker{rank}' if rank else ''}.parquet"

    def drop_samples_from(self, first_step: int) -> None:
        """Deletes the samples of steps that are made anew, perhaps by fewer train workers."""
        for path in self.samples.glob("step_*.parquet"):
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

    def holds_results(self) -> bool:
        """Returns True once anything was measured or trained."""
        results = (self.path / "evaluation", self.checkpoints, self.metrics, self.adapter)
        return any(path.exists() for path in results)

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


def open_run_dir(config: Config) -> RunDir:
    """Makes the folder, or continues one that was made with the same configuration. One that holds
    no results yet, because an attempt failed early, is taken over. Raises UserError when it holds
    results of another configuration or cannot be written."""
    run_dir = RunDir(Path(config.run_dir).expanduser().resolve())
    try:
        run_dir.path.mkdir(parents=True, exist_ok=True)
        visible = [one for one in run_dir.path.iterdir() if not one.name.startswith(".")]
        if visible and not run_dir.config.exists():
            raise UserError(
                f"{run_dir.path}: not empty and not a run directory; choose another run_dir"
            )
        changed = run_dir.config.exists() and changed_key(run_dir, config)
        if changed and run_dir.holds_results():
            raise UserError(
                f"{run_dir.path}: already holds a run with another configuration ({changed}); "
                "choose another run_dir, or delete that folder. A run that is continued may "
                f"change {', '.join(FREE_TO_CONTINUE)}"
            )
        if changed:
            # made by the other configuration, with its seed
            shutil.rmtree(run_dir.data, ignore_errors=True)
        if not run_dir.read_summary():
            write_text(run_dir.config, dump_config(config))
    except OSError as error:
        raise UserError(
            f"{run_dir.path}: cannot be used as run directory: {error.strerror or error}"
        ) from None
    return run_dir


def changed_key(run_dir: RunDir, config: Config) -> str | None:
    """Returns in words the first key that differs from the folder's own configuration and may not,
    or None. `run_dir` itself may be spelled otherwise, since the folder may have moved."""
    held, wanted = flatten(yaml.safe_load(run_dir.config.read_text())), flatten(config.model_dump())
    for key in sorted({*held, *wanted} - {"run_dir", *FREE_TO_CONTINUE}):
        if held.get(key) != wanted.get(key):
            return f"{key} is {held.get(key)!r} there, {wanted.get(key)!r} here"
    return None


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Returns nested mappings as one with dotted keys."""
    if not isinstance(tree, dict):
        return {prefix.rstrip("."): tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.")
    return flat
