"""Several samples of an answer: the majority of words, boxes and reports, and abstention against
averages over all orders."""

from __future__ import annotations

from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rarl.evaluation.self_consistency import Sampled, abstention, self_consistency, vote
from rarl.schema import Box, Frame


def test_majority_by_the_grader() -> None:
    options = ["left lung", "right lung"]
    by_letter = vote(Sampled(["A", "left lung", "(b)", None], "left lung", options))
    assert (by_letter.answer, by_letter.agreement, by_letter.correct) == ("A", 0.5, True)
    yes_no = vote(Sampled(["no", "Yes, it is", "yes"], "no"))
    assert (yes_no.answer, yes_no.agreement, yes_no.correct) == (
        "Yes, it is",
        pytest.approx(2 / 3),
        False,
    )
    tie = vote(Sampled([None, "heart", "lung", "The lung.", "Heart"], "lung"))
    assert (tie.answer, tie.agreement, tie.correct) == ("heart", 0.4, False), (
        "of equally many, the first given"
    )
    assert vote(Sampled([None, None], "lung")).answer is None
    assert (vote(Sampled([None], "lung")).agreement, vote(Sampled([None], "lung")).correct) == (
        0.0,
        False,
    )
    for wrong in ([], [Sampled([], "lung")]):
        with pytest.raises(ValueError, match=r"no questions|without replies"):
            self_consistency(wrong)


def test_boxes_vote_by_overlap_and_reports_by_labels() -> None:
    frame = Frame("qwen2_vl", 1000, 1000, 448, 448)
    true = (Box("mass", 100, 100, 300, 300),)
    near = ["mass(100,100),(300,290)", "mass(95,100),(310,300)"]
    far = "mass(600,600),(800,800)"
    found = vote(Sampled([far, *near, "over there"], "", None, "boxes", boxes=true, frame=frame))
    assert (found.answer, found.agreement, found.correct) == (near[0], 0.5, True)
    twice = f"{near[0]}; mass(600,600),(800,800)"
    found = vote(Sampled([far, twice, near[0]], "", None, "boxes", boxes=true, frame=frame))
    assert (found.answer, found.agreement) == (far, pytest.approx(1 / 3)), "one more is another"
    none = vote(Sampled(["none", "None.", far], "", None, "boxes", boxes=(), frame=frame))
    assert (none.answer, none.correct) == ("none", True)

    reference = "No pneumothorax. Small left pleural effusion."
    words = [
        "There is an effusion; no pneumothorax.",
        "Pneumothorax is not seen. Pleural fluid on the left.",
        "A pneumothorax and an effusion.",
        "Nothing.",
        "Nothing!",
        "Words that say nothing.",
    ]
    found = vote(Sampled(words, reference, None, "report"))
    assert (found.answer, found.agreement, found.correct) == (words[0], pytest.approx(1 / 3), True)
    found = vote(Sampled(words[2:], reference, None, "report"))
    assert (found.answer, found.agreement, found.correct) == ("Nothing.", 0.5, False)


def test_the_majority_may_be_right_in_other_words() -> None:
    words = ["pleural fluid"] * 2 + ["heart"]
    assert not vote(Sampled(words, "liver")).correct
    assert vote(Sampled(words, "liver", also_right=("effusion", "pleural fluid"))).correct


def test_self_consistency_of_ten_questions_by_hand() -> None:
    """Agreement 1, 1, … for the six right ones, 1/2 for the four wrong ones: abstaining is worth
    it."""
    right, wrong = Sampled(["lung", "lung"], "lung"), Sampled(["heart", "liver"], "lung")
    found = self_consistency([wrong, right] * 4 + [right] * 2)
    assert (found.n, found.accuracy, found.agreement) == (10, 0.6, pytest.approx(0.8))
    assert found.abstention.coverage == (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
    assert found.abstention.accuracy == pytest.approx(
        [6 / 10, 6 / 9, 6 / 8, 6 / 7, 1, 1, 1, 1, 1, 1]
    )
    assert found.abstention.aurc == pytest.approx((1 / 7 + 2 / 8 + 3 / 9 + 4 / 10) / 10)
    assert [v.correct for v in found.votes[:2]] == [False, True]


@given(
    st.lists(st.tuples(st.sampled_from([0.25, 0.5, 1.0]), st.booleans()), min_size=1, max_size=6)
)
def test_the_abstention_curve_is_the_mean_over_all_orders(
    questions: list[tuple[float, bool]],
) -> None:
    """Of those that sort by agreement: questions that agree equally well have no order of their
    own."""
    curves = []
    for order in permutations(questions):
        if all(a[0] >= b[0] for a, b in pairwise(order)):
            curves.append(np.cumsum([hit for _, hit in order]) / np.arange(1, len(order) + 1))
    expected = np.mean(curves, axis=0)
    found = abstention([a for a, _ in questions], [hit for _, hit in questions])
    asked = [int(np.ceil(round(c * len(questions), 9))) for c in found.coverage]
    assert found.accuracy == pytest.approx([expected[m - 1] for m in asked])
    assert found.aurc == pytest.approx(1 - expected.mean())
    assert found.accuracy[0] == pytest.approx(np.mean([hit for _, hit in questions]))


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_equal_agreement_tells_nothing(correct: list[bool]) -> None:
    found = abstention([0.5] * len(correct), correct)
    assert found.accuracy == pytest.approx([np.mean(correct)] * 10)
    assert found.aurc == pytest.approx(1 - np.mean(correct))
