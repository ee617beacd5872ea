"""What replies of the untrained model say before any training: the estimators against brute force,
the advice, and the command on the tiny world."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from rarl.evaluation.probe import (
    AGREEMENT,
    Estimates,
    Probe,
    ProbedShare,
    advise,
    agreement_of,
    alike,
    parts_of,
    pass_at_k,
    pay_of,
)
from rarl.replies.tags import target_text
from rarl.rollout.pool import SamplerPool
from rarl.samples import Group, Sample
from rarl.schema import Example, Score
from tests.runs import SHORT, rarl_here
from tests.samples import reply_to


@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 1), (6, 3), (8, 8)])
def test_pass_at_k_is_what_counting_gives(n: int, k: int) -> None:
    for c in range(n + 1):
        right = [True] * c + [False] * (n - c)
        drawn = list(combinations(right, k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, drawn)) / len(drawn))


def test_groups_of_one_value_are_what_counting_gives() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        values = rng.choice([0.0, 0.5, 0.5 + 1e-9, 1.0], size=8).tolist()
        for group in (2, 3, 8):
            drawn = list(combinations([round(one, 6) for one in values], group))
            same = sum(len(set(one)) == 1 for one in drawn) / len(drawn)
            assert alike(values, group) == pytest.approx(same)
    assert alike([None, None, 1.0], 2) == pytest.approx(1 / 3)


def test_estimates_from_few_replies_are_unbiased() -> None:
    """Over many draws their mean is what endless replies would give."""
    rng, p, n, g = np.random.default_rng(1), 0.3, 12, 8
    counts = rng.binomial(n, p, size=4000)
    passed = np.mean([pass_at_k(n, int(c), g) for c in counts])
    mixed = np.mean([1 - alike([1.0] * int(c) + [0.0] * int(n - c), g) for c in counts])
    assert passed == pytest.approx(1 - (1 - p) ** g, abs=0.01)
    assert mixed == pytest.approx(1 - p**g - (1 - p) ** g, abs=0.01)


def asked(number: int, answer: str, replies: list[str], question: str = "Is it there?") -> Group:
    example = Example(
        id=f"q{number}",
        images=(),
        image_id=f"i{number}",
        question=question,
        answer=answer,
        answer_type="closed",
    )
    found: list[Sample] = []
    for text in replies:
        sample = reply_to(example, target_text("think", "Ribs.", text))
        sample.score = Score(float(text == answer), {"accuracy": float(text == answer)})
        found.append(sample)
    return found


def test_a_guess_agrees_with_nothing_and_a_look_does() -> None:
    rng = np.random.default_rng(2)
    answers = ["yes" if number % 2 else "no" for number in range(40)]
    guessed = [
        asked(number, answer, rng.choice(["yes", "no"], size=16).tolist())
        for number, answer in enumerate(answers)
    ]
    always = [asked(number, answer, ["no"] * 16) for number, answer in enumerate(answers)]
    looked = [
        asked(number, answer, [answer] * 12 + ["no"] * 4) for number, answer in enumerate(answers)
    ]
    known = [
        asked(number, answer, [answer] * 16, "What is it?") for number, answer in enumerate(answers)
    ]
    guess, nothing, look = map(agreement_of, (guessed, always, looked))
    assert guess is not None and abs(guess.mean) < 0.05 and guess.low < 0 < guess.high < 0.1
    assert nothing is not None and abs(nothing.mean) < 0.05
    assert look is not None and look.low > 0.5
    assert agreement_of(known) is None, "what is known already does not count"
    assert agreement_of([*known, *guessed]) == guess
    assert agreement_of(guessed[:3]) is None


def test_reports_agree_by_what_they_say_and_boxes_are_not_asked_about() -> None:
    told = ("Normal chest.", "There is a pleural effusion.")
    said = ("No acute cardiopulmonary process.", "Left pleural effusion is seen.")
    groups = [
        [
            replace(one, example=replace(one.example, answer_type="report"))
            for one in asked(number, told[number % 2], [said[number % 2]] * 3 + [told[0]])
        ]
        for number in range(40)
    ]
    found = agreement_of(groups)
    assert found is not None and found.low > 0.5
    places = [
        [replace(one, example=replace(one.example, answer_type="boxes")) for one in group]
        for group in groups
    ]
    assert agreement_of(places) is None


def test_who_always_says_the_same_is_known_to_guess() -> None:
    """Whatever the references are, and however often that is right: in two of three."""
    always = [asked(number, "no" if number % 3 else "yes", ["no"] * 8) for number in range(120)]
    found = agreement_of(always)
    assert found is not None and found.mean == pytest.approx(0) and found.high < AGREEMENT


@pytest.mark.parametrize("sees", [0.0, 0.3])
def test_the_agreement_is_covered_by_its_interval(sees: float) -> None:
    """Of a model that is asked of 40 images, sees in `sees` of its replies what is there, and else
    says no in 7 of 10."""
    rng, held, drawn = np.random.default_rng(3), 0, 200
    for _ in range(drawn):
        answers = rng.choice(["yes", "no"], size=40, p=[0.4, 0.6])
        guesses = rng.choice(["yes", "no"], size=(40, 4), p=[0.3, 0.7])
        replies = np.where(rng.random((40, 4)) < sees, answers[:, None], guesses)
        groups = [asked(n, answers[n], replies[n].tolist()) for n in range(40)]
        found = agreement_of(groups)
        assert found is not None
        # o - e = sees (1 - P(answer, says), of answers of two images alike), over 1 - e
        says = 0.3 * (1 - sees) + 0.4 * sees
        e = 0.4 * says + 0.6 * (1 - says)
        own = 0.4 * (0.3 * (1 - sees) + sees) + 0.6 * (0.7 * (1 - sees) + sees)
        held += found.low <= (own - e) / (1 - e) <= found.high
    assert held / drawn >= 0.9


def test_parts_and_pay() -> None:
    groups = [
        asked(0, "yes", ["yes"] * 4),
        asked(1, "no", ["no", "no", "yes", "yes"]),
        asked(2, "no", ["yes"] * 4),
    ]
    whole, *kinds = parts_of("train", groups, [one[0] for one in groups], 2, paid=True)
    assert not kinds, "there is one kind"
    assert whole.greedy.mean == pytest.approx(2 / 3) and whole.right.mean == pytest.approx(0.5)
    assert {k: round(one.mean, 4) for k, one in whole.passes.items()} == {
        1: 0.5,
        2: round((1 + 5 / 6) / 3, 4),
        4: round(2 / 3, 4),
    }
    assert whole.mixed.mean == pytest.approx((2 / 3) / 3)
    assert whole.without_spread is not None
    assert whole.without_spread.mean == pytest.approx(1 - whole.mixed.mean)
    pay = pay_of(groups, 2)["accuracy"]
    assert (pay.mean, pay.silent) == (0.5, 0.0)
    assert pay.without_spread == pytest.approx(whole.without_spread.mean)


PART = Estimates(
    data="train",
    kind="all",
    questions=64,
    images=40,
    greedy=ProbedShare(0.5, 0.4, 0.6),
    right=ProbedShare(0.45, 0.4, 0.5),
    passes={1: ProbedShare(0.45, 0.4, 0.5), 16: ProbedShare(0.9, 0.8, 0.95)},
    well_formed=ProbedShare(0.98, 0.9, 1.0),
    mixed=ProbedShare(0.6, 0.5, 0.7),
    without_spread=None,
    agreement=None,
)


@pytest.mark.parametrize(
    ("changes", "floors", "advice", "reason"),
    [
        ({}, {}, "rl", "90 % once in 16"),
        ({"well_formed": ProbedShare(0.006, 0, 0.02)}, {}, "form", "only 1 % of the replies"),
        ({}, {"test": {"majority answer": 0.91}}, "blind", "right 91 % of the time on test"),
        ({"greedy": ProbedShare(0.99, 0.97, 1)}, {}, "known", "99 % are right"),
        ({"mixed": ProbedShare(0.04, 0, 0.1)}, {}, "sft", "in 96 % of the groups"),
        ({}, {"test": {"majority answer": 0.5}}, "rl", "60 % of the groups"),
    ],
)
def test_the_advice_and_its_reason(
    changes: dict[str, object], floors: dict[str, dict[str, float]], advice: str, reason: str
) -> None:
    part = replace(PART, **changes)  # type: ignore[arg-type]
    found, why = advise(Probe([part], floors=floors), "train")
    assert found == advice and reason in why


def test_advice_from_few_questions_is_called_a_guess() -> None:
    _, why = advise(Probe([replace(PART, questions=8)]), "train")
    assert why.startswith("with 8 questions hardly more than a guess, ask more: 50 % are right")


@pytest.mark.parametrize(("high", "advice"), [(0.05, "sft"), (0.13, "rl")], ids=["guesses", "sees"])
def test_whoever_guesses_is_taught_first(high: float, advice: str) -> None:
    found, why = advise(Probe([PART], agreement=ProbedShare(0.01, -0.03, high)), "train")
    assert found == advice
    assert ("kappa 0.01, at most 0.05" in why) == (advice == "sft")


@pytest.mark.slow
def test_the_tiny_base_is_to_be_reinforced_and_in_an_unknown_form_the_form_comes_first(
    pool: SamplerPool, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    how = ["configs/demo.yaml", f"run_dir={folder}", *SHORT, "rollout.group_size=8"]
    few = ["--questions", "24", "-n", "8"]
    done = rarl_here("probe", *how, *few, pool=pool)
    assert done.returncode == 0, done.stderr
    assert "advice: reinforcement learning." in done.stdout
    held = json.loads((folder / "probe/probe.json").read_text())
    assert {one["data"] for one in held["parts"]} == {"train", "phantoms-seen", "phantoms-unseen"}
    assert set(held["rewards"]) == {"format", "accuracy", "explains", "reasoning", "judge"}
    assert set(held["floors"]["phantoms-seen"]) == {"majority answer", "nearest question"}
    difficulty = pq.read_table(folder / "probe/difficulty.parquet").to_pylist()
    assert len(difficulty) == 72 and len({one["right"] for one in difficulty}) > 3
    replies = pq.read_table(folder / "probe/train.parquet").to_pylist()
    assert len(replies) == 24 * 8

    strange = tmp_path / "prompts.yaml"
    strange.write_text(
        "strange: {form: think, wordings: ['Sing.'], options: hidden}\n", encoding="utf-8"
    )
    how[1] = f"run_dir={tmp_path / 'other'}"
    prompts = [f"prompts.templates={strange}", "prompts.train={strange: 1}", "data.eval={}"]
    done = rarl_here("probe", *how, *few, *prompts, "rollout.temperature=2", pool=pool)
    assert done.returncode == 0, done.stderr
    assert "advice: get the form right first." in done.stdout
