"""Running the program as a user does, for the tests of whole runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
RARL = str(Path(sys.executable).parent / "rarl")
# Few steps, few questions: whole runs whose results mean nothing but whose every part is real.
SHORT = [
    "train.steps=4",
    "train.prompts_per_step=4",
    "train.checkpoint_every=2",
    "rollout.group_size=4",
    "rollout.num_actors=1",
    "evaluation.max_examples=30",
]


def environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {"HF_HUB_OFFLINE": "1"}


def rarl(*arguments: str | Path, timeout: float = 500) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    command = [RARL, *map(str, arguments)]
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=timeout, check=False
    )


def assert_one_line_error(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Exit code 2, one line on standard error that holds all parts, no stack trace anywhere."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    for part in parts:
        assert part in done.stderr
