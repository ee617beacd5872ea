"""Seconds and peak memory of a function, in a process that does nothing else, and rows written as
JSON."""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def peak_memory_mb(function: Callable[[], Any], device: str) -> float:
    """What the process's memory rises by at most while it runs: resident memory, or the GPU
    allocator's own count."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        allocated = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - allocated) / 2**20
    # the high-water mark becomes what is resident now
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_kib("VmHWM")
    function()
    return (resident_kib("VmHWM") - before) / 1024


def resident_kib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(field)).split()[1])


def seconds(function: Callable[[], Any], device: str, repeats: int) -> list[float]:
    """Of each of `repeats` calls."""
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        if device == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return found


def matmul_gflops(dtype: torch.dtype, device: str) -> float:
    """What this machine reaches on a product of the middle model's shapes: the speed that the bound
    is taken at."""
    size = (2000, 512, 1536) if device == "cpu" else (8192, 8192, 8192)
    a = torch.randn(size[0], size[1], dtype=dtype, device=device)
    b = torch.randn(size[1], size[2], dtype=dtype, device=device)
    times = seconds(lambda: a @ b, device, 20)
    return 2 * size[0] * size[1] * size[2] / statistics.median(times) / 1e9


def write_rows(path: Path | None, rows: list[dict[str, Any]]) -> None:
    if path is not None:
        path.write_text(json.dumps(rows, indent=1) + "\n")
