"""Which device and number format a configuration means on this machine."""

from __future__ import annotations

import os
from typing import Literal

from rarl.config import Config
from rarl.errors import UserError

Device = Literal["cpu", "cuda"]
Dtype = Literal["float32", "bfloat16"]


def resolve_device(config: Config) -> Device:
    """Raises UserError when a GPU is asked for and there is none."""
    if config.device == "cpu":
        return "cpu"
    import torch  # seconds, that a run on a CPU need not wait for here

    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "device=cuda, but PyTorch sees no GPU here; run on a machine with one, or set device=cpu"
        )
    device: Device = "cuda" if torch.cuda.is_available() else "cpu"
    local = "RAY_ADDRESS" not in os.environ
    if device == "cuda" and local and config.rollout.num_actors > torch.cuda.device_count():
        raise UserError(
            f"rollout.num_actors={config.rollout.num_actors}, but this machine has {torch.cuda.device_count()} GPU(s): "
            "each sampler needs one, which train workers share"
        )
    if device == "cuda" and config.train.num_workers > config.rollout.num_actors:
        raise UserError(
            f"train.num_workers={config.train.num_workers}, but rollout.num_actors={config.rollout.num_actors}: each "
            "train worker shares its GPU with a sampler; raise rollout.num_actors"
        )
    return device


def resolve_dtype(config: Config, device: Device) -> Dtype:
    if config.model.dtype == "auto":
        return "float32" if device == "cpu" else "bfloat16"
    return config.model.dtype


def resolve_mismatch_bound(config: Config, dtype: Dtype) -> float:
    """See `train.max_sampler_mismatch`."""
    if config.train.max_sampler_mismatch is not None:
        return config.train.max_sampler_mismatch
    return 0.001 if dtype == "float32" else 0.1
