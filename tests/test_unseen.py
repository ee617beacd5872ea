"""The rules on texts in the style of reports that were written by somebody who had not read them:
the first set, on which they were then mended, and a second that was held back."""

from __future__ import annotations

from statistics import mean

import pytest
import unseen
from unseen import Scorer, Scores

SECOND = unseen.TEXTS.with_name("unseen_texts_second.yaml")
SCORERS = {"reasoning": unseen.reasoning, "facts": unseen.facts, "judge": unseen.judged}
FIRST_DATA, SECOND_DATA = unseen.read(), unseen.read(SECOND)


def share_paid(scores: Scores, without: str = "") -> float:
    """Returns the share of bad texts at 0.8 of the mean honest one or above."""
    kinds = [kind for kind in scores.bad if kind != without]
    counts = [len(scores.bad[kind]) for kind in kinds]
    paid = sum(scores.paid(kind) * count for kind, count in zip(kinds, counts, strict=True))
    return paid / sum(counts)


def share_honest(scores: Scores) -> float:
    return mean(value >= 0.5 for values in scores.honest for value in values)


@pytest.mark.parametrize("name", ["reasoning", "judge"])
def test_every_honest_text_earns_half_and_no_bad_one_comes_near(name: str) -> None:
    scores = unseen.score(FIRST_DATA, SCORERS[name])
    assert scores.least >= 0.5 - 1e-9
    assert scores.average >= 0.85
    assert share_paid(scores) == 0.0
    assert all(scores.auc(kind) >= 0.97 for kind in scores.bad)


@pytest.mark.parametrize("scorer", SCORERS.values(), ids=SCORERS)
def test_texts_that_were_held_back(scorer: Scorer) -> None:
    """What is reached on texts that no rule was mended for. For `facts` a true sentence that is
    said eight times is true."""
    scores = unseen.score(SECOND_DATA, scorer)
    assert scores.average >= 0.75
    assert share_honest(scores) >= 0.85
    assert share_paid(scores, without="repetition") <= 0.02


def test_facts_pay_no_bad_text_as_much_as_an_honest_one() -> None:
    scores = unseen.score(FIRST_DATA, unseen.facts)
    assert scores.average >= 0.8
    assert share_honest(scores) >= 0.95
    assert share_paid(scores, without="repetition") == 0.0


def test_answers_that_mean_the_same_are_told_from_others() -> None:
    wrong = {(one["reference"], one["answer"]) for one in unseen.wrong_answers(FIRST_DATA)}
    # Whether "2 lesions" answers as "Two" does is for the question to say.
    assert wrong <= {("Two", "2 lesions")}
    assert len(FIRST_DATA["answers"]) >= 60


def test_the_sets_are_large_and_hold_every_kind() -> None:
    assert len(FIRST_DATA["texts"]) >= 30
    assert len(SECOND_DATA["texts"]) >= 10
    for data in (FIRST_DATA, SECOND_DATA):
        kinds = {
            kind for index in range(len(data["texts"])) for kind, _ in unseen.bad_texts(data, index)
        }
        assert len(kinds) >= 20
