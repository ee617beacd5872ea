"""What the driver hands to the train workers. It imports neither PyTorch nor PEFT, so that the
driver need not wait for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rarl.config import Config
from rarl.distribution import SamplingDistribution
from rarl.rollout.pool import SamplerPool
from rarl.system.device import Device, Dtype
from rarl.training.run_dir import RunDir


@dataclass(frozen=True)
class TrainInputs:
    """Everything that the driver looked up and started: files, device, and the samplers.

    `data_path` is the training data. The run stops if the mean |log-prob difference| of sampler and
    policy exceeds `mismatch_bound`. `judge_engine` is the actor of the run's own judge, None where
    it has none. `fluency_floor` is what the reward `fluency` compares with, None where it has a
    floor of its own. `interim` are the data sets that are measured on the way, by name: path and
    rows. `gpu_share` is what a worker may take of its card, beside context, sampler and
    judge; None on a CPU.
    """

    config: Config
    run_dir: RunDir
    data_path: str
    model_path: str
    start_adapter: Path | None
    device: Device
    dtype: Dtype
    mismatch_bound: float
    banned_token_ids: list[int]
    pool: SamplerPool
    judge_engine: Any = None
    gpu_share: float | None = None
    fluency_floor: float | None = None
    interim: dict[str, tuple[str, list[int]]] = field(default_factory=dict)

    @property
    def distribution(self) -> SamplingDistribution:
        """What completions are drawn from."""
        return SamplingDistribution(self.config.rollout.temperature, self.banned_token_ids)


@dataclass(frozen=True)
class Progress:
    """Finished steps, and batches of prompts that they drew: more than steps if groups were
    refilled."""

    step: int
    batches: int


@dataclass(frozen=True)
class LoopOutcome:
    """`steps` are finished, fewer than configured if the run was asked to end, or has `ended` by
    itself, for this reason. `error` is what the user is to be told."""

    steps: int
    error: str | None = None
    ended: str | None = None
