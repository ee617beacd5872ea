"""What the driver hands to the train workers, without the libraries that only they need."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rarl.config import Config
from rarl.rollout.pool import SamplerPool
from rarl.system.device import Device, Dtype
from rarl.training.run_dir import RunDir


@dataclass(frozen=True)
class LoopInputs:
    """Everything the driver resolved and started for the worker."""

    config: Config
    run_dir: RunDir
    model_path: str
    start_adapter: Path | None
    device: Device
    dtype: Dtype
    mismatch_bound: float
    banned_token_ids: list[int]
    pool: SamplerPool
