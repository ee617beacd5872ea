"""The driver's side of training: the data stream, the Ray Train run, and the errors that come out
of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from ray.train import DataConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from rarl.data.order import StepOrder
from rarl.data.stream import OF_RAY_TRAIN, WORKER_ENVIRONMENT, PreparerSettings, training_stream
from rarl.errors import UserError, last_line
from rarl.system.placement import worker_resources
from rarl.system.ray_internals import (
    WithoutPlacementGroupCleaner,
    is_startup_timeout,
    torch_config_here_alone,
)
from rarl.training.checkpoint import find_checkpoint, read_progress
from rarl.training.inputs import LoopOutcome, TrainInputs
from rarl.training.worker import train_worker

POLL_SECONDS = 0.5
# of a minute each, to place the workers again after one was lost with its node
PLACEMENT_ATTEMPTS = 10


class Trainer(WithoutPlacementGroupCleaner, TorchTrainer):
    """Ray's trainer, whose runs end without waiting for a dashboard that is not there."""


def run_training(
    inputs: TrainInputs, order: StepOrder, preparer: PreparerSettings, on_poll: Callable[[], Any]
) -> LoopOutcome:
    """Trains to the configured number of steps; `on_poll` is called every half second meanwhile.

    `outcome.steps` are fewer than configured if the run was asked to end. Raises UserError for what
    the user can mend, and if a worker died more often than it may be restarted.
    """
    config = inputs.config
    for variable, value in OF_RAY_TRAIN.items():
        os.environ.setdefault(variable, value)
    resources, workers = worker_resources(inputs.device), config.train.num_workers
    found = find_checkpoint(inputs.run_dir.checkpoints).path
    start = read_progress(found).batches if found else 0
    most = config.train.steps * (1 + config.grpo.max_refills)
    trainer = Trainer(
        train_worker,
        train_loop_config={"inputs": inputs},
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu="GPU" in resources,
            resources_per_worker=resources,
            placement_strategy="SPREAD",  # as the samplers
        ),
        torch_config=None if os.environ.get("RAY_ADDRESS") else torch_config_here_alone(),
        # A stream for each worker: its share of every step, in the order of the steps.
        datasets={
            f"train-{rank}": training_stream(
                preparer, order, start, most, rank=rank, workers=workers
            )
            for rank in range(workers)
        },
        dataset_config=DataConfig(datasets_to_split=[]),
        run_config=RunConfig(
            # Ray Train's own notes. The checkpoints are ours: verified, one a step, the best kept.
            name="ray-train",
            storage_path=str(inputs.run_dir.logs),
            failure_config=FailureConfig(
                max_failures=config.train.max_restarts, controller_failure_limit=PLACEMENT_ATTEMPTS
            ),
            worker_runtime_env=WORKER_ENVIRONMENT,
        ),
    )
    result = wait_for(trainer.fit, on_poll, inputs)
    outcome: LoopOutcome = result.return_value
    if outcome.error is not None:
        raise UserError(f"training stopped: {outcome.error}")
    return outcome


def wait_for(fit: Callable[[], Any], on_poll: Callable[[], Any], inputs: TrainInputs) -> Any:
    """Runs `fit` in a thread, so that this one can show progress; its error is raised here as one
    line."""
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["result"] = fit()
        except Exception as error:
            outcome["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        on_poll()
    if "error" in outcome:
        error = outcome["error"]
        if is_startup_timeout(error):
            raise UserError(
                f"Ray found no room for train.num_workers={inputs.config.train.num_workers} in "
                f"{PLACEMENT_ATTEMPTS} minutes after a worker was lost (`ray status` tells who "
                "holds what); make room or lower that key, and the same command continues"
            )
        raise UserError(
            f"the train worker died: {last_line(error) or type(error).__name__}; its log is "
            f"{inputs.run_dir.logs / 'train-worker.log'}. The same command continues from the last "
            "finished step"
        )
    return outcome["result"]
