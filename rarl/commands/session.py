"""What is up while a command works: Ray, the engines, the judge, and the checked data."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from rarl.commands.checked_data import check_data
from rarl.commands.held_out import compare_with_training
from rarl.commands.resolve import Setup
from rarl.config import JudgeConfig, RolloutConfig
from rarl.data.check import CheckedRows
from rarl.data.parquet import most_images
from rarl.data.stream import warm_up
from rarl.display import Display
from rarl.judge.client import open_judge
from rarl.judge.judge import Judge
from rarl.prompts import LOOK, LOOK_LABELS, trains_looks
from rarl.rollout.chat import ChatSettings, chat_engine, wait_for_judge
from rarl.rollout.pool import SamplerPool
from rarl.rollout.sampler import SamplerSettings
from rarl.system.cluster import ray_session
from rarl.system.device import Device
from rarl.system.placement import require_cluster_room

# Engines that are up already and that commands are to use, for programs that run several.
_ready_pool: ContextVar[SamplerPool | None] = ContextVar("ready_pool", default=None)


@dataclass(frozen=True)
class Session:
    """Engines (None: none were asked for), judge (None: nobody judges the measurements), the
    checked rows by data set, and the engine of a judge of the run's own (None: there is none)."""

    pool: SamplerPool | None
    judge: Judge | None
    checked: dict[str, CheckedRows]
    judge_engine: Any = None


@contextmanager
def use_pool(pool: SamplerPool) -> Iterator[None]:
    """Inside, `open_session` uses these engines in place of new ones, and leaves them running. They
    must hold the same model."""
    token = _ready_pool.set(pool)
    try:
        yield
    finally:
        _ready_pool.reset(token)


@contextmanager
def open_session(
    setup: Setup,
    display: Display,
    data: dict[str, str],
    trains: bool = False,
    engines: bool = True,
    families: Sequence[str] = (),
) -> Iterator[Session]:
    """Inside, Ray and engines are up and the data is checked; the engines come up meanwhile.
    Without `engines`, neither they nor anything that feeds them starts. `families` are those of the
    measurements' prompts, by default the configuration's own; with LOOK the engines can be shown a
    detail beside each image."""
    with setup.run_dir.owned(), ray_session(setup.run_dir.logs), ExitStack() as stack:
        pool = _ready_pool.get() if engines else None
        if engines and pool is None:
            wait_for_room(setup, display, trains)
            images = most_images(data.values(), setup.config.data.max_images)
            looks = LOOK in families or (trains and trains_looks(setup.config.prompts))
            pool = launch_pool(setup, max(images, len(LOOK_LABELS)) if looks else images)
            stack.callback(pool.stop)
        judge_engine = None
        own_judge = engines and setup.config.asks_local_judge(trains)
        # On a card that they share, two engines must not measure the free memory at a time.
        if own_judge and setup.device == "cpu":
            judge_engine = stack.enter_context(launch_judge(setup))
        warming = warm_up(setup.model_path) if engines else None
        if trains:
            # It imports PyTorch, which takes 2 s: a mistake in the configuration need not wait for
            # that, nor a run whose engines are coming up.
            importlib.import_module("rarl.training.driver")
        if warming is not None:
            # Not to have a second process load what the check of the data needs, too.
            ray.wait([warming])
        families = families or [setup.config.prompts.eval]
        checked = check_data(setup, display, data, families, engines)
        compare_with_training(setup, display, checked)
        if pool is not None:
            with display.working("starting vLLM"):
                pool.wait_until_ready()
        if own_judge:
            judge_engine = judge_engine or stack.enter_context(launch_judge(setup))
            with display.working("starting the judge"):
                wait_for_judge(judge_engine)
        judge = None
        # Without engines, a judge that needs one is not there either.
        if setup.config.judge.evaluate and (engines or setup.config.judge.backend != "local"):
            cache = setup.run_dir.judge_cache_of(rank=0)
            judge = open_judge(setup.config.judge, cache, engine=judge_engine)
            stack.callback(judge.close)
        yield Session(pool, judge, checked, judge_engine)


def wait_for_room(setup: Setup, display: Display, trains: bool) -> None:
    """Raises UserError if the Ray cluster is too small or stays full."""
    with ExitStack() as stack:
        if "RAY_ADDRESS" in os.environ:
            stack.enter_context(display.working("waiting for room in the cluster"))
        require_cluster_room(setup.config, setup.device, trains)


def launch_judge(setup: Setup) -> AbstractContextManager[Any]:
    """Inside, the engine of the run's own judge is coming up."""
    config = setup.config
    settings = chat_settings(
        config.judge, str(setup.judge_path), setup.device, setup.run_dir.logs, config.rollout
    )
    return chat_engine(settings)


def chat_settings(
    judge: JudgeConfig, model_path: str, device: Device, logs: Path, rollout: RolloutConfig
) -> ChatSettings:
    """Returns what a judge's own engine is started with."""
    return ChatSettings(
        model_path=model_path,
        device=device,
        image=judge.image,
        max_sequences=judge.concurrency,
        kv_cache_mib=rollout.kv_cache_mib,
        gpu_memory_share=judge.gpu_memory_share,
        own_gpu=judge.own_gpu,
        # On a CPU, the core after those of the samplers.
        index=rollout.num_actors,
        log_path=str(logs / "judge.log"),
        cache_file=str(logs / "judge.cache"),
    )


def launch_pool(setup: Setup, images: int) -> SamplerPool:
    """Starts the engines, for prompts of so many images at most, without waiting for them."""
    rollout = setup.config.rollout
    settings = SamplerSettings(
        model_path=setup.model_path,
        device=setup.device,
        dtype=setup.dtype,
        lora_rank=setup.config.model.lora.rank,
        rollout=rollout,
        log_path="",
        max_pixels=setup.config.data.max_pixels,
        images=images,
    )
    return SamplerPool.launch(
        settings, rollout.num_actors, setup.run_dir.logs, rollout.timeout_seconds
    )
