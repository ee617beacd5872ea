"""A run on a small disk of its own, ended again and again:

    unshare -rm python -m tests.faults.small_disk DISK COMMAND …

mounts a file system at DISK, on which the command's run directory is, and leaves what happened
beside it: how each command ended, how many steps were made by then, and in the end a copy of the
disk.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from rarl.training.log import read_metrics
from rarl.training.run_dir import RunDir
from tests.faults.campaign import end, family
from tests.faults.test_checkpoint import flip

ENDS = ("full", "read-only", "second", "interrupted", "killed", "asked", "last")
DATA_AND_A_CHECKPOINT_AND_A_HALF = "5500k"
FREE = ("train.max_restarts=9", "judge.retries=9")  # keys that may change on the way
PATIENCE = 300  # seconds for a step


@dataclass(frozen=True)
class End:
    """How a command ended, the steps that were made by then, and the name of the newest
    checkpoint."""

    returncode: int
    stdout: str
    stderr: str
    steps: int
    newest: str

    @classmethod
    def read(cls, disk: Path, name: str) -> End:
        return cls(**json.loads(disk.with_suffix(f".{name}.json").read_text()))

    @property
    def done(self) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], self.returncode, self.stdout, self.stderr)


@dataclass(frozen=True)
class SmallDisk:
    disk: Path
    command: list[str]

    @property
    def run(self) -> RunDir:
        return RunDir(self.disk / "run")

    def mount(self, options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.disk)], check=True)

    def steps(self) -> int:
        return len(read_metrics(self.run.metrics))

    def to_the_end(self, name: str, *overrides: str) -> None:
        self.note(name, self.start(name, *overrides))

    def start(self, name: str, *overrides: str) -> subprocess.Popen[bytes]:
        with self.log(name, "out").open("wb") as out, self.log(name, "err").open("wb") as err:
            return subprocess.Popen(
                [*self.command, *overrides], stdout=out, stderr=err, start_new_session=True
            )

    def start_until(self, step: int, name: str) -> subprocess.Popen[bytes]:
        """The run, as soon as it has made the step."""
        return self.start_and_wait(name, lambda: self.steps() >= step)

    def start_until_engines_start(self, name: str) -> subprocess.Popen[bytes]:
        """The run, as soon as an engine comes up, while the data is checked."""
        log = self.run.logs / "sampler-0.log"
        before = log.stat().st_size
        return self.start_and_wait(name, lambda: log.stat().st_size > before)

    def start_and_wait(self, name: str, arrived: Callable[[], bool]) -> subprocess.Popen[bytes]:
        process = self.start(name)
        deadline = time.monotonic() + PATIENCE
        while not arrived() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
        return process

    def note(self, name: str, process: subprocess.Popen[bytes]) -> None:
        """Waits for the end of a command, and writes it down."""
        returncode, steps = process.wait(), self.steps()
        texts = [self.log(name, kind).read_text() for kind in ("out", "err")]
        newest = max(path.name for path in self.run.checkpoints.glob("step_*"))
        end = End(returncode, texts[0], texts[1], steps, newest)
        self.disk.with_suffix(f".{name}.json").write_text(json.dumps(asdict(end)))

    def log(self, name: str, kind: str) -> Path:
        return self.disk.with_suffix(f".{name}.{kind}")


def main() -> None:
    case = SmallDisk(Path(sys.argv[1]), sys.argv[2:])
    case.mount(f"size={DATA_AND_A_CHECKPOINT_AND_A_HALF}")
    case.to_the_end("full")
    case.mount("remount,size=200m,ro")
    case.to_the_end("read-only")
    case.mount("remount,rw")
    with case.run.owned():
        case.to_the_end("second")

    process = case.start_until_engines_start("interrupted")
    others = family(process)
    process.send_signal(signal.SIGINT)
    case.note("interrupted", process)
    psutil.wait_procs(others, timeout=60)

    process = case.start_until(case.steps() + 1, "killed")
    others = family(process)
    for victim in [psutil.Process(process.pid), *others]:
        end(victim)
    psutil.wait_procs(others, timeout=60)
    case.note("killed", process)
    flip(max(case.run.checkpoints.glob("step_*")) / "adapter" / "adapter_model.safetensors")

    process = case.start_until(case.steps() + 1, "asked")
    process.send_signal(signal.SIGTERM)
    case.note("asked", process)
    case.to_the_end("last", *FREE)
    subprocess.run(["cp", "-r", str(case.disk), str(case.disk.with_suffix(".kept"))], check=True)


if __name__ == "__main__":
    main()
