"""A whole run: check data, measure the base, train, measure again, summarise. Assembled here, done elsewhere.

Every finished part is on disk, so the same command after an interruption does only what is missing.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.data import Dataset
from transformers import AutoProcessor

from rarl.cluster import ray_session
from rarl.config import Config
from rarl.data.check import CheckedRows, check_rows
from rarl.data.order import StepOrder
from rarl.data.stream import PreparerSettings, ordered_stream
from rarl.display import Display
from rarl.errors import UserError
from rarl.evaluation.predict import Asking, predict
from rarl.evaluation.prediction import Prediction, load_predictions, save_predictions
from rarl.evaluation.summary import difference, summarise
from rarl.files import write_text
from rarl.grpo.policy import read_adapter
from rarl.hardware import Device, Dtype, resolve_device, resolve_dtype, resolve_mismatch_bound
from rarl.judge.client import check_judge, open_judge
from rarl.judge.judge import Judge
from rarl.planning import require_memory
from rarl.prompts import PromptPlan, evaluation_prompts, training_prompts
from rarl.resources import find_data, resolve_adapter, resolve_data, resolve_model
from rarl.rewards.registry import find_rewards
from rarl.rollout.pool import SamplerPool
from rarl.rollout.sampler import SamplerSettings, banned_token_ids
from rarl.training.driver import run_training
from rarl.training.learner import LoopInputs
from rarl.training.metrics import read_metrics
from rarl.training.run_dir import RunDir, open_run_dir
from rarl.training.sft import require_rationales


@dataclass(frozen=True)
class Setup:
    """A configuration with every name looked up on this machine."""

    config: Config
    run_dir: RunDir
    device: Device
    dtype: Dtype
    model_path: str
    start_adapter: Path | None
    train_data: str
    eval_data: dict[str, str]
    asked: str  # what tells apart measurements with another prompt or judge than the run's own

    def predictions(self, label: str, data_set: str) -> Path:
        """Where the replies of "base" or "trained" are kept."""
        return self.run_dir.path / "evaluation" / f"{label}-{data_set}{self.asked}.parquet"

    def preparer(self, data_path: str, prompts: PromptPlan) -> PreparerSettings:
        return PreparerSettings(data_path, self.model_path, prompts, self.config.data.max_pixels)


def train_and_evaluate(config: Config, display: Display) -> dict[str, Any]:
    """Returns the summary that it also writes to `summary.json`. Raises UserError."""
    started = time.time()
    setup = resolve(config)
    finished = setup.run_dir.read_summary()
    if finished is not None:
        display.note(f"{setup.run_dir.path} is already finished; this is its result")
        return finished
    display.note(f"run directory {setup.run_dir.path}")
    with session(setup, display, {"train": setup.train_data, **setup.eval_data}) as live:
        base = evaluate_all(setup, live, "base", display)
        train_seconds = train(setup, live, display)
        trained = evaluate_adapter(setup, live, display)
    seconds = {"train": train_seconds, "total": time.time() - started}
    summary = summary_of(base, trained, live.checked) | {"seconds": seconds}
    write_text(setup.run_dir.summary, json.dumps(summary, indent=2) + "\n")
    return summary


def evaluate_only(config: Config, made_with: Config, display: Display) -> dict[str, Any]:
    """Measures the base model of a configuration, and the adapter of its run directory where there is one.
    `made_with` is the run's configuration; `config` may have another `prompts.eval` or `judge`."""
    setup = resolve(config, made_with)
    with session(setup, display, setup.eval_data) as live:
        base = evaluate_all(setup, live, "base", display)
        trained = evaluate_adapter(setup, live, display) if setup.run_dir.adapter.is_dir() else {}
    return summary_of(base, trained, live.checked)


@dataclass(frozen=True)
class Session:
    """What is up while a run works: engines, the checked rows by data set, the prepared evaluation sets."""

    pool: SamplerPool
    judge: Judge | None
    checked: dict[str, CheckedRows]
    streams: dict[str, Dataset]


@contextmanager
def session(setup: Setup, display: Display, data: dict[str, str]) -> Iterator[Session]:
    """Ray, engines and checked data; the engines come up while the data is checked and prepared."""
    with ray_session(setup.run_dir.logs):
        pool = launch_pool(setup)
        checked = check_data(setup, display, data)
        streams = {name: evaluation_stream(setup, name, checked[name]) for name in setup.eval_data}
        with display.working("starting vLLM"):
            pool.wait_until_ready()
        judge = open_judge(setup.config.judge, setup.run_dir.judge_cache) if setup.config.judge.evaluate else None
        try:
            yield Session(pool, judge, checked, streams)
        finally:
            if judge is not None:
                judge.close()
            pool.stop()


