"""Whether Ray has room for a run, asked before anything waits for it: what has none would wait for
ever, silently."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from rarl.config import Config
from rarl.data.check import READ_CPUS
from rarl.errors import UserError
from rarl.rollout.pool import SAMPLER_CPUS, SAMPLER_GPUS
from rarl.system.device import Device

TRAIN_CPUS = 0.5  # a share to place a train worker by; it uses the threads that it is told to
# seconds, on a cluster that others may be using, or that is growing: machines boot and install
WAIT = 900
WAIT_ALONE = 60  # for a busy machine's Ray


@dataclass(frozen=True)
class Need:
    """Something that Ray must place: the configuration's key that says how many, and what one of
    them takes."""

    key: str
    count: int
    each: dict[str, float]

    @property
    def bundles(self) -> list[dict[str, float]]:
        return [self.each] * self.count


def worker_resources(device: Device) -> dict[str, float]:
    """What Ray reserves for one train worker: on a GPU the place beside a sampler."""
    return {"CPU": TRAIN_CPUS} | ({"GPU": 1 - SAMPLER_GPUS} if device == "cuda" else {})


def needs_of(config: Config, device: Device, trains: bool) -> list[Need]:
    gpus = {"GPU": SAMPLER_GPUS} if device == "cuda" else {}
    needs = [Need("rollout.num_actors", config.rollout.num_actors, {"CPU": SAMPLER_CPUS, **gpus})]
    if trains:
        needs.append(Need("train.num_workers", config.train.num_workers, worker_resources(device)))
    return [*needs, Need("a reader of data", 1, {"CPU": READ_CPUS})]


def require_cluster_room(config: Config, device: Device, trains: bool) -> None:
    """Reserves everything for a moment. Raises UserError when the cluster has too little of a
    resource, or when it is not free in time."""
    needs = needs_of(config, device, trains)
    # a cluster that this process has started, and that stays as it is
    own = "RAY_ADDRESS" not in os.environ
    everything = placement_group(
        [bundle for need in needs for bundle in need.bundles], strategy="PACK"
    )
    try:
        deadline = time.monotonic() + (WAIT_ALONE if own else WAIT)
        while not everything.wait(timeout_seconds=2):
            late = time.monotonic() > deadline
            short = missing(needs, ray.cluster_resources()) if own or late else None
            if short:
                raise UserError(
                    f"no room in the Ray cluster: {short}; lower that key, or add to the cluster"
                )
            if late:
                free = ", ".join(
                    f"{name} {ray.available_resources().get(name, 0):g}" for name in total(needs)
                )
                raise UserError(
                    f"no room in the Ray cluster for {words(needs)}; free are {free}. Others hold the "
                    "rest (`ray status` tells who), or no single node has room for one of them"
                )
    finally:
        remove_placement_group(everything)


def missing(needs: list[Need], has: dict[str, float]) -> str | None:
    """What the whole cluster is short of, in words."""
    for name, amount in total(needs).items():
        if amount > has.get(name, 0) + 1e-6:
            return f"{words(needs, name)} make {amount:g} {name}, and it has {has.get(name, 0):g}"
    return None


def total(needs: list[Need]) -> dict[str, float]:
    names = {name for need in needs for name in need.each}
    return {
        name: sum(need.count * need.each.get(name, 0) for need in needs) for name in sorted(names)
    }


def words(needs: list[Need], resource: str | None = None) -> str:
    parts = []
    for need in needs:
        amounts = {name: amount for name, amount in need.each.items() if resource in (None, name)}
        each = " and ".join(f"{amount:g} {name}" for name, amount in amounts.items())
        parts.append(
            f"{need.key}={need.count} of {each}" if "." in need.key else f"{need.key} of {each}"
        )
    return ", ".join(parts)
