"""How the benchmarks start `rarl`: as a user does, in a process and a Ray of its own, without a
network."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
RARL = str(Path(sys.executable).parent / "rarl")


def environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"HF_HUB_OFFLINE": "1"}


def finished(command: list[str]) -> tuple[str, float]:
    """Returns the output and the seconds of a command that must succeed, and that may name what is
    in this folder by its import path."""
    own = environment() | {"PYTHONPATH": str(Path(__file__).parent)}
    started = time.perf_counter()
    done = subprocess.run(
        command, cwd=REPOSITORY, env=own, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {(done.stderr or done.stdout)[-2000:]}")
    return done.stdout, time.perf_counter() - started
