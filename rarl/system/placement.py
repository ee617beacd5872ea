"""What Ray reserves for our processes, and whether it has room: what has none waits for ever."""

from __future__ import annotations

import os
import time

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from rarl.config import Config
from rarl.errors import UserError
from rarl.system.device import Device

# Shares of a core and of a card to place processes by; each uses what it needs, or is told to.
READ_CPUS = 0.25  # of a Ray Data task; with the default of 1, a machine with two cores starves
SAMPLER_CPUS = 0.2
# Of a card, whatever memory they take. Two samplers find no room on one card, nor do two train
# workers beside a sampler; a judge does, the run's own or a served one, beside one of each.
SAMPLER_GPUS = 0.51
JUDGE_GPUS = 0.24
TRAIN_GPUS = 0.249
TRAIN_CPUS = 0.25
# Of a measurement, in flight at a time: until the last of them is answered, less and less of the
# engine is used, so they are many.
REQUESTS_PER_ACTOR = 256

# seconds, on a cluster that others may be using, or that is growing: machines boot and install
WAIT = 900
WAIT_ALONE = 60  # for a busy machine's Ray


# such as "rollout.num_actors=2" → how many Ray must place, and what each takes
Needs = dict[str, tuple[int, dict[str, float]]]


def worker_resources(device: Device) -> dict[str, float]:
    """Returns what Ray reserves for one train worker: on a GPU the place beside a sampler."""
    return {"CPU": TRAIN_CPUS} | ({"GPU": TRAIN_GPUS} if device == "cuda" else {})


def judge_resources(device: Device, own_gpu: bool) -> dict[str, float]:
    """Returns what Ray reserves for the engine of `judge.backend: local`."""
    gpus = 1 if own_gpu else JUDGE_GPUS
    return {"CPU": SAMPLER_CPUS} | ({"GPU": gpus} if device == "cuda" else {})


def needs_of(config: Config, device: Device, trains: bool) -> Needs:
    sampler = {"CPU": SAMPLER_CPUS} | ({"GPU": SAMPLER_GPUS} if device == "cuda" else {})
    samplers, workers = config.rollout.num_actors, config.train.num_workers
    needs = {f"rollout.num_actors={samplers}": (samplers, sampler)}
    if trains:
        needs[f"train.num_workers={workers}"] = (workers, worker_resources(device))
    if config.asks_local_judge(trains):
        needs["judge.backend=local"] = (1, judge_resources(device, config.judge.own_gpu))
    return needs | {"a reader of data": (1, {"CPU": READ_CPUS})}


def require_cluster_room(config: Config, device: Device, trains: bool) -> None:
    """Reserves everything for a moment. Raises UserError when that is impossible, or too late."""
    needs = needs_of(config, device, trains)
    # a cluster that this process has started, and that stays as it is
    own = "RAY_ADDRESS" not in os.environ
    bundles = [each for count, each in needs.values() for _ in range(count)]
    everything = placement_group(bundles, strategy="PACK")
    try:
        deadline = time.monotonic() + (WAIT_ALONE if own else WAIT)
        while not everything.wait(timeout_seconds=2):
            late = time.monotonic() > deadline
            if own or late:
                require_enough(needs, ray.cluster_resources())
            if late:
                left = ray.available_resources()
                names = sorted({name for bundle in bundles for name in bundle})
                free = ", ".join(f"{name} {left.get(name, 0):g}" for name in names)
                raise UserError(
                    f"no room in the Ray cluster for {words(needs)}; free are {free}. Others hold "
                    "the rest (`ray status` tells who), or no single node has room for one of them"
                )
    finally:
        remove_placement_group(everything)


def require_enough(needs: Needs, has: dict[str, float]) -> None:
    """Raises UserError when the whole cluster, which has so much, is short of a resource."""
    for name in ("CPU", "GPU"):
        wanted = sum(count * each.get(name, 0) for count, each in needs.values())
        if wanted > has.get(name, 0) + 1e-6:
            raise UserError(
                f"no room in the Ray cluster: {words(needs, name)} make {wanted:g} {name}, and it "
                f"has {has.get(name, 0):g}; lower that key, or add to the cluster"
            )


def words(needs: Needs, resource: str | None = None) -> str:
    """Returns the needs as text; where a resource is named, what they need of it."""
    parts = []
    for label, (_, each) in needs.items():
        amounts = [f"{n:g} {name}" for name, n in each.items() if resource in (None, name)]
        parts += [f"{label} of {' and '.join(amounts)}"] if amounts else []
    return ", ".join(parts)
