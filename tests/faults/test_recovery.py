"""Parts of a run that are lost and come back, several workers and samplers: the same result to the
last bit."""

from __future__ import annotations

import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import ray
import torch
from safetensors.torch import load_file, save_file

from rarl.commands.replay import replay
from rarl.data.parquet import write_examples
from rarl.errors import UserError
from rarl.grpo.policy import read_adapter
from rarl.grpo.update import NotFinite, clip_gradient
from rarl.rollout.pool import SamplerPool
from rarl.rollout.sampler import SamplerSettings
from rarl.schema import Example
from rarl.training.log import read_metrics
from rarl.training.run_dir import RunDir
from tests.faults.campaign import differences, title_of
from tests.runs import train_here, train_on

pytestmark = pytest.mark.slow
STEPS = 10
OVERRIDES = (f"train.steps={STEPS}", "train.learning_rate=0.001", "rollout.num_actors=2")
Train = Callable[..., RunDir]


@pytest.fixture(scope="module")
def runs(
    pool: SamplerPool,
    examples: list[Example],
    model_path: str,
    processor: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[Any], Train]:
    """Makes runs on the session's engines while `accident` goes on, in the way that is given."""
    dataset = tmp_path_factory.mktemp("data") / "examples.parquet"
    write_examples(dataset, examples)

    def made_by(way: Any) -> Train:
        def run(
            folder: Path,
            *overrides: str,
            accident: Callable[[RunDir], Any] | None = None,
            on: SamplerPool | None = None,
            model: str = model_path,
        ) -> RunDir:
            settings = (*OVERRIDES, *overrides)
            run_dir, make = way(on or pool, folder, dataset, model, processor, *settings)
            thread = threading.Thread(target=accident or (lambda _: None), args=(run_dir,))
            thread.start()
            make()
            thread.join()
            return cast(RunDir, run_dir)

        return run

    return made_by


@pytest.fixture(scope="module")
def train(runs: Callable[[Any], Train]) -> Train:
    """By Ray Train, for what Ray Train has a part in."""
    return runs(train_on)


@pytest.fixture(scope="module")
def call(runs: Callable[[Any], Train]) -> Train:
    """By a call of the loop."""
    return runs(train_here)


