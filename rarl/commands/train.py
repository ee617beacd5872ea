"""`rarl train`, `rarl sft` and `rarl demo`: check data, measure the base, train, measure again.

Every finished part is on disk, so the same command after an interruption does only what is missing.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rarl.commands.checked_rewards import check_rewards
from rarl.commands.drawing import draw_rows
from rarl.commands.evaluate import measure_all
from rarl.commands.fluency import fluency_floor
from rarl.commands.resolve import Setup, resolve, what_is_imitated
from rarl.commands.selecting import require_probe, training_order
from rarl.commands.session import Session, open_session
from rarl.config import Config
from rarl.data.order import StepOrder
from rarl.display import Display
from rarl.evaluation.measured_data import remember_data
from rarl.evaluation.results import summary_of
from rarl.evaluation.ways import floors_of
from rarl.files import write_text
from rarl.grpo.policy import read_adapter
from rarl.prompts import imitation_prompts, training_prompts
from rarl.system.device import resolve_mismatch_bound
from rarl.system.processes import Stopped, ending_after_the_step
from rarl.training.checkpoint import find_checkpoint, read_progress
from rarl.training.inputs import TrainInputs
from rarl.training.log import SecondsLog, missing_trackers, tracker_problems


def train_and_evaluate(config: Config, display: Display) -> dict[str, Any]:
    """Makes a whole run; returns the summary that it also writes to `summary.json`. Raises
    UserError."""
    started = time.monotonic()
    require_probe(config)
    setup = resolve(config)
    finished = setup.run_dir.read_summary()
    if finished is not None and config.data.eval.keys() <= finished["base"].keys():
        display.note(f"{setup.run_dir.path} is already finished; this is its result")
        held = [one.get("groups", {}) for one in finished["base"].values()]
        if more := [name for name in config.evaluation.by if not any(name in its for its in held)]:
            eval_ = f"rarl eval {config.run_dir} --by {','.join(more)}"
            display.note(f"evaluation.by={more}: `{eval_}` compares these groups")
        return finished
    display.note(f"run directory {setup.run_dir.path}")
    for line in (*setup.run_dir.notes, *missing_trackers(config.train.trackers)):
        display.note(line)
    if config.method == "grpo":
        weights = ", ".join(f"{name} {one.weight:g}" for name, one in config.rewards.items())
        display.note(f"rewards: {weights}")
        check_rewards(config, str(setup.train_data), display)
    if config.method == "sft":
        display.note(what_is_imitated(str(setup.train_data), config.prompts))
    sets = {"train": str(setup.train_data), **setup.eval_data}
    with (
        SecondsLog(setup.run_dir.seconds, started) as seconds,
        open_session(setup, display, sets, trains=True) as live,
    ):
        # Before anything is measured: a selection that cannot be made is told at once.
        order = training_order(setup, live.checked["train"], display)
        remember_data(setup.evaluation, setup.eval_data, live.checked)
        base = measure_all(setup, live, "base", display)
        with seconds.training():
            train(setup, live, order, display)
        assert live.pool is not None
        live.pool.publish(config.train.steps, *read_adapter(setup.run_dir.adapter))
        trained = measure_all(setup, live, "trained", display)
    skipped = {name: len(rows.bad) for name, rows in live.checked.items()}
    floors = floors_of(Path(str(setup.train_data)), base)
    summary = summary_of(base, trained, skipped, config.evaluation.by, floors=floors)
    summary |= {"seconds": seconds.over_all_starts(), "leaks": setup.run_dir.read_leaks()}
    write_text(setup.run_dir.summary, json.dumps(summary, indent=2) + "\n")
    return summary


def train(setup: Setup, live: Session, order: StepOrder, display: Display) -> None:
    """Makes the steps that are missing. Raises Stopped if the run was asked to end."""
    # Imported by `open_session`, while the engines come up.
    from rarl.training.driver import run_training

    config, data = setup.config, setup.train_data
    assert data is not None, "what is to be trained is resolved with its training data"
    assert live.pool is not None, "training asks for engines"
    if setup.run_dir.adapter.is_dir():
        return
    found = find_checkpoint(setup.run_dir.checkpoints)
    instead = "and none before it is whole: training begins anew"
    if found.path:
        instead = "the one before it is used"
    for fault in found.damaged:
        display.note(f"damaged checkpoint, {instead}: {fault}")
    if found.path:
        step = read_progress(found.path).step
        display.note(f"continues after step {step} of {config.train.steps}")
    inputs = TrainInputs(
        config=config,
        run_dir=setup.run_dir,
        data_path=data,
        model_path=setup.model_path,
        start_adapter=setup.start_adapter,
        device=setup.device,
        dtype=setup.dtype,
        mismatch_bound=resolve_mismatch_bound(config, setup.dtype),
        banned_token_ids=live.pool.banned_token_ids(),
        pool=live.pool,
        judge_engine=live.judge_engine,
        fluency_floor=fluency_floor(setup, live, display),
        interim=interim_rows(setup, live),
        gpu_share=setup.memory.trainer_limit / setup.memory.card if setup.memory else None,
    )
    prompts = imitation_prompts if config.method == "sft" else training_prompts
    preparer = setup.preparer(data, prompts(config.prompts, config.seed))
    showing = display.training(setup.run_dir.metrics, config.train.steps)
    with showing as refresh, ending_after_the_step(setup.run_dir.stop_request):
        outcome = run_training(inputs, order, preparer, refresh)
    for line in tracker_problems(setup.run_dir.path, config.train.trackers):
        display.note(line)
    if outcome.ended is not None:
        display.note(outcome.ended)
    elif outcome.steps < config.train.steps:
        raise Stopped


def interim_rows(setup: Setup, live: Session) -> dict[str, tuple[str, list[int]]]:
    """Returns the data sets that are measured while training goes on, with the rows that are asked:
    some of the good ones, drawn by the seed, always the same."""
    settings, seed = setup.config.evaluation, setup.config.seed
    if not settings.every:
        return {}
    found = {}
    for name, path in setup.eval_data.items():
        found[name] = (path, draw_rows(live.checked[name].good, settings.examples, seed))
    return found
