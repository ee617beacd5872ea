"""What is up while a run works: every name of the configuration looked up, the checked data, Ray,
engines, judge."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from rarl.commands.resolve import find_data, resolve_adapter, resolve_data, resolve_model
from rarl.config import Config
from rarl.data.check import CheckedRows, check_rows
from rarl.data.stream import PreparerSettings, warm_up
from rarl.display import Display
from rarl.errors import UserError
from rarl.evaluation.measurements import judge_name
from rarl.files import write_text
from rarl.judge.client import check_judge, open_judge
from rarl.judge.judge import Judge
from rarl.planning.gpu_memory import require_memory
from rarl.prompts import PromptPlan, training_prompts
from rarl.rewards.registry import find_rewards
from rarl.rollout.pool import SamplerPool
from rarl.rollout.sampler import SamplerSettings
from rarl.system.cluster import ray_session
from rarl.system.device import Device, Dtype, resolve_device, resolve_dtype
from rarl.system.placement import require_cluster_room
from rarl.training.run_dir import RunDir, flatten, open_run_dir


@dataclass(frozen=True)
class Setup:
    """A configuration with every name looked up on this machine."""

    config: Config
    run_dir: RunDir
    device: Device
    dtype: Dtype
    model_path: str
    start_adapter: Path | None
    train_data: str | None  # None where the run is only measured
    eval_data: dict[str, str]
    own_prompt: str  # the family that the run was made to be measured with
    # The names, in the keys of measurements, of the judge and of the run's own judge; see
    # rarl/evaluation/measurements.py.
    judge: str
    own_judge: str

    @property
    def evaluation(self) -> Path:
        return self.run_dir.path / "evaluation"

    def preparer(
        self, data_path: str, prompts: PromptPlan, blank: bool = False
    ) -> PreparerSettings:
        return PreparerSettings(
            data_path, self.model_path, prompts, self.config.data.max_pixels, blank
        )


@dataclass(frozen=True)
class Session:
    """Engines (None if none were asked for), judge, and the checked rows by data set."""

    pool: SamplerPool | None
    judge: Judge | None
    checked: dict[str, CheckedRows]


@contextmanager
def open_session(
    setup: Setup,
    display: Display,
    data: dict[str, str],
    trains: bool = False,
    engines: bool = True,
) -> Iterator[Session]:
    """Ray, engines and checked data; the engines come up while the data is checked. Without
    `engines`, neither they nor anything that feeds them starts."""
    with setup.run_dir.owned(), ray_session(setup.run_dir.logs):
        pool = None
        if engines:
            with (
                display.working("waiting for room in the cluster")
                if "RAY_ADDRESS" in os.environ
                else nullcontext()
            ):
                require_cluster_room(setup.config, setup.device, trains)
            pool = launch_pool(setup)
            _warming = warm_up(setup.model_path)
        if (
            trains
            # PyTorch: 2 s that a mistake in the configuration need not wait for, nor a run whose
            # engines come up
        ):
            importlib.import_module("rarl.training.driver")
        checked = check_data(setup, display, data)
        if pool is not None:
            with display.working("starting vLLM"):
                pool.wait_until_ready()
        judge = (
            open_judge(setup.config.judge, setup.run_dir.judge_cache)
            if setup.config.judge.evaluate
            else None
        )
        try:
            yield Session(pool, judge, checked)
        finally:
            if judge is not None:
                judge.close()
            if pool is not None:
                pool.stop()


# What a measurement of a finished run may have otherwise, since it is in the names of its files or
# changes no reply.
FREE_TO_MEASURE = (
    "data.eval",
    "prompts.eval",
    "judge",
    "device",
    "rollout.num_actors",
    "rollout.timeout_seconds",
    "rollout.max_model_length",
    "rollout.kv_cache_mib",
    "rollout.gpu_memory_share",
)


def resolve(config: Config, made_with: Config | None = None) -> Setup:
    """Looks up device, model and data, and opens the run directory: everything that can fail before
    Ray starts. `made_with` is what the run directory was made with, where it is only to be
    measured: the training data may then be gone."""
    own = made_with or config
    if made_with is not None:
        require_same_run(config, made_with)
    find_rewards(config.rewards)
    training_prompts(config.prompts, config.seed)
    if config.judge.evaluate or "judge" in config.rewards:
        check_judge(config.judge)
    start_adapter = (
        resolve_adapter(config.model.adapter, config.model.lora) if config.model.adapter else None
    )
    device = resolve_device(config)
    model_path = resolve_model(config.model.path)
    if device == "cuda":
        require_memory(config, model_path)
    sources = {f"data.eval.{name}": path for name, path in config.data.eval.items()}
    if made_with is None:
        sources["data.train"] = config.data.train
    for key, path in sources.items():
        find_data(key, path)
    run_dir = open_run_dir(own.model_copy(update={"run_dir": config.run_dir}))
    keep_templates(run_dir, config)
    data = {
        key: resolve_data(key, path, config.seed, run_dir.data) for key, path in sources.items()
    }
    train_data = data.pop("data.train", None)
    return Setup(
        config=config,
        run_dir=run_dir,
        device=device,
        dtype=resolve_dtype(config, device),
        model_path=model_path,
        start_adapter=start_adapter,
        train_data=train_data,
        eval_data={key.removeprefix("data.eval."): path for key, path in data.items()},
        own_prompt=own.prompts.eval,
        judge=judge_name(config.judge, own.judge),
        own_judge=judge_name(own.judge, own.judge),
    )


def require_same_run(config: Config, own: Config) -> None:
    """Raises UserError where a measurement would not be of this run."""
    held, wanted = flatten(own.model_dump()), flatten(config.model_dump())
    for key in sorted({*held, *wanted} - {"run_dir"}):
        if held.get(key) != wanted.get(key) and not key.startswith(FREE_TO_MEASURE):
            raise UserError(
                f"{key}={wanted.get(key)}: the run was made with {held.get(key)}, and a measurement cannot change it; "
                f"it may change {', '.join(FREE_TO_MEASURE)}"
            )
    for name, path in config.data.eval.items():
        if own.data.eval.get(name, path) != path:
            raise UserError(
                f"data.eval.{name}={path}: the run knows {own.data.eval[name]} by that name; choose another, as in "
                f"data.eval.{name}-2={path}"
            )


def keep_templates(run_dir: RunDir, config: Config) -> None:
    """A copy of the user's own wordings in the run directory. Raises UserError when they were
    changed since."""
    if config.prompts.templates is None:
        return
    text, kept = (
        Path(config.prompts.templates).read_text(encoding="utf-8"),
        run_dir.path / "prompts.yaml",
    )
    if kept.exists() and kept.read_text(encoding="utf-8") != text:
        raise UserError(
            f"{config.prompts.templates}: changed since {run_dir.path} was begun; choose another run_dir"
        )
    write_text(kept, text)


def check_data(setup: Setup, display: Display, data: dict[str, str]) -> dict[str, CheckedRows]:
    """Checks every data set, names and paths of which are given."""
    checked = {}
    for name, path in data.items():
        with display.working(f"checking {name} data"):
            checked[name] = check_rows(path, setup.config.data.on_bad_row)
        bad = checked[name].bad
        if bad:
            lines = "".join(f"row {one.row}: {one.reason}\n" for one in bad)
            write_text(setup.run_dir.path / f"skipped-{name}.txt", lines)
            listed = f"listed in skipped-{name}.txt; the first: {bad[0].reason}"
            display.note(f"{name}: {len(bad)} bad rows skipped, {listed}")
    return checked


def launch_pool(setup: Setup) -> SamplerPool:
    rollout = setup.config.rollout
    settings = SamplerSettings(
        model_path=setup.model_path,
        device=setup.device,
        dtype=setup.dtype,
        lora_rank=setup.config.model.lora.rank,
        max_model_length=rollout.max_model_length,
        kv_cache_mib=rollout.kv_cache_mib,
        gpu_memory_share=rollout.gpu_memory_share,
        log_path="",
    )
    return SamplerPool.launch(
        settings, rollout.num_actors, setup.run_dir.logs, rollout.timeout_seconds
    )
