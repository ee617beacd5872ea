"""Environment variables and log files of the processes that Ray starts for us."""

from __future__ import annotations

import os
import sys
from pathlib import Path

COMMON = {
    # The engine lives in the actor's own process: one process less, and adapters swap in
    # milliseconds.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "INFO",
    "VLLM_NO_USAGE_STATS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
CPU_ONLY = {
    # On CPU vLLM compiles one log-prob helper with g++ at the first request (20 s) for no gain.
    "TORCHDYNAMO_DISABLE": "1",
    # Two OpenMP threads are no faster and collapse as soon as another process wants the core.
    "OMP_NUM_THREADS": "1",
}


def sampler_environment(device: str, index: int) -> dict[str, str]:
    """Variables that must be set before vLLM is imported in actor `index`."""
    if device != "cpu":
        return COMMON
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    return COMMON | CPU_ONLY | {"VLLM_CPU_OMP_THREADS_BIND": str(cores[index % len(cores)])}


def log_output_to(path: Path) -> None:
    """Sends this process's output, that of native code too, to the end of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as log:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
