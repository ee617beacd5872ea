"""Running the program as a user does, for the tests of whole runs."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from rarl.cli import app, run_and_explain
from rarl.commands.session import use_pool
from rarl.config import load_config
from rarl.data.order import StepOrder
from rarl.data.parquet import ParquetRows
from rarl.data.prepared import prepare_example
from rarl.data.stream import PreparerSettings
from rarl.distribution import banned_token_ids
from rarl.prompts import plain_prompt
from rarl.rollout.pool import SamplerPool
from rarl.schema import PreparedExample
from rarl.training.driver import run_training
from rarl.training.grpo import train_grpo
from rarl.training.inputs import LoopOutcome, TrainInputs
from rarl.training.learner import Learner
from rarl.training.run_dir import RunDir, open_run_dir
from rarl.training.sft import train_sft

REPOSITORY = Path(__file__).resolve().parent.parent
RARL = str(Path(sys.executable).parent / "rarl")
DEMO = REPOSITORY / "configs/demo.yaml"
QWEN = REPOSITORY / "configs/recipes/qwen2vl_2b/rarl.yaml"
HUB = "Qwen/Qwen2-VL-2B-Instruct"  # the model of QWEN
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
    """The variables of a program that a test starts, which may use what threads it likes."""
    return {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}


def rarl(*arguments: str | Path, timeout: float = 500) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a process of its own, as a user does."""
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


def rarl_here(
    *arguments: str | Path, pool: SamplerPool | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs the command line in this process, through `rarl`'s own error handling: faster, since
    nothing is imported again. It joins the Ray that is up, and works on the engines of `pool` where
    they are given. Not for what ends by a signal, which would end the tests."""
    engines = use_pool(pool) if pool is not None else contextlib.nullcontext()
    written: dict[int, str] = {}
    returncode = 0
    with contextlib.chdir(REPOSITORY), engines, captured(written):
        try:
            run_and_explain(app, [str(argument) for argument in arguments])
        except SystemExit as end:
            returncode = end.code if isinstance(end.code, int) else int(end.code is not None)
    return subprocess.CompletedProcess(
        ["rarl", *map(str, arguments)], returncode, written[1], written[2]
    )


@contextlib.contextmanager
def captured(written: dict[int, str]) -> Iterator[None]:
    """Puts into `written` what is written to standard output (1) and standard error (2) inside, by
    native code and through copies of the two as well."""
    kept = {number: os.dup(number) for number in (1, 2)}
    files = {number: tempfile.TemporaryFile() for number in kept}  # noqa: SIM115
    for number, file in files.items():
        os.dup2(file.fileno(), number)
    # Left open: a log that is set up inside goes on writing to them.
    out, err = (os.fdopen(os.dup(number), "w", encoding="utf-8") for number in kept)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            yield
    finally:
        out.flush()
        err.flush()
        for number, file in files.items():
            os.dup2(kept[number], number)
            os.close(kept[number])
            file.seek(0)
            written[number] = file.read().decode()
            file.close()


def assert_one_line_error(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Exit code 2, one line on standard error that holds all parts, no stack trace anywhere."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    for part in parts:
        assert part in done.stderr


def inputs_of(
    pool: SamplerPool, run: Path, dataset: Path, model_path: str, processor: Any, *overrides: str
) -> TrainInputs:
    """Returns what a short run on the engines of the test session is made with."""
    common = [f"run_dir={run}", f"data.train={dataset}", *SHORT]
    config = load_config(REPOSITORY / "configs/demo.yaml", [*common, *overrides])
    measured = config.data.eval.items() if config.evaluation.every else ()
    return TrainInputs(
        config=config,
        run_dir=open_run_dir(config),
        data_path=str(dataset),
        model_path=model_path,
        start_adapter=None,
        device="cpu",
        dtype="float32",
        mismatch_bound=1e-3,
        banned_token_ids=banned_token_ids(processor.tokenizer),
        pool=pool,
        interim={name: (path, list(range(12))) for name, path in measured},
    )


def train_on(
    pool: SamplerPool, run: Path, dataset: Path, model_path: str, processor: Any, *overrides: str
) -> tuple[RunDir, Callable[[], LoopOutcome]]:
    """A run by Ray Train on the engines of the test session, without measurements before and
    after."""
    inputs = inputs_of(pool, run, dataset, model_path, processor, *overrides)
    order = StepOrder(np.arange(24), inputs.config.train.prompts_per_step, inputs.config.seed)
    preparer = PreparerSettings(str(dataset), model_path, plain_prompt())
    return inputs.run_dir, lambda: run_training(inputs, order, preparer, lambda: None)


def train_here(
    pool: SamplerPool, run: Path, dataset: Path, model_path: str, processor: Any, *overrides: str
) -> tuple[RunDir, Callable[[], int]]:
    """The same run as `train_on` makes, as a function call: no Ray Train, no Ray Data. The function
    returns the steps that are finished."""
    run_dir, train = outcome_here(pool, run, dataset, model_path, processor, *overrides)
    return run_dir, lambda: train().steps


def outcome_here(
    pool: SamplerPool, run: Path, dataset: Path, model_path: str, processor: Any, *overrides: str
) -> tuple[RunDir, Callable[[], LoopOutcome]]:
    """The same as `train_here`; the function returns all that it came to."""
    inputs = inputs_of(pool, run, dataset, model_path, processor, *overrides)
    loop = train_sft if inputs.config.method == "sft" else train_grpo

    def train() -> LoopOutcome:
        learner = Learner.load(inputs)
        batches = list_batches(inputs, processor, learner.progress.batches)
        return loop(inputs, learner, batches)

    return inputs.run_dir, train


def list_batches(
    inputs: TrainInputs, processor: Any, first: int
) -> Iterator[tuple[int, list[PreparedExample]]]:
    """Yields what a train worker's stream of the data has, after the first `first` batches."""
    config, rows = inputs.config, ParquetRows(str(inputs.config.data.train))
    order = StepOrder(np.arange(len(rows)), config.train.prompts_per_step, config.seed)
    for step in itertools.count(first):
        examples = rows.read(order.rows_of(step))
        yield step + 1, [prepare_example(one, processor, plain_prompt()) for one in examples]


def command_of(process: psutil.Process) -> str:
    """Empty for one that ended in the meantime."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def prepare_all(dataset: Path, processor: Any) -> list[PreparedExample]:
    """Returns all rows of the data with the plain prompt."""
    rows = ParquetRows(str(dataset))
    return [
        prepare_example(example, processor, plain_prompt())
        for example in rows.read(list(range(len(rows))))
    ]
