"""Short runs with several values of a key: which are made, and which one is taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from rarl.commands.tune import Trial, around, best_of, combinations, trial_config
from rarl.config import load_config
from rarl.errors import UserError
from rarl.rollout.pool import SamplerPool
from tests.runs import REPOSITORY, SHORT, rarl_here

DEMO = REPOSITORY / "configs/demo.yaml"


def test_every_combination_is_a_trial_with_a_folder_of_its_own() -> None:
    found = combinations(["train.learning_rate=1e-4, 1e-3", "grpo.kl_beta=0,0.01"])
    assert len(found) == 4
    assert found[0] == ("train.learning_rate=1e-4", "grpo.kl_beta=0")
    base = load_config(DEMO)
    configs = [trial_config(DEMO, ["seed=5"], one, 30, base) for one in found]
    assert len({one.run_dir for one in configs}) == 4
    assert {(one.seed, one.train.steps, one.evaluation.every) for one in configs} == {(5, 30, 30)}
    assert configs[3].train.learning_rate == 1e-3 and configs[3].grpo.kl_beta == 0.01
    assert around(base) == ["train.learning_rate=0.0002,0.001,0.005"]


@pytest.mark.parametrize(
    ("one", "message"),
    [
        ("train.learning_rate", "expected key=value,value"),
        ("model.lora.rank=4,8", "the trials share their engines, which model.lora.rank would"),
    ],
)
def test_what_cannot_be_tried_is_an_error(one: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        combinations([one])


def trial(name: str, accuracy: float | None, reward: float = 1.0) -> Trial:
    data = None if accuracy is None else "held"
    return Trial((name,), reward, 0.01, 0.1, data, 100, accuracy, 0.3)


def test_the_best_is_taken_and_what_cannot_be_told_from_it_is_named() -> None:
    trials = [trial("a", 0.5), trial("b", 0.72), trial("c", 0.7)]
    best, alike = best_of(trials)
    assert best is trials[1] and alike == [trials[2]]
    best, alike = best_of([trial("a", None, 1.0), trial("b", None, 1.5)])
    assert best.settings == ("b",) and alike == []


@pytest.mark.slow
@pytest.mark.whole
def test_trials_run_on_the_same_engines_and_are_not_made_again(
    pool: SamplerPool, tmp_path: Path
) -> None:
    how: list[str | Path] = [
        "tune",
        DEMO,
        f"run_dir={tmp_path / 'run'}",
        *SHORT,
        "evaluation.examples=20",
    ]
    how += ["--set", "train.learning_rate=1e-9,0.003", "--steps", "2"]
    first = rarl_here(*how, pool=pool)
    assert first.returncode == 0, first.stdout + first.stderr
    assert first.stdout.count("step 2/2") == 2
    assert "it would take train.learning_rate=" in first.stdout
    again = rarl_here(*how, pool=pool)
    assert "step 2/2" not in again.stdout
    tail = first.stdout[first.stdout.index("after the last step") :]
    assert tail in again.stdout
