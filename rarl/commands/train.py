"""A whole run: check data, measure the base, train, measure again, summarise. Assembled here, done
elsewhere.

Every finished part is on disk, so the same command after an interruption does only what is missing.
"""

from __future__ import annotations

import json
import time
from typing import Any

from rarl.commands.evaluate import measure_all
from rarl.commands.session import Session, Setup, open_session, resolve
from rarl.config import Config
from rarl.data.order import step_order
from rarl.data.parquet import ParquetRows
from rarl.display import Display
from rarl.evaluation.results import summary_of
from rarl.files import write_text
from rarl.grpo.adapter_folder import read_adapter
from rarl.prompts import training_prompts
from rarl.system.device import resolve_mismatch_bound
from rarl.system.signals import Stopped, ending_after_the_step
from rarl.training.checkpoint_folder import find_checkpoint
from rarl.training.inputs import LoopInputs
from rarl.training.metrics import read_metrics
from rarl.training.rationales import require_rationales
from rarl.training.trackers import missing_trackers, tracker_problems


def train_and_evaluate(config: Config, display: Display) -> dict[str, Any]:
    """Returns the summary that it also writes to `summary.json`. Raises UserError."""
    started = time.time()
    setup = resolve(config)
    finished = setup.run_dir.read_summary()
    if finished is not None:
        display.note(f"{setup.run_dir.path} is already finished; this is its result")
        return finished
    display.note(f"run directory {setup.run_dir.path}")
    for line in missing_trackers(config.train.trackers):
        display.note(line)
    with open_session(
        setup, display, {"train": str(setup.train_data), **setup.eval_data}, trains=True
    ) as live:
        base = measure_all(setup, live, "base", display)
        train_seconds = train(setup, live, display)
        assert live.pool is not None
        live.pool.publish(config.train.steps, *read_adapter(setup.run_dir.adapter))
        trained = measure_all(setup, live, "trained", display)
    seconds = {"train": train_seconds, "total": time.time() - started}
    skipped = {name: len(rows.bad) for name, rows in live.checked.items()}
    summary = summary_of(base, trained, skipped) | {"seconds": seconds}
    write_text(setup.run_dir.summary, json.dumps(summary, indent=2) + "\n")
    return summary


def train(setup: Setup, live: Session, display: Display) -> float:
    """Makes the steps that are missing; returns the seconds that all steps took, this worker's
    start included."""
    from rarl.training.driver import run_training  # see open_session

    config = setup.config
    assert setup.train_data is not None, "what is to be trained is resolved with its training data"
    assert live.pool is not None
    before = float(sum(row["seconds/step"] for row in read_metrics(setup.run_dir.metrics)))
    if setup.run_dir.adapter.is_dir():
        return before
    found = find_checkpoint(setup.run_dir.checkpoints)
    instead = (
        "the one before it is used"
        if found.path
        else "and none before it is whole: training begins anew"
    )
    for fault in found.damaged:
        display.note(f"damaged checkpoint, {instead}: {fault}")
    if config.method == "sft":
        require_rationales(setup.train_data, live.checked["train"].good, config.prompts)
    parts = ParquetRows(setup.train_data).parts
    order = step_order(
        parts, live.checked["train"].good, config.train.prompts_per_step, config.seed
    )
    inputs = LoopInputs(
        config=config,
        run_dir=setup.run_dir,
        model_path=setup.model_path,
        start_adapter=setup.start_adapter,
        device=setup.device,
        dtype=setup.dtype,
        mismatch_bound=resolve_mismatch_bound(config, setup.dtype),
        banned_token_ids=live.pool.banned_token_ids(),
        pool=live.pool,
    )
    preparer = setup.preparer(setup.train_data, training_prompts(config.prompts, config.seed))
    started = time.time()
    showing = display.training(setup.run_dir.metrics, config.train.steps)
    with showing as refresh, ending_after_the_step(setup.run_dir.stop_request):
        outcome = run_training(inputs, order, preparer, refresh)
    for line in tracker_problems(setup.run_dir.path, config.train.trackers):
        display.note(line)
    if outcome.steps < config.train.steps:
        raise Stopped
    return before + time.time() - started
