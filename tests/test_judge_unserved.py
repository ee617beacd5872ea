"""The judge on Ray Serve where none is started: its arguments, its configuration files, and a run
that goes on without it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from rarl.errors import UserError
from rarl.judge.app import build
from rarl.rollout.pool import SamplerPool
from rarl.training.log import read_metrics
from tests.judge_faults import free_port
from tests.runs import REPOSITORY, train_here

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"backend": "serve", "url": "app:judge"}, "backend"),
        ({"on_unreachable": "stop"}, "on_unreachable"),
        ({"replicas": 2}, "unknown key 'replicas'"),
        ({"num_replicas": 0}, "num_replicas"),
    ],
)
def test_wrong_arguments_of_the_application(args: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"judge application: .*{message}"):
        build(args)


@pytest.mark.parametrize("name", ["rules", "tiny", "qwen2_5_7b"])
def test_configurations_are_valid(name: str) -> None:
    """As far as it can be told without starting them: `tiny` runs in test_judge_serve.py, and the
    others differ in their values."""
    from ray.serve.llm import LLMConfig
    from ray.serve.schema import ServeDeploySchema
    from vllm.engine.arg_utils import AsyncEngineArgs

    text = (REPOSITORY / f"configs/judge/{name}.yaml").read_text()
    *models, judge = ServeDeploySchema.model_validate(yaml.safe_load(text)).applications
    assert (judge.name, judge.route_prefix, judge.import_path) == (
        "judge",
        "/judge",
        "rarl.judge.app:build",
    )
    build(dict(judge.args))
    for model in models:
        (llm,) = [LLMConfig.model_validate(one) for one in dict(model.args)["llm_configs"]]
        known = {field.name for field in fields(AsyncEngineArgs)}
        assert set(llm.engine_kwargs) <= known
        assert llm.model_id == dict(judge.args)["model"]


def test_a_run_without_its_judge(
    pool: SamplerPool, tmp_path: Path, dataset: Path, model_path: str, processor: Any
) -> None:
    """It goes on with the other rewards, and says how much was not judged."""
    overrides = [
        "rewards={accuracy: 1, judge: 0.5}",
        "train.steps=2",
        "judge.backend=serve",
        f"judge.url=http://127.0.0.1:{free_port()}",
        "judge.retries=0",
        "judge.on_unreachable=continue",
    ]
    run_dir, run = train_here(pool, tmp_path / "run", dataset, model_path, processor, *overrides)
    run()
    for row in read_metrics(run_dir.metrics):
        assert row["judge/unreachable"] == row["unscored/judge"] == 1.0
        assert row["reward/judge"] is None
    rows = pq.read_table(run_dir.samples).to_pylist()
    assert all(row["score/total"] == row["score/rewards/accuracy"] for row in rows)
