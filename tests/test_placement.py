"""Where Ray puts samplers and train workers on machines with several GPUs: pretended ones, that
nothing computes on."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from rarl.config import load_config
from rarl.errors import UserError
from rarl.rollout.pool import SAMPLER_GPUS
from rarl.system.device import resolve_device
from rarl.system.placement import worker_resources
from tests.runs import REPOSITORY, environment

PLACE = """
import json, ray
ray.init("local", num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False)

@ray.remote
class Holder:
    def gpus(self):
        return ray.get_gpu_ids()

samplers, workers = ([Holder.options(num_gpus=share).remote() for _ in range(2)] for share in (SAMPLER, WORKER))
print(json.dumps([ray.get([one.gpus.remote() for one in kind], timeout=60) for kind in (samplers, workers)]))
"""


@pytest.mark.slow
@pytest.mark.engines
def test_each_gpu_gets_one_sampler_and_one_train_worker() -> None:
    """However little memory each of them takes."""
    script = PLACE.replace("SAMPLER", str(SAMPLER_GPUS)).replace(
        "WORKER", str(worker_resources("cuda")["GPU"])
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    samplers, workers = json.loads(done.stdout)
    assert sorted(samplers) == sorted(workers) == [[0], [1]]


def test_more_train_workers_than_samplers_are_refused_on_gpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    config = load_config(REPOSITORY / "configs/demo.yaml", ["device=cuda", "train.num_workers=3"])
    with pytest.raises(UserError, match=r"train.num_workers=3, but rollout.num_actors=2"):
        resolve_device(config)
