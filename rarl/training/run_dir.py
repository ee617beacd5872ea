"""The run directory: one folder that holds everything a run reads from its past and leaves
behind."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rarl.config import Config, dump_config
from rarl.errors import UserError
from rarl.files import write_text

# What a run that is continued may have otherwise: where and how it is computed, not what. Samples
# stay the same; log-probs and gradients may differ in their last bits.
FREE_TO_CONTINUE = (
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


@dataclass(frozen=True)
class RunDir:
    """Paths only; see README.md for what each file holds."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def stop_request(self) -> Path:
        """Exists while the run has been asked to end after the step that it is in."""
        return self.path / ".stop"

    @property
    def failures(self) -> Path:
        return self.path / "failures"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def samples_of(self, step: int, rank: int) -> Path:
        """The file with the samples that one train worker made in a step."""
        return self.samples / f"step_{step:06d}{f'-worker{rank}' if rank else ''}.parquet"

    def judge_cache_of(self, rank: int) -> Path:
        """The verdicts of one train worker's judge; those of the measurements are with rank 0's."""
        return self.path / f"judge{f'-{rank}' if rank else ''}.sqlite"

    @property
    def data(self) -> Path:
        return self.path / "data"

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Within it no other process of this machine is at work in this folder. Raises UserError
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
        """True once anything was measured or trained."""
        return any(
            (self.path / name).exists()
            for name in ("evaluation", "checkpoints", "metrics.jsonl", "adapter")
        )

    def read_summary(self) -> dict[str, Any] | None:
        """The results of a finished run, or None."""
        if not self.summary.is_file():
            return None
        summary: dict[str, Any] = json.loads(self.summary.read_text())
        return summary


def open_run_dir(config: Config) -> RunDir:
    """Makes the folder, or continues one that was made with the same configuration. One that holds
    no results yet, because an attempt failed early, is taken over.

    Raises UserError when it holds results of another configuration or cannot be written.
    """
    run_dir = RunDir(Path(config.run_dir).expanduser().resolve())
    try:
        run_dir.path.mkdir(parents=True, exist_ok=True)
        if not run_dir.config.exists() and any(
            not one.name.startswith(".") for one in run_dir.path.iterdir()
        ):
            raise UserError(
                f"{run_dir.path}: not empty and not a run directory; choose another run_dir"
            )
        changed = run_dir.config.exists() and changed_key(run_dir, config)
        if changed and run_dir.holds_results():
            raise UserError(
                f"{run_dir.path}: already holds a run with another configuration ({changed}); choose another run_dir, "
                f"or delete that folder. A run that is continued may change {', '.join(FREE_TO_CONTINUE)}"
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
    """The first key that differs from the folder's own configuration and may not, in words.
    `run_dir` itself may be spelled otherwise, since the folder may have moved."""
    held, wanted = flatten(yaml.safe_load(run_dir.config.read_text())), flatten(config.model_dump())
    for key in sorted({*held, *wanted} - {"run_dir", *FREE_TO_CONTINUE}):
        if held.get(key) != wanted.get(key):
            return f"{key} is {held.get(key)!r} there, {wanted.get(key)!r} here"
    return None


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys."""
    if not isinstance(tree, dict):
        return {prefix.rstrip("."): tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.")
    return flat
