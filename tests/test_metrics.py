"""Metrics against scikit-learn and hand-computed tables, and paired statistics against SciPy and
enumeration."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import precision_recall_fscore_support

from rarl.evaluation.metrics import METRICS, llava_med_text, measure
from rarl.evaluation.paired import Paired, changes_between, sign_flip_test, summarise_changes
from rarl.intervals import interval95
from rarl.samples import Sample
from rarl.schema import Verdict
from tests.records import example, graded, numbered, reply_to, rights

WORDS = ["left", "right", "lung", "effusion", "normal", "no", "<5", "t2-weighted"]
texts = st.lists(st.sampled_from(WORDS), max_size=6)
Half = list[Sample]


def replied(
    answer: str | None, reference: str, kind: str = "open", options: list[str] | None = None
) -> Sample:
    asked = example(1, answer=reference, answer_type=kind, options=options and tuple(options))
    # without a rationale nothing is known to compare the thinking with
    return reply_to(asked, answer, {"reasoning": None}, tokens=7)


def value(name: str, answer: str | None, reference: str, kind: str = "open") -> float | None:
    return measure(replied(answer, reference, kind)).get(name)


def test_registry() -> None:
    assert all(METRICS.values())
    found = measure(replied("left", "left"))
    assert found.keys() <= METRICS.keys(), "each metric says what it is"


def test_each_kind_of_question_has_its_own_metrics() -> None:
    opens = {"open_exact", "open_precision", "open_recall", "open_f1", "llava_med_open"}
    always = {"accuracy", "format", "completion_tokens"}
    for kind, own in (
        ("closed", {"closed", "llava_med_closed"}),
        ("choice", {"choice"}),
        ("open", opens),
    ):
        options = ["left", "right"] if kind == "choice" else None
        assert measure(replied("left", "left", kind, options)).keys() == own | always
        unanswered = measure(replied(None, "left", kind, options))
        assert all(unanswered[name] == 0.0 for name in own | {"format", "accuracy"})
    assert measure(replied("(b)", "right", "choice", ["left", "right"]))["choice"] == 1.0
    assert measure(replied("left", "left"))["completion_tokens"] == 7.0


@pytest.mark.parametrize(
    ("answer", "reference", "exact", "precision", "recall", "f1"),
    [
        ("The left lung.", "left lung", 1, 1, 1, 1),
        ("left lung base", "left lung", 0, 2 / 3, 1, 4 / 5),
        ("lung", "left lung", 0, 1, 1 / 2, 2 / 3),
        ("left left left lung", "left lung base", 0, 2 / 4, 2 / 3, 4 / 7),
        ("lung left", "left lung", 0, 1, 1, 1),
        ("heart", "left lung", 0, 0, 0, 0),
        ("", "left lung", 0, 0, 0, 0),
    ],
)
def test_open_questions_by_hand(
    answer: str, reference: str, exact: float, precision: float, recall: float, f1: float
) -> None:
    found = [
        value(f"open_{name}", answer, reference) for name in ("exact", "precision", "recall", "f1")
    ]
    assert found == pytest.approx([exact, precision, recall, f1])


@settings(deadline=None)  # the first call compiles what the grades read replies with
@given(texts, texts)
def test_words_of_open_questions_equal_scikit_learns(
    answer: list[str], reference: list[str]
) -> None:
    """Multisets as sets of (word, occurrence), which are binary labels."""
    sets = [
        {(word, i) for word, n in Counter(one).items() for i in range(n)}
        for one in (answer, reference)
    ]
    universe = [*sorted(sets[0] | sets[1]), ("neither", 0)]
    given_labels, wanted_labels = ([item in one for item in universe] for one in sets)
    theirs = precision_recall_fscore_support(
        wanted_labels, given_labels, average="binary", zero_division=0
    )[:3]
    ours = [
        value(f"open_{n}", " ".join(answer), " ".join(reference))
        for n in ("precision", "recall", "f1")
    ]
    assert ours == pytest.approx(theirs)
    if reference:
        exact = value("open_exact", " ".join(answer), " ".join(reference))
        assert exact == float(answer == reference) and exact <= (ours[2] or 0.0) + 1e-12


def test_closed_questions_by_word() -> None:
    closed = [
        value("closed", answer, "no", "closed")
        for answer in ("No.", "normal", "yes, no", "no effusion", None)
    ]
    assert closed == [1.0, 0.0, 0.0, 1.0, 0.0]


def test_the_judge() -> None:
    plain = replied("left", "left")
    judged = replace(plain, verdict=Verdict("scored", 2.0, 0.5, 0.25, 0.0))
    unread = replace(plain, verdict=Verdict("unparsable", 0.0, 0.0, 0.0, 0.0))
    away = replace(plain, verdict=Verdict("unreachable"))
    names = ("judged_accuracy", "judge_correctness", "judge_explanation", "judge_unparsed")
    assert [measure(judged)[name] for name in names] == pytest.approx([1.0, 2 / 3, 0.25, 0.0])
    assert [measure(unread)[name] for name in names] == [0.0, 0.0, 0.0, 1.0]
    assert not any(name in measure(one) for one in (away, plain) for name in names)
    for correctness, right in ((0.0, 0.0), (1.0, 0.0), (2.0, 1.0), (3.0, 1.0)):
        found = measure(replace(plain, verdict=Verdict("scored", correctness)))
        assert found["judged_accuracy"] == right


def test_of_several_right_answers_the_nearest_counts() -> None:
    asked = example(answer="lung", answer_type="open", also_right=("chest", "pleural space"))
    found = [measure(reply_to(asked, one)) for one in ("Chest", "the pleura space", "heart", None)]
    assert [one["accuracy"] for one in found] == [1.0, 0.0, 0.0, 0.0]
    assert [one["open_exact"] for one in found] == [1.0, 0.0, 0.0, 0.0]
    assert [one["open_f1"] for one in found] == pytest.approx([1.0, 0.5, 0.0, 0.0])
    assert reply_to(asked, "chest").is_right and not reply_to(asked, "heart").is_right


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("Yes, there is.", "yes", 1),
        ("No", "Yes", 0),
        ("The lungs are normal.", "no", 1),  # its fault: "no" is in "normal"
        ("cannot tell, yes or no", "yes", 1),  # its fault: both are right
        ("cannot tell, yes or no", "no", 1),
        ("left", "left", 0),  # its fault: neither yes nor no
        ("left, abnormality", "left", 1),  # its fault: "no" in "abnormality" makes it count
        ("none", "no", 0),  # "none" has become "0"
        (None, "yes", 0),
    ],
)
def test_llava_med_closed_by_hand(answer: str | None, reference: str, score: float) -> None:
    assert value("llava_med_closed", answer, reference, "closed") == score


@pytest.mark.parametrize(
    ("answer", "reference", "recall"),
    [
        ("the left lung base", "left lung", 1),
        ("left", "left lung", 1 / 2),
        ("left left left", "left lung", 3 / 4),  # its fault: repetition raises it, 3 / (3 + 1)
        # its fault: the second "left" is not missed, 1 / (1 + 1)
        ("left", "left left lung", 1 / 2),
        ("two lesions", "2 lesions", 1),
        ("dont know", "don't know", 1),
        ("heart", "left lung", 0),
        ("", "left lung", 0),
        ("left", "the", 0),
    ],
)
def test_llava_med_open_by_hand(answer: str, reference: str, recall: float) -> None:
    assert value("llava_med_open", answer, reference) == pytest.approx(recall)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("T2-weighted", "t2 weighted"),
        ("T2-weighted - yes", "t2weighted yes"),
        ("1,000 T2-weighted", "1000 t2weighted"),
        ("2.5 cm. The mass", "2.5 cm mass"),
        ("left/right", "left right"),
        ("left, right", "left right"),
        ("a lesion; none; isnt", "lesion 0 isn't"),
        (". " * 33 + "x", ". x"),  # no more than 32 periods are removed
    ],
)
def test_llava_med_normalisation_by_hand(text: str, normal: str) -> None:
    assert llava_med_text(text) == normal


def answered(correct: list[bool], per_image: int = 1) -> Half:
    """One reply per entry; `per_image` of them about each image."""
    return [graded(i, one, image=f"image-{i // per_image}") for i, one in enumerate(correct)]


def split(won: int, lost: int, both: int, neither: int) -> tuple[Half, Half]:
    before = [False] * won + [True] * lost + [True] * both + [False] * neither
    after = [True] * won + [False] * lost + [True] * both + [False] * neither
    return answered(before), answered(after)


def compare_pairs(runs: list[tuple[Half, Half]], shared_images: bool = False) -> Paired:
    return summarise_changes([changes_between(runs, "correct", shared_images)])[0]


def compare(before: Half, after: Half) -> Paired:
    return compare_pairs([(before, after)])


@pytest.mark.parametrize(
    ("won", "lost", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 0, 2 / 32),
        (5, 1, 2 * 7 / 64),
        (6, 2, 2 * 37 / 256),
        (4, 4, 1.0),
    ],
)
def test_mcnemar_by_hand_and_scipys(won: int, lost: int, p: float) -> None:
    """By hand: twice the binomial coefficients of the smaller side and below, over 2^n."""
    paired = compare(*split(won, lost, 3, 4))
    assert (paired.pairs, paired.won, paired.lost, paired.tied) == (won + lost + 7, won, lost, 7)
    assert paired.p == pytest.approx(p)
    assert won + lost == 0 or paired.p == pytest.approx(stats.binomtest(won, won + lost).pvalue)
    assert paired.points == pytest.approx(100 * (won - lost) / (won + lost + 7))


def test_mcnemar_approaches_chi_squared() -> None:
    won, lost = 1050, 950
    # with the continuity correction (Edwards 1948)
    chi2 = (abs(won - lost) - 1) ** 2 / (won + lost)
    assert compare(*split(won, lost, 0, 0)).p == pytest.approx(stats.chi2.sf(chi2, 1), rel=0.01)


def test_pairs_are_by_id_in_any_order_and_must_be_complete() -> None:
    before, after = split(6, 2, 5, 5)
    turned = compare(before, after[::-1])
    assert turned == compare(before, after)
    other_way = compare(after, before)
    assert (other_way.won, other_way.lost, other_way.points) == (2, 6, -turned.points)
    assert other_way.p == turned.p
    for left, right in (
        (before, after[1:]),
        (before[1:], after),
        (before, [*after, after[0]]),
        ([], []),
    ):
        with pytest.raises(ValueError, match=r"no partner|no questions"):
            compare(left, right)
    doubled = [[*half, *half] for half in (before, after)]
    assert compare(*doubled).pairs == 2 * turned.pairs, (
        "questions with one id are compared in order"
    )


def test_the_difference_is_clustered_by_image() -> None:
    rng = np.random.default_rng(0)
    before, after = (
        answered((rng.random(90) < chance).tolist(), per_image=3) for chance in (0.4, 0.6)
    )
    change = [100.0 * (b - a) for a, b in zip(rights(before), rights(after), strict=True)]
    paired = compare(before, after)
    assert paired.ci95 == pytest.approx(
        interval95(change, [one.example.image_id for one in before])
    )
    assert (
        paired.points == pytest.approx(np.mean(change))
        and paired.ci95[0] < paired.points < paired.ci95[1]
    )


def test_seeds_that_share_their_images_add_no_questions() -> None:
    """Three seeds with the same answers know no more than one; with a test set each, they know
    three times as much."""
    runs = [split(20, 8, 40, 32)] * 3
    one = compare(*runs[0])
    shared, apart = (compare_pairs(runs, shared_images=own) for own in (True, False))
    assert (shared.pairs, shared.won, shared.lost, shared.tied) == (300, 20, 8, 72)
    assert (shared.p, shared.points) == (pytest.approx(one.p), pytest.approx(one.points))
    assert shared.ci95 == pytest.approx(one.ci95)
    assert (apart.won, apart.lost, apart.tied) == (60, 24, 216)
    assert apart.p == pytest.approx(stats.binomtest(60, 84).pvalue)
    width, narrow = shared.ci95[1] - shared.ci95[0], apart.ci95[1] - apart.ci95[0]
    assert narrow == pytest.approx(width / 3**0.5, rel=0.05)
    with pytest.raises(ValueError, match="not measured on the same questions"):
        compare_pairs([runs[0], (answered([True]), answered([True]))], shared_images=True)
    with pytest.raises(ValueError, match="no questions"):
        compare_pairs([], shared_images=True)


def test_samples_of_one_question_are_one_observation() -> None:
    before, after = split(6, 1, 0, 3)
    sampled = [numbered(half, 4) for half in (before, after)]
    paired = compare(*sampled)
    assert (paired.pairs, paired.won, paired.lost, paired.tied) == (40, 6, 1, 3)
    assert paired.p == pytest.approx(compare(before, after).p)


@given(st.lists(st.integers(-3, 3), max_size=9))
def test_sign_flips_equal_enumeration(sums: list[int]) -> None:
    totals = [
        abs(sum(sign * one for sign, one in zip(signs, sums, strict=True)))
        for signs in product((-1, 1), repeat=len(sums))
    ]
    assert sign_flip_test(sums) == pytest.approx(
        np.mean([total >= abs(sum(sums)) for total in totals])
    )


@pytest.mark.long
@pytest.mark.parametrize("shared_base", [True, False])
def test_seeds_no_better_than_their_base_are_rarely_found_so(shared_base: bool) -> None:
    """2,000 comparisons of 3 seeds with a base of the same skill, 300 questions: about 5 % below
    0.05. (The signs of the questions' sums would be below in 90 % where the seeds share one
    base.)"""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(2000):
        chance = rng.beta(8, 2, 300)
        trained, base = (
            rng.random((3, 300)) < chance,
            rng.random((1 if shared_base else 3, 300)) < chance,
        )
        found.append(sign_flip_test((trained.astype(int) - base).sum(axis=0).tolist()) < 0.05)
    assert 0.03 <= np.mean(found) <= 0.065
