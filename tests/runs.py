"""Running the program as a user does, for the tests of whole runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from rarl.config import load_config
from rarl.data.order import StepOrder
from rarl.data.stream import PreparerSettings
from rarl.distribution import banned_token_ids
from rarl.prompts import plain_prompt
from rarl.rollout.pool import SamplerPool
from rarl.training.driver import run_training
from rarl.training.inputs import LoopInputs
from rarl.training.run_dir import RunDir, open_run_dir
from rarl.training.worker import LoopOutcome

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

# The run that the tests look at from all sides, and that those which are ended again and again must
# equal.
STEPS = 16
FINISHED = [*SHORT, f"train.steps={STEPS}", "train.checkpoint_every=1"]


def environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {
        "HF_HUB_OFFLINE": "1"
    }


def rarl(*arguments: str | Path, timeout: float = 500) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    command = [RARL, *map(str, arguments)]
    return subprocess.run(
        command,
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def assert_one_line_error(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Exit code 2, one line on standard error that holds all parts, no stack trace anywhere."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    for part in parts:
        assert part in done.stderr


def train_on(
    pool: SamplerPool, run: Path, dataset: Path, model_path: str, processor: Any, *overrides: str
) -> tuple[RunDir, Callable[[], LoopOutcome]]:
    """A run by the engines of the test session, without measurements before and after."""
    common = [f"run_dir={run}", f"data.train={dataset}", *SHORT]
    config = load_config(REPOSITORY / "configs/demo.yaml", [*common, *overrides])
    run_dir = open_run_dir(config)
    inputs = LoopInputs(
        config=config,
        run_dir=run_dir,
        model_path=model_path,
        start_adapter=None,
        device="cpu",
        dtype="float32",
        mismatch_bound=1e-3,
        banned_token_ids=banned_token_ids(processor.tokenizer),
        pool=pool,
    )
    order = StepOrder(np.arange(24), config.train.prompts_per_step, config.seed)
    preparer = PreparerSettings(str(dataset), model_path, plain_prompt())
    return run_dir, lambda: run_training(inputs, order, preparer, lambda: None)


def command_of(process: psutil.Process) -> str:
    """Empty for one that ended in the meantime."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
