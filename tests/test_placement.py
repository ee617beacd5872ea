"""Where Ray puts samplers and train workers on machines with several GPUs: pretended ones, that
nothing computes on; and what is refused before Ray starts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rarl.commands.resolve import resolve
from rarl.config import load_config
from rarl.errors import UserError
from rarl.system.device import resolve_device
from rarl.system.placement import (
    SAMPLER_GPUS,
    judge_resources,
    needs_of,
    require_enough,
    worker_resources,
)
from tests.pretended_gpu import pretend_gpu
from tests.runs import REPOSITORY, environment

PLACE = """
import json, ray
ray.init("local", num_cpus=4, num_gpus=CARDS, include_dashboard=False, log_to_driver=False)

@ray.remote
class Holder:
    def gpus(self):
        return ray.get_gpu_ids()

kinds = [[Holder.options(num_gpus=share).remote() for _ in range(count)] for share, count in KINDS]
held = [[one.gpus.remote() for one in kind] for kind in kinds]
print(json.dumps([ray.get(one, timeout=60) for one in held]))
"""


def placed(cards: int, *kinds: tuple[float, int]) -> list[list[list[int]]]:
    """Returns the cards that Ray gives to so many holders of a share each, in this order."""
    script = PLACE.replace("CARDS", str(cards)).replace("KINDS", str(kinds))
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: list[list[list[int]]] = json.loads(done.stdout)
    return found


@pytest.mark.slow
@pytest.mark.engines
def test_each_gpu_gets_one_sampler_and_one_train_worker_and_has_room_for_the_judge() -> None:
    """However little memory each of them takes; the judge as its file asks, on one card."""
    judge, worker = judge_share(), worker_resources("cuda")["GPU"]
    samplers, workers = placed(2, (SAMPLER_GPUS, 2), (worker, 2))
    assert sorted(samplers) == sorted(workers) == [[0], [1]]
    assert placed(1, (judge, 1), (SAMPLER_GPUS, 1), (worker, 1)) == [[[0]]] * 3


def judge_share() -> float:
    served = yaml.safe_load((REPOSITORY / "configs/judge/qwen2_5_7b.yaml").read_text())
    (model,) = served["applications"][0]["args"]["llm_configs"]
    (bundle,) = model["placement_group_config"]["bundles"]
    return float(bundle["GPU"])


def test_shares_leave_no_room_for_a_second_of_a_kind() -> None:
    judge, worker = judge_share(), worker_resources("cuda")["GPU"]
    assert judge_resources("cuda", own_gpu=False)["GPU"] == judge
    assert judge + SAMPLER_GPUS + worker <= 1
    assert 2 * SAMPLER_GPUS > 1
    assert SAMPLER_GPUS + 2 * worker > 1, "the second worker belongs to the next sampler"


def test_more_train_workers_than_samplers_are_refused_on_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_gpu(tmp_path, monkeypatch)
    monkeypatch.setattr("rarl.system.device.machine_faults", list)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    config = load_config(REPOSITORY / "configs/demo.yaml", ["device=cuda", "train.num_workers=3"])
    with pytest.raises(UserError, match=r"train.num_workers=3, but rollout.num_actors=2"):
        resolve_device(config)


def test_a_cluster_that_is_too_small_is_told_by_key_and_resource() -> None:
    needs = needs_of(load_config(REPOSITORY / "configs/demo.yaml"), "cuda", trains=True)
    require_enough(needs, {"CPU": 2.0, "GPU": 2.0})
    with pytest.raises(
        UserError,
        match=r"rollout.num_actors=2 of 0.51 GPU, train.num_workers=1 of 0.249 GPU make 1.269 GPU, "
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
