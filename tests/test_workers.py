"""Three equal workers make one update: real processes, joined by torch.distributed over gloo."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing

from rarl.config import GrpoConfig, TrainConfig
from rarl.distribution import SamplingDistribution
from rarl.errors import UserError
from rarl.grpo.forward import ForwardOutput, VisionCache, plain_forward
from rarl.grpo.group import TokenGroup
from rarl.grpo.policy import adapter_parameters
from rarl.grpo.shared_prefix import SharedPrefixForward
from rarl.grpo.update import SamplerMismatch, UpdateSettings, imitate, update_policy
from rarl.grpo.workers import ALONE, TorchWorkers, Workers
from tests.random_models import random_group, random_policy

DISTRIBUTION = SamplingDistribution(1.0, [])
SETTINGS = UpdateSettings(
    GrpoConfig(kl_beta=0.1, epochs=2), TrainConfig(), max_completion_tokens=8, shared_prefix=True
)
SIZE = 3


def work(rank: int, folder: Path) -> None:
    """One worker: does all jobs, and writes down what each returned or raised."""
    torch.set_num_threads(1)
    meeting = f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=SIZE)
    workers, found = TorchWorkers(rank, SIZE), {}
    for job in JOBS:
        try:
            found[job.__name__] = job(workers)
        except Exception as error:
            found[job.__name__] = (type(error).__name__, str(error))
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """For each job, what it returned, or the name and the message of what it raised, in each
    worker."""
    folder = tmp_path_factory.mktemp("workers")
    multiprocessing.spawn(work, (folder,), nprocs=SIZE)
    found = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(SIZE)]
    return {job.__name__: [one[job.__name__] for one in found] for job in JOBS}


def the_groups() -> list[TokenGroup]:
    """Three groups whose sampler is 0.1 off the policy, so that every part of the loss counts."""
    policy, rng = random_policy(layers=1), np.random.default_rng(0)
    groups = []
    for key, lengths in enumerate([(3, 5), (1, 8), (4, 4)]):
        group = random_group(rng, [(2, 4)], (3, 4), lengths, key)
        with torch.no_grad():
            rows = plain_forward(policy, [group], DISTRIBUTION, VisionCache()).logprobs
        sampled = [[x - 0.1 for x in rows[i, :n].tolist()] for i, n in enumerate(lengths)]
        advantages = rng.normal(0, 1, 2).astype(np.float32)
        groups.append(replace(group, sampler_logprobs=sampled, advantages=advantages))
    return groups


def learn(workers: Workers) -> tuple[Any, Any, list[float]]:
    """Both ways to learn; of the three groups, worker r has those from r on in steps of two, so
    that a third worker has none."""
    policy = random_policy(layers=1)
    mine = the_groups()[workers.rank :: 2] if workers.rank < 2 else []
    mine = mine if workers.size > 1 else the_groups()
    optimizer = torch.optim.SGD(adapter_parameters(policy), lr=0.1)
    forward = SharedPrefixForward()
    stats = update_policy(policy, optimizer, mine, forward, DISTRIBUTION, SETTINGS, workers)
    targets = [group.part([0]) for group in mine]
    imitated = imitate(policy, optimizer, targets, forward, 4096, 1.0, workers)
    weights = torch.cat([p.detach().flatten() for p in adapter_parameters(policy)])
    return stats, imitated, weights.tolist()


def test_workers_learn_what_one_learns_and_one_may_have_no_group(
    together: dict[str, list[Any]],
) -> None:
    expected_stats, expected_imitated, expected = learn(ALONE)
    for stats, imitated, weights in together["learn"]:
        assert weights == together["learn"][0][2], (
            "all copies of the adapter are the same, bit for bit"
        )
        assert weights == pytest.approx(expected, abs=1e-6)
        assert vars(stats) == pytest.approx(vars(expected_stats), rel=1e-4, abs=1e-6)
        assert vars(imitated) == pytest.approx(vars(expected_imitated), rel=1e-4)


def talk(workers: Workers) -> list[Any]:
    with workers.local():
        pass
    workers.barrier()
    values = workers.gather({"rank": workers.rank})
    return [values, workers.sum([workers.rank, 0.5]), workers.max(-float(workers.rank))]


def test_what_workers_tell_each_other(together: dict[str, list[Any]]) -> None:
    alone = [[{"rank": 0}], [0, 0.5], 0]
    assert talk(ALONE) == alone
    assert talk(TorchWorkers(0, 1)) == alone, "one worker needs no group of processes"
    ranks = [{"rank": 0}, {"rank": 1}, {"rank": 2}]
    assert together["talk"] == [[ranks, [3, 1.5], 0]] * SIZE


class FullMemory(SharedPrefixForward):
    """The GPU memory of one worker is full."""

    def __call__(self, *args: Any) -> ForwardOutput:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")


def fail_in_one(workers: Workers) -> Any:
    policy = random_policy(layers=1)
    optimizer = torch.optim.SGD(adapter_parameters(policy), lr=0.1)
    forward = FullMemory() if workers.rank == 1 else SharedPrefixForward()
    return update_policy(policy, optimizer, the_groups(), forward, DISTRIBUTION, SETTINGS, workers)


def test_what_fails_in_one_worker_ends_all(together: dict[str, list[Any]]) -> None:
    message = "CUDA out of memory. Tried to allocate 1 GiB"
    assert together["fail_in_one"] == [
        (UserError.__name__, message),
        (torch.cuda.OutOfMemoryError.__name__, message),
        (UserError.__name__, message),
    ]


def mismatch_in_one(workers: Workers) -> Any:
    """The sampler of the second worker alone is far off."""
    policy = random_policy(layers=1)
    off = 0.9 if workers.rank == 1 else 0.0
    mine = [
        replace(g, sampler_logprobs=[[x + 0.1 - off for x in row] for row in g.sampler_logprobs])
        for g in the_groups()
    ]
    optimizer = torch.optim.SGD(adapter_parameters(policy), lr=0.1)
    settings = replace(SETTINGS, max_drift=0.01)
    return update_policy(
        policy, optimizer, mine, SharedPrefixForward(), DISTRIBUTION, settings, workers
    )


JOBS = [learn, talk, fail_in_one, mismatch_in_one]


def test_a_mismatch_of_one_worker_is_raised_in_all(together: dict[str, list[Any]]) -> None:
    found = together["mismatch_in_one"]
    assert found == [found[0]] * SIZE
    assert found[0][0] == SamplerMismatch.__name__
    assert "differ by 0.3 on average (at most 0.9)" in found[0][1]


def test_the_update_needs_neither_ray_nor_vllm() -> None:
    """Every module of rarl.grpo is imported where Ray and vLLM cannot be, nor PEFT before it is
    used by those who read adapters only."""
    program = """
import importlib, pkgutil, sys
sys.modules.update({"ray": None, "vllm": None})
from rarl.grpo.policy import read_adapter
assert "peft" not in sys.modules and "torch" not in sys.modules
import rarl.grpo
for module in pkgutil.iter_modules(rarl.grpo.__path__):
    importlib.import_module(f"rarl.grpo.{module.name}")
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
