"""Which device and number format a configuration means on this machine."""

from __future__ import annotations

import os
from typing import Literal

from rarl.config import Config
from rarl.errors import UserError

Device = Literal["cpu", "cuda"]
Dtype = Literal["float32", "bfloat16"]


def resolve_device(config: Config) -> Device:
    """Returns the device to compute on. Raises UserError when a GPU is asked for and there is none,
    or fewer than the configuration needs."""
    if config.device == "cpu":
        return "cpu"
    import torch  # seconds, that a run on a CPU need not wait for here

    if not torch.cuda.is_available():
        if config.device == "auto":
            return "cpu"
        raise UserError(
            "device=cuda, but PyTorch sees no GPU here; run on a machine with one, or set "
            "device=cpu"
        )
    samplers, workers = config.rollout.num_actors, config.train.num_workers
    own = config.asks_local_judge() and config.judge.own_gpu
    if "RAY_ADDRESS" not in os.environ and samplers + own > torch.cuda.device_count():
        judge = " and judge.own_gpu=true" if own else ""
        raise UserError(
            f"rollout.num_actors={samplers}{judge}, but this machine has "
            f"{torch.cuda.device_count()} GPU(s): each sampler needs one, which train workers share"
        )
    if workers > samplers:
        raise UserError(
            f"train.num_workers={workers}, but rollout.num_actors={samplers}: each train worker "
            "shares its GPU with a sampler; raise rollout.num_actors"
        )
    return "cuda"


def resolve_dtype(config: Config, device: Device) -> Dtype:
    """Returns `model.dtype`, where "auto" is float32 on a CPU and bfloat16 on a GPU."""
    if config.model.dtype == "auto":
        return "float32" if device == "cpu" else "bfloat16"
    return config.model.dtype


def resolve_mismatch_bound(config: Config, dtype: Dtype) -> float:
    """Returns `train.max_sampler_mismatch`, or what its comment says where it is None."""
    if config.train.max_sampler_mismatch is not None:
        return config.train.max_sampler_mismatch
    return 0.001 if dtype == "float32" else 0.1
