"""Environment variables and files for the output of our processes; and SIGTERM, which schedulers
send before they take a machine away: a run that trains finishes its step and saves, others end at
once, since they are on disk as far as they have come."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

COMMON = {
    # The engine lives in the actor's own process: one process less, and adapters swap in
    # milliseconds.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "INFO",
    "TOKENIZERS_PARALLELISM": "false",
    # Its sampler would be compiled with nvcc, which few machines have.
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
}
# For every process that a run starts beside others of its kind. Threads of OpenMP that wait for one
# another spin: two are no faster where the work is small, and collapse as soon as another process
# wants the core, since each then waits for one that is not running.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
CPU_ONLY = {
    # On CPU vLLM compiles one log-prob helper with g++ at the first request (20 s) for no gain.
    "TORCHDYNAMO_DISABLE": "1",
    **ONE_THREAD,
}
# Hidden size from which a second thread makes an update faster. The tiny model has 128: one thread
# is as fast as two alone, and four times as fast beside another run (docs/scaling.md).
WIDE = 512


def sampler_environment(device: str, index: int) -> dict[str, str]:
    """Returns the variables that must be set before vLLM is imported in actor `index`."""
    if device != "cpu":
        return COMMON
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    return COMMON | CPU_ONLY | {"VLLM_CPU_OMP_THREADS_BIND": str(cores[index % len(cores)])}


def trainer_threads(hidden_size: int, workers: int) -> int:
    """Returns how many threads each of the train workers of this machine computes with on a CPU: by
    the model alone, since their number may change the last bits. The samplers wait meanwhile."""
    return max(1, (os.cpu_count() or 1) // workers) if hidden_size >= WIDE else 1


def log_output_to(path: Path) -> None:
    """Sends this process's output, that of native code too, to the end of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as log:
        for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
            stream.flush()
            os.dup2(log.fileno(), number)


SHOW_CURSOR = "\x1b[?25h"
# Standard error as it is for the user, while `output_in` has another in its place.
_errors_go_to = [2]


@contextmanager
def output_in(path: Path) -> Iterator[None]:
    """Inside, this process's output goes to the end of a file."""
    kept = [(number, os.dup(number)) for number in (1, 2)]
    _errors_go_to.append(kept[1][1])
    try:
        log_output_to(path)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        _errors_go_to.pop()
        for number, original in kept:
            os.dup2(original, number)
            os.close(original)


class Stopped(BaseException):
    """The run was asked to end, and is ready to. Like KeyboardInterrupt, no error: nothing that
    catches errors may take it for one."""


def tell_end(what: str) -> None:
    """Says in one line how a command ended that can be given again."""
    number = _errors_go_to[-1]
    shown = SHOW_CURSOR if os.isatty(number) else ""  # which a display in progress has hidden
    line = f"{shown}{what}; the same command continues where this one stopped\n"
    os.write(number, line.encode())


def end_at_once(number: int = signal.SIGTERM, frame: FrameType | None = None) -> None:
    """Ends this process well and on the spot: the handler of SIGTERM and Ctrl-C where nothing has
    to be finished. An exception would not do: raised within Ray's C++, it becomes another one. Nor
    would Ray's exit handlers, which can crash while its threads are at work."""
    interrupted = number == signal.SIGINT
    tell_end("interrupted" if interrupted else "stopped as asked")
    if "ray" in sys.modules:
        # Nothing may come between the line above and the end.
        with suppress(Exception):
            from rarl.system.ray_internals import end_agents

            end_agents()
    os._exit(130 if interrupted else 0)


def end_when_asked() -> dict[int, Any]:
    """Has SIGTERM and Ctrl-C end this process at once; returns the handlers that were there."""
    return {one: signal.signal(one, end_at_once) for one in (signal.SIGINT, signal.SIGTERM)}


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM end this process with one line. For the inside of commands, since
    typer would swallow Ctrl-C outside."""
    before = end_when_asked()
    try:
        yield
    except Stopped:
        end_at_once()
    except KeyboardInterrupt:
        end_at_once(signal.SIGINT)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_to_its_end(command: Sequence[str]) -> int:
    """Runs a program and returns its exit code. SIGTERM is passed on to it, and Stopped raised once
    it has ended."""
    asked = False

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        process.terminate()

    with subprocess.Popen(command) as process:
        before = signal.signal(signal.SIGTERM, pass_on)
        try:
            code = process.wait()
        finally:
            signal.signal(signal.SIGTERM, before)
    if asked:
        raise Stopped
    return code


@contextmanager
def ending_after_the_step(request: Path) -> Iterator[None]:
    """Inside, SIGTERM makes a file that ends training after its step; then Stopped is raised."""
    request.unlink(missing_ok=True)  # of an earlier process
    before = signal.signal(signal.SIGTERM, lambda number, frame: request.touch())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        asked = request.exists()
        request.unlink(missing_ok=True)
    if asked:
        raise Stopped