@pytest.fixture(scope="module")
def undisturbed(train: Train, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return train(tmp_path_factory.mktemp("calm") / "run")


@pytest.fixture(scope="module")
def third(
    pool: SamplerPool, sampler_settings: SamplerSettings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """A sampler besides those of the session."""
    started = SamplerPool.launch(sampler_settings, 1, tmp_path_factory.mktemp("third"), timeout=300)
    started.wait_until_ready()
    yield started.launched[0]
    started.stop()


def after_steps(accidents: dict[int, Callable[[], Any]]) -> Callable[[RunDir], None]:
    """Each happens as soon as its step is made."""

    def happen(run_dir: RunDir) -> None:
        deadline = time.monotonic() + 300
        for step, accident in accidents.items():
            while len(read_metrics(run_dir.metrics)) < step and time.monotonic() < deadline:
                time.sleep(0.02)
            accident()

    return happen


def processes(title: str) -> list[psutil.Process]:
    """Of this test's Ray cluster."""
    own = psutil.Process().children(recursive=True)
    return [process for process in own if title_of(process).startswith(f"ray::{title}")]


def assert_same(undisturbed: RunDir, run_dir: RunDir) -> None:
    assert differences(undisturbed.path, run_dir.path, STEPS) == []


@pytest.mark.whole
def test_what_is_killed_or_hangs_comes_back_and_changes_nothing(
    pool: SamplerPool, train: Train, undisturbed: RunDir, tmp_path: Path
) -> None:
    """A data worker, a sampler and the train worker killed, one after the other; then a sampler
    that is stopped, not dead, so that nothing tells but time, while it samples and while it is
    given an adapter."""
    killed: list[int] = []

    def kill(title: str) -> None:
        while not (found := processes(title)):
            time.sleep(0.02)
        killed.append(found[0].pid)
        found[0].kill()

    def hang() -> None:
        os.kill(processes("Sampler")[0].pid, signal.SIGSTOP)

    kills = {
        0: lambda: kill("MapBatches"),
        2: lambda: kill("Sampler"),
        4: lambda: kill("RayTrainWorker"),
        7: hang,
    }
    impatient = SamplerPool(pool.launched, timeout=8)
    assert_same(undisturbed, train(tmp_path / "run", accident=after_steps(kills), on=impatient))
    hang()
    loaded = read_adapter(undisturbed.adapter)
    assert impatient.publish(STEPS, *loaded) == sum(array.nbytes for array in loaded[0].values())
    assert impatient.banned_token_ids() == pool.banned_token_ids()
    running = [process.pid for process in processes("Sampler")]
    assert len(killed) == 3 and len(running) == 2 and killed[1] not in running


@pytest.mark.whole
def test_two_train_workers_learn_what_one_learns(
    train: Train, call: Train, undisturbed: RunDir, tmp_path: Path
) -> None:
    """And one goes on where two were lost, with each sample once."""
    two = train(tmp_path / "two", "train.num_workers=2")
    rows = [read_metrics(run_dir.metrics) for run_dir in (undisturbed, two)]
    assert len(rows[0]) == len(rows[1]) == STEPS
    assert replies(undisturbed) == replies(two), "the same questions with the same answers"
    assert len(list(two.samples.glob("*-worker1.parquet"))) == STEPS
    for a, b in zip(*rows, strict=True):
        for key in ("loss", "kl", "entropy", "reward/mean", "completion_tokens", "learning_rate"):
            assert a[key] == pytest.approx(b[key], abs=1e-5), (a["step"], key)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
    adapters = [read_adapter(run_dir.adapter)[0] for run_dir in (undisturbed, two)]
    for name, array in adapters[0].items():
        np.testing.assert_allclose(array, adapters[1][name], atol=1e-4)
    newest = two.checkpoints / f"step_{STEPS:06d}"
    shutil.rmtree(newest)
    assert replies(call(two.path)) == replies(undisturbed) and newest.is_dir()
    # A checkpoint is written every second step.
    assert len(list(two.samples.glob("*-worker1.parquet"))) == STEPS - 2


@pytest.mark.whole
def test_two_workers_imitate_what_one_imitates(train: Train, call: Train, tmp_path: Path) -> None:
    sft = ("method=sft", "train.steps=4")
    one, two = call(tmp_path / "one", *sft), train(tmp_path / "two", *sft, "train.num_workers=2")
    for a, b in zip(read_metrics(one.metrics), read_metrics(two.metrics), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
        assert a["completion_tokens/total"] == b["completion_tokens/total"]


def replies(run_dir: RunDir) -> list[tuple[int, str, int, str]]:
    """Returns step, question, number and text of every completion, in the order of these."""
    table = pq.read_table(run_dir.samples)
    names = ("step", "example/id", "number", "rollout/text")
    return sorted(zip(*(table.column(name).to_pylist() for name in names), strict=True))


@pytest.mark.whole
def test_three_samplers_draw_what_one_draws_and_what_two_draw(
    pool: SamplerPool, third: Any, call: Train, undisturbed: RunDir, tmp_path: Path
) -> None:
    """The same samples. Their log-probs depend on what an engine computes together, in the last
    bits."""
    three = call(tmp_path / "three", on=SamplerPool([*pool.launched, third], timeout=300))
    one = call(tmp_path / "one", "train.steps=4", on=SamplerPool(pool.launched[:1], timeout=300))
    assert replies(three) == replies(undisturbed) and len(replies(three)) == STEPS * 16
    assert replies(three)[: 4 * 16] == replies(one)
    for a, b in zip(read_metrics(undisturbed.metrics), read_metrics(three.metrics), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-6)


@pytest.mark.whole
def test_a_sampler_that_does_not_come_back_leaves_its_work_to_the_other_which_draws_the_same(
    pool: SamplerPool, third: Any, call: Train, undisturbed: RunDir, tmp_path: Path
) -> None:
    both = SamplerPool([pool.launched[0], third], timeout=300, restart_timeout=5)
    lose = after_steps({2: lambda: ray.kill(third, no_restart=True)})
    run_dir = call(tmp_path / "run", accident=lose, on=both)
    assert replies(run_dir) == replies(undisturbed)
    for a, b in zip(read_metrics(undisturbed.metrics), read_metrics(run_dir.metrics), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-6)


@pytest.mark.whole
def test_a_model_that_is_damaged_stops_the_run_and_mended_lets_it_go_on(
    call: Train, model_path: str, tmp_path: Path
) -> None:
    """The trainer's copy of it; the samplers have loaded theirs. The batch of that step is kept,
    and `rarl replay` finds the fault in it. The run to compare with is made by a call as well: a
    process with other threads rounds otherwise."""
    model = shutil.copytree(model_path, tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] = math.nan
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})

    def once_more() -> RunDir:
        return call(tmp_path / "run", f"model.path={model}", model=str(model))

    with pytest.raises(
        UserError, match=r"step 1: a log-prob .* is not finite.*rarl replay .*step_000001\.pkl"
    ):
        once_more()
    found = list(replay(tmp_path / "run" / "failures" / "step_000001.pkl"))
    assert len(found) == 4 and all(len(group.completions) == 4 for group in found)
    assert any(group.grad_norm is None for group in found)
    shutil.copy(Path(model_path) / "model.safetensors", model)
    assert_same(call(tmp_path / "calm"), once_more())


@pytest.mark.parametrize(
    ("value", "what"), [(math.nan, "nan"), (math.inf, "inf"), (1e7, r"1e\+07")]
)
def test_a_gradient_that_is_no_number_or_has_exploded_is_not_used(value: float, what: str) -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    layer.weight.grad = torch.full_like(layer.weight, value)
    with pytest.raises(NotFinite, match=rf"its norm is {what}\).*Lower train.learning_rate"):
        clip_gradient(layer, max_norm=1.0)
    layer.weight.grad = torch.full_like(layer.weight, 1e5)
    assert clip_gradient(layer, max_norm=1.0) == pytest.approx(1e5)
