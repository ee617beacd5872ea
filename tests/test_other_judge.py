"""Who judges the measurements is not who gave the rewards."""

from __future__ import annotations

from pathlib import Path

import pytest

from rarl.commands.resolve import require_other_judge, resolve
from rarl.config import load_config
from rarl.errors import UserError
from tests.runs import DEMO

A_MODEL = ["judge={backend: openai, url: 'http://127.0.0.1:1/v1', model: y/A-Judge}"]
A_SERVICE = ["judge={backend: serve, url: 'app:judge'}"]


@pytest.mark.parametrize(
    ("own", "overrides", "refused"),
    [
        ([], ["judge.evaluate=true"], True),
        ([], ["judge.evaluate=true", "judge.allow_same=true"], False),
        ([], [], False),
        (["rewards.judge=0"], ["judge.evaluate=true"], False),
        (["rewards.judge=null"], ["judge.evaluate=true"], False),
        (["method=sft"], ["judge.evaluate=true"], False),
        (A_MODEL, ["judge={backend: rules, evaluate: true}"], False),
        (A_MODEL, ["judge={backend: local, model: x/a-judge, evaluate: true}"], True),
        (A_MODEL, ["judge={backend: local, model: x/another, evaluate: true}"], False),
        (A_SERVICE, ["judge.evaluate=true"], True),
        (A_SERVICE, ["judge.url=app:other", "judge.evaluate=true"], False),
    ],
)
def test_a_policy_is_not_measured_by_the_judge_that_trained_it(
    own: list[str], overrides: list[str], refused: bool
) -> None:
    made_with = load_config(DEMO, own)
    judge = load_config(DEMO, [*own, *overrides]).judge
    if not refused:
        return require_other_judge(made_with, judge)
    with pytest.raises(UserError, match=r"learnt to please it: .* or set judge\.allow_same=true"):
        require_other_judge(made_with, judge)


def test_a_start_that_would_be_judged_so_is_refused_before_anything(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = load_config(DEMO, ["judge.evaluate=true", f"run_dir={run}"])
    with pytest.raises(UserError, match="the rules would judge a policy that it gave"):
        resolve(config)
    assert not run.exists()
