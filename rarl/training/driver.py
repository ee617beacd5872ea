"""The driver's side of training: the data stream, the Ray Train run, and the errors that come out of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from rarl.data.order import StepOrder
from rarl.data.stream import WORKER_ENVIRONMENT, PreparerSettings, training_stream
from rarl.errors import UserError, last_line
from rarl.training.inputs import LoopInputs
from rarl.training.worker import LoopOutcome, train_worker

TRAIN_CPUS = 0.5  # a share to place the worker by; it uses the threads that it is told to
POLL_SECONDS = 0.5


class Trainer(TorchTrainer):
    """Ray's trainer without its placement group cleaner.

    The cleaner asks the dashboard whether the controller lives; where there is none, stopping it takes its whole time
    limit, 12 s at the end of each run. It is there for controllers that outlive their driver. Ours does not, and Ray
    removes a placement group together with the actor that made it.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]


def run_training(
    inputs: LoopInputs, order: StepOrder, preparer: PreparerSettings, on_poll: Callable[[], Any]
) -> LoopOutcome:
    """Trains to the configured number of steps; `on_poll` is called every half second meanwhile.

    Raises UserError for what the user can mend, and when the worker died more often than it may be restarted.
    """
    config = inputs.config
    gpu = 1 - config.rollout.gpu_memory_share if inputs.device == "cuda" else 0
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # by default 2 s: how late the end is noticed
    resources = {"CPU": TRAIN_CPUS} | ({"GPU": gpu} if gpu else {})
    trainer = Trainer(
        train_worker,
        train_loop_config={"inputs": inputs},
        scaling_config=ScalingConfig(num_workers=1, use_gpu=bool(gpu), resources_per_worker=resources),
        datasets={"train": training_stream(preparer, order, 0, config.train.steps * (1 + config.grpo.max_refills))},
        run_config=RunConfig(
            name="checkpoints",
            storage_path=str(inputs.run_dir.path),
            failure_config=FailureConfig(max_failures=config.train.max_restarts),
            checkpoint_config=CheckpointConfig(num_to_keep=config.train.keep_checkpoints),
            worker_runtime_env=WORKER_ENVIRONMENT,
        ),
    )
    result = wait_for(trainer.fit, on_poll, inputs)
    outcome: LoopOutcome = result.return_value
    if outcome.error is not None:
        raise UserError(f"training stopped: {outcome.error}")
    return outcome


def wait_for(fit: Callable[[], Any], on_poll: Callable[[], Any], inputs: LoopInputs) -> Any:
    """Runs `fit` in a thread, so that this one can show progress; its error is raised here as one line."""
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
        raise UserError(
            f"the train worker died: {last_line(error) or type(error).__name__}; its log is "
            f"{inputs.run_dir.logs / 'train-worker.log'}. The same command continues from the last checkpoint"
        )
    return outcome["result"]
