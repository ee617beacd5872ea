"""Who training asks, and what is paid there: engines, judge and rewards as a configuration has
them. A probe asks the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rarl.collect import Collector
from rarl.config import Config, RewardConfig
from rarl.data.parquet import ParquetRows
from rarl.judge.client import open_judge
from rarl.look import training_looker
from rarl.rewards.registry import find_rewards
from rarl.rollout.pool import SamplerPool


@contextmanager
def training_collector(
    config: Config,
    pool: SamplerPool,
    model_path: str,
    data_path: str,
    judge_cache: Path,
    workers: int = 1,
    judge_engine: Any = None,
    fluency_floor: float | None = None,
) -> Iterator[Collector]:
    """Inside, the judge is there if a reward needs it; so many `workers` share it. `fluency_floor`
    is what was measured for the run."""
    judge, siblings = None, {}
    if "explains" in config.rewards:
        siblings = ParquetRows(data_path).questions_by_image()
    if "judge" in config.rewards:
        judge = open_judge(config.judge, judge_cache, workers, judge_engine)
    try:
        yield Collector(
            pool,
            find_rewards(with_floor(config.rewards, fluency_floor)),
            config.rewards,
            judge,
            model_path,
            config.rollout.max_model_length,
            siblings,
            training_looker(config, model_path),
        )
    finally:
        if judge is not None:
            judge.close()


def with_floor(
    rewards: Mapping[str, RewardConfig], floor: float | None
) -> Mapping[str, RewardConfig]:
    """Returns the settings with the floor of `fluency` that was measured for this run."""
    if floor is None:
        return rewards
    fluency = rewards["fluency"]
    return {
        **rewards,
        "fluency": fluency.model_copy(update={"options": {**fluency.options, "floor": floor}}),
    }
