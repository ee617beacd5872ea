"""Where Ray puts samplers and train workers on machines with several GPUs: pretended ones, that
nothing computes on; and what is refused before Ray starts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rarl.commands.resolve import resolve
from rarl.config import load_config
from rarl.errors import UserError
from rarl.system.device import resolve_device
from rarl.system.placement import SAMPLER_GPUS, needs_of, require_enough, worker_resources
from tests.runs import REPOSITORY, environment

PLACE = """
import json, ray
ray.init("local", num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False)

@ray.remote
class Holder:
    def gpus(self):
        return ray.get_gpu_ids()

samplers, workers = (
    [Holder.options(num_gpus=share).remote() for _ in range(2)] for share in (SAMPLER, WORKER)
)
held = [[one.gpus.remote() for one in kind] for kind in (samplers, workers)]
print(json.dumps([ray.get(one, timeout=60) for one in held]))
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


def test_a_cluster_that_is_too_small_is_told_by_key_and_resource() -> None:
    needs = needs_of(load_config(REPOSITORY / "configs/demo.yaml"), "cuda", trains=True)
    require_enough(needs, {"CPU": 2.0, "GPU": 2.0})
    with pytest.raises(
        UserError,
        match=r"rollout.num_actors=2 of 0.51 GPU, train.num_workers=1 of 0.45 GPU make 1.47 GPU, "
        r"and it has 1; lower that key",
    ):
        require_enough(needs, {"CPU": 2.0, "GPU": 1.0})


def test_a_model_of_another_kind_is_refused_before_ray_starts(tmp_path: Path) -> None:
    model = tmp_path / "llava"
    model.mkdir()
    held = {
        "model_type": "llava",
        "architectures": ["LlavaForConditionalGeneration"],
        "text_config": {"model_type": "llama"},
        "vision_config": {"model_type": "clip_vision_model"},
        "image_token_index": 32000,
    }
    (model / "config.json").write_text(json.dumps(held))
    overrides = ["device=cpu", f"model.path={model}", f"run_dir={tmp_path / 'run'}"]
    with pytest.raises(UserError) as told:
        resolve(load_config(REPOSITORY / "configs/demo.yaml", overrides))
    assert f"model.path={model}: its model_type is llava" in str(told.value)
    assert "qwen2_vl, qwen2_5_vl, qwen3_vl" in str(told.value)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "run").exists()
    (model / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        resolve(load_config(REPOSITORY / "configs/demo.yaml", overrides))
