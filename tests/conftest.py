"""Shared parts. Engines start once per session: a Ray cluster, one sampler pool, one processor.

`make test` has two lanes, a process each: one for all that starts engines, Ray, a browser or whole
programs, one after the other, since two of them at once would starve each other; one for everything
else, which takes what processor time is left.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import ray
from ray import serve
from tree_memory import Peak, run_watched

from rarl.config import RolloutConfig
from rarl.data.parquet import write_examples
from rarl.rollout.pool import SamplerPool
from rarl.rollout.sampler import SamplerSettings
from rarl.schema import Example
from rarl.system.cluster import REUSED_PROCESSES
from rarl.system.imports import collect_seldom
from rarl.tiny.dataset import base_model, draw_examples
from tests.judge_service import JudgeService, start_judge_service
from tests.runs import FINISHED, RARL, REPOSITORY, environment

collect_seldom()  # the test modules import everything
# The quick lane gives way to the engines, so that seconds on the clock tell nothing of its tests.
hypothesis.settings.register_profile("lanes", deadline=None)
hypothesis.settings.load_profile("lanes")

# Fixtures that start something, in the order in which the lane of engines needs them: what stays up
# until the end comes last.
ENGINES = ("finished_run", "browser", "service", "ray_cluster", "judge_service", "pool")


@pytest.hookimpl(tryfirst=True)  # before `-m` looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what needs real data or engines, and puts the modules with engines last, in order."""
    last_needed: dict[str, int] = defaultdict(lambda: -1)
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if "vqa_rad" in fixtures:
            item.add_marker("real_data")
        needed = [place for place, name in enumerate(ENGINES) if name in fixtures]
        if needed:
            item.add_marker("engines")
            last_needed[str(item.path)] = max(*needed, last_needed[str(item.path)])

    def place(item: pytest.Item) -> int:
        return last_needed[str(item.path)] if item.get_closest_marker("engines") else -2

    items.sort(key=place)


@pytest.fixture(scope="session")
def model_path() -> str:
    return str(base_model())


@pytest.fixture(scope="session")
def processor(model_path: str) -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(model_path)


@pytest.fixture(scope="session")
def examples() -> list[Example]:
    return draw_examples("seen", 12, seed=5, split="test") + draw_examples(
        "unseen", 12, seed=5, split="test"
    )


@pytest.fixture
def dataset(tmp_path: Path, examples: list[Example]) -> Path:
    path = tmp_path / "examples.parquet"
    write_examples(path, examples)
    return path


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    ray.init("local", num_cpus=2, log_to_driver=False, include_dashboard=False, **REUSED_PROCESSES)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def sampler_settings(model_path: str) -> SamplerSettings:
    return SamplerSettings(
        model_path=model_path,
        device="cpu",
        dtype="float32",
        lora_rank=8,
        rollout=RolloutConfig(max_model_length=512, kv_cache_mib=64),
        log_path="",
        images=5,
    )


@pytest.fixture(scope="session")
def pool(
    ray_cluster: None, sampler_settings: SamplerSettings, tmp_path_factory: Any
) -> Iterator[SamplerPool]:
    """Two engines: whatever is asserted of samples holds across actors."""
    started = SamplerPool.launch(
        sampler_settings, 2, tmp_path_factory.mktemp("sampler-logs"), timeout=300
    )
    started.wait_until_ready()
    yield started
    started.stop()


@dataclass(frozen=True)
class FinishedRun:
    """A run directory, what the command line printed, and the memory that all its processes
    took."""

    folder: Path
    printed: str
    peak: Peak


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: Any) -> FinishedRun:
    """A short run of the demo's configuration, by the command line."""
    folder = tmp_path_factory.mktemp("runs") / "short"
    command = [RARL, "train", "configs/demo.yaml", f"run_dir={folder}", *FINISHED]
    peak, _, done = run_watched(command, str(REPOSITORY), environment())
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return FinishedRun(folder, done.stdout, peak)


@pytest.fixture(scope="session")
def vqa_rad() -> Path:
    """The folder of VQA-RAD as downloaded. Nothing is assumed about where it is: tests of real data
    run where the variable names it."""
    place = os.environ.get("RARL_VQA_RAD")
    if not place:
        pytest.skip("RARL_VQA_RAD does not name the folder of VQA-RAD")
    if not Path(place).is_dir():
        pytest.fail(f"RARL_VQA_RAD={place}: no such folder")
    return Path(place).resolve()


@pytest.fixture(scope="module")
def judge_service(ray_cluster: None) -> Iterator[JudgeService]:
    """A stand-in for a model, the judge in front of it, and the tiny model behind Ray Serve; gone
    with the module, since they take their share."""
    yield start_judge_service()
    serve.shutdown()
