"""Short runs with several values of a key: which are made, and which one is taken."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rarl.commands.tune import (
    Trial,
    around,
    best_of,
    choice_in_words,
    combinations,
    trial_config,
    tune,
)
from rarl.config import load_config
from rarl.display import Display
from rarl.errors import UserError
from rarl.rollout.pool import SamplerPool
from rarl.schema import Example
from tests.runs import REPOSITORY, SHORT, rarl_here
from tests.samples import reply_to

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


def test_values_may_be_lists_and_mappings() -> None:
    assert combinations(["data.select.difficulty=[0.1, 0.9],[0.2,0.8]"]) == [
        ("data.select.difficulty=[0.1, 0.9]",),
        ("data.select.difficulty=[0.2,0.8]",),
    ]
    assert combinations(["rewards.facts={weight: 1, gate: format},null"]) == [
        ("rewards.facts={weight: 1, gate: format}",),
        ("rewards.facts=null",),
    ]


def test_what_is_not_rewarded_is_not_tuned() -> None:
    recipe = REPOSITORY / "configs/recipes/tiny/sft.yaml"
    with pytest.raises(UserError, match=r"sft\.yaml: method=sft: trials are compared by rewards"):
        tune(recipe, [], [], 3, Display())


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


def trial(name: str, right: set[int], asked: int = 100, reward: float = 1.0) -> Trial:
    """One that was right on these of `asked` questions about half as many images."""
    replies = []
    for number in range(asked):
        example = Example(f"q{number:03d}", (), f"i{number // 2}", "Which?", "left", "open")
        replies.append(reply_to(example, f"<answer>{'left' if number in right else 'x'}</answer>"))
    data = "held" if asked else None
    return Trial((name,), reward, 0.01, 0.1, data, replies, 0.3)


def test_the_best_is_taken_and_how_clear_that_is_is_said_question_by_question() -> None:
    """What another answers on the same questions counts, not its mean alone: two trials that are
    twelve points behind may be told from the best or not."""
    best = trial("b", set(range(72)))
    within = trial("w", set(range(60)))
    apart = trial("a", set(range(40, 100)))
    found, leads = best_of([apart, best, within])
    assert found is best
    assert [(lead.other, lead.clear) for lead in leads] == [(apart, False), (within, True)]
    assert all(lead.points == pytest.approx(12) for lead in leads)
    assert leads[0].low < 0 < leads[1].low and leads[1].high < leads[0].high
    told = choice_in_words(found, leads)
    assert told.startswith(
        "it would take b, which is not clear: 100 questions of held cannot tell it from a (+12.0 po"
    )
    assert "w (" not in told
    assert choice_in_words(*best_of([best, within])).startswith(
        "it would take b, clearly ahead of w (+12.0 points, +"
    )
    assert (
        str(best.accuracy).startswith("72.0 (") and choice_in_words(best, []) == "it would take b"
    )


def test_few_questions_tell_nothing_and_other_questions_are_not_compared() -> None:
    best, few = trial("b", set(range(18)), 18), trial("f", set(range(2)), 18)
    assert not best_of([best, few])[1][0].clear
    assert best_of([trial("b", set(range(72))), few])[1] == []


def test_without_measurements_the_reward_decides() -> None:
    found, leads = best_of([trial("a", set(), 0), trial("b", set(), 0, reward=1.5)])
    assert found.settings == ("b",)
    assert choice_in_words(found, leads).startswith("it would take b, by the reward alone")


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
    assert re.search(r"train.learning_rate=1e-9 +\d+\.\d \(\d+–\d+\) +0\.0 ", first.stdout)
    again = rarl_here(*how, pool=pool)
    assert "step 2/2" not in again.stdout
    tail = first.stdout[first.stdout.index("after the last step") :]
    assert tail in again.stdout