def resolve(config: Config, made_with: Config | None = None) -> Setup:
    """Looks up device, model and data, and opens the run directory: everything that can fail before Ray starts.
    `made_with` is what the run directory was made with, where measurements may differ from it."""
    own = made_with or config
    find_rewards(config.rewards)
    training_prompts(config.prompts, config.seed)
    if config.judge.evaluate or "judge" in config.rewards:
        check_judge(config.judge)
    start_adapter = resolve_adapter(config.model.adapter, config.model.lora) if config.model.adapter else None
    device = resolve_device(config)
    model_path = resolve_model(config.model.path)
    if device == "cuda":
        require_memory(config, model_path)
    sources = {"data.train": config.data.train} | {f"data.eval.{name}": p for name, p in config.data.eval.items()}
    for key, path in sources.items():
        find_data(key, path)
    prompts = config.prompts.model_copy(update={"eval": own.prompts.eval})
    run_dir = open_run_dir(config.model_copy(update={"prompts": prompts, "judge": own.judge}))
    keep_templates(run_dir, config)
    data = {key: resolve_data(key, path, config.seed, run_dir.data) for key, path in sources.items()}
    train_data = data.pop("data.train")
    eval_data = {key.removeprefix("data.eval."): path for key, path in data.items()}
    dtype = resolve_dtype(config, device)
    return Setup(
        config, run_dir, device, dtype, model_path, start_adapter, train_data, eval_data, asked_otherwise(config, own)
    )


def asked_otherwise(config: Config, own: Config) -> str:
    """The end of the names of files with replies: nothing where prompt and judge are the run's own."""
    prompt = "" if config.prompts.eval == own.prompts.eval else f"-{config.prompts.eval}"
    judge = config.judge.model or config.judge.backend
    return prompt + ("" if config.judge == own.judge else "-judged-by-" + re.sub(r"[^\w.]+", "-", judge))


def keep_templates(run_dir: RunDir, config: Config) -> None:
    """A copy of the user's own wordings in the run directory. Raises UserError when they were changed since."""
    if config.prompts.templates is None:
        return
    text, kept = Path(config.prompts.templates).read_text(encoding="utf-8"), run_dir.path / "prompts.yaml"
    if kept.exists() and kept.read_text(encoding="utf-8") != text:
        raise UserError(f"{config.prompts.templates}: changed since {run_dir.path} was begun; choose another run_dir")
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
    return SamplerPool.launch(settings, rollout.num_actors, setup.run_dir.logs)


def evaluation_stream(setup: Setup, name: str, checked: CheckedRows) -> Dataset:
    """Prepared once and kept in Ray's object store, since it is read before and after training."""
    rows = checked.good[: setup.config.evaluation.max_examples]
    return ordered_stream(
        setup.preparer(setup.eval_data[name], evaluation_prompts(setup.config.prompts)), rows
    ).materialize()


def evaluate_adapter(setup: Setup, live: Session, display: Display) -> dict[str, list[Prediction]]:
    """As `evaluate_all`, with the run's own adapter."""
    live.pool.publish(setup.config.train.steps, *read_adapter(setup.run_dir.adapter))
    return evaluate_all(setup, live, "trained", display)


def evaluate_all(setup: Setup, live: Session, label: str, display: Display) -> dict[str, list[Prediction]]:
    """Predictions by data set, from disk where an interrupted run already made them."""
    config = setup.config
    tokens = config.evaluation.max_completion_tokens or config.rollout.max_completion_tokens
    results = {}
    for name, stream in live.streams.items():
        path = setup.predictions(label, name)
        if path.exists():
            results[name] = load_predictions(path)
            if live.judge is None or all(p.judge_status in ("scored", "unparsable") for p in results[name]):
                continue
        with display.counting(f"measuring {label} on {name}", stream.count()) as advance:
            length = config.rollout.max_model_length
            asking = Asking(tokens, length, use_adapter=label != "base")
            results[name] = predict(stream, live.pool, asking, live.judge, advance)
        save_predictions(results[name], path)
    return results


def train(setup: Setup, live: Session, display: Display) -> float:
    """Makes the steps that are missing; returns the seconds that all steps took, this worker's start included."""
    config = setup.config
    before = float(sum(row["seconds/step"] for row in read_metrics(setup.run_dir.metrics)))
    if setup.run_dir.adapter.is_dir():
        return before
    if config.method == "sft":
        require_rationales(setup.train_data, live.checked["train"].good, config.prompts)
    order = StepOrder(live.checked["train"].good, config.train.prompts_per_step, config.seed)
    processor = AutoProcessor.from_pretrained(setup.model_path)
    inputs = LoopInputs(
        config=config,
        run_dir=setup.run_dir,
        model_path=setup.model_path,
        start_adapter=setup.start_adapter,
        device=setup.device,
        dtype=setup.dtype,
        mismatch_bound=resolve_mismatch_bound(config, setup.dtype),
        banned_token_ids=banned_token_ids(processor.tokenizer),
        pool=live.pool,
    )
    preparer = setup.preparer(setup.train_data, training_prompts(config.prompts, config.seed))
    started = time.time()
    with display.training(setup.run_dir.metrics, config.train.steps) as refresh:
        run_training(inputs, order, preparer, refresh)
    return before + time.time() - started


def summary_of(
    base: dict[str, list[Prediction]], trained: dict[str, list[Prediction]], checked: dict[str, CheckedRows]
) -> dict[str, Any]:
    return {
        "base": {name: summarise(predictions) for name, predictions in base.items()},
        "trained": {name: summarise(predictions) for name, predictions in trained.items()},
        "difference": {name: difference(base[name], trained[name]) for name in trained},
        "skipped_rows": {name: len(rows.bad) for name, rows in checked.items()},
    }
