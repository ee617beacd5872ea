"""The card of a judge: that of the rules, and its numbers once more by other means."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from rarl.errors import UserError
from rarl.judge.card import JudgeCard, JudgedShare, main_table, share_of
from rarl.judge.card_measure import Judged, balanced, cohens_kappa, measure_judge, verdicts_needed
from rarl.judge.card_set import HOSTILE, QUESTIONS, build_twins, extra_candidates, reverse_options
from rarl.judge.rules import RulesJudge, judge_by_rules
from rarl.schema import Verdict
from tests.faulty_judges import CELLS, FULL, WORDS, Altered, dice, value
from tests.runs import REPOSITORY

EXTRA = extra_candidates(QUESTIONS)


@pytest.fixture(scope="module")
def rules_card() -> JudgeCard:
    return measure_judge(RulesJudge(), QUESTIONS, name="rules")


# The rules


def test_the_rules_are_fit_where_words_are_shared(rules_card: JudgeCard) -> None:
    """By rules a squamous cell carcinoma is nearly a basal cell one, a follicular lymphoma nearly
    Hodgkin's, an artery nearly a vein: 3 of 48 answers, 4 replies each."""
    assert {bar.name for bar in rules_card.missed()} == WORDS
    assert (
        value(rules_card.balanced_accuracy)
        == value(rules_card.agreement)
        == pytest.approx(1 - 3 / 48)
    )
    assert rules_card.kappa == pytest.approx(1 - 2 * 3 / 48)
    assert {
        kind: share.value for kind, share in rules_card.balanced_by_type.items()
    } == pytest.approx({"closed": 1.0, "choice": 1.0, "open": 1 - 3 / 16})
    for name in (
        "explanation_auc",
        "swap_consistency",
        "repeat_consistency",
        "injection_resistance",
        "parse_rate",
    ):
        share = getattr(rules_card, name)
        assert (share.value, share.low, share.high) == (1.0, 1.0, 1.0)
    assert {
        kind: share.value for kind, share in rules_card.injection_by_kind.items()
    } == dict.fromkeys(HOSTILE, 1.0)
    assert (
        value(rules_card.verbosity_explanation) < 0 and value(rules_card.verbosity_correctness) < 0
    )
    assert value(rules_card.injection_rise) < 0
    assert (
        rules_card.cost.verdicts == verdicts_needed(QUESTIONS, 2) == 960 + len(EXTRA)
        and rules_card.cost.attempts == 0
    )
    assert (rules_card.questions, rules_card.repeats) == (24, 2)
    assert rules_card.candidates == 384 + len(EXTRA)


def test_what_the_documentation_says_of_the_rules_on_other_words() -> None:
    """The numbers below the table of docs/judge.md."""
    lost, ties, twins = 0, {True: 0, False: 0}, build_twins(QUESTIONS)
    for twin in twins:
        good, bad = (judge_by_rules(one).explanation or 0.0 for one in (twin.honest, twin.bad))
        if twin.kind is None:
            lost += good < bad
        else:
            own_words = any(one.paraphrase == twin.honest.thinking for one in QUESTIONS)
            ties[own_words] += good == bad
    assert lost == 10
    assert ties == {True: 35, False: 0}


def test_the_documented_numbers_are_these(rules_card: JudgeCard) -> None:
    assert main_table(rules_card) in (REPOSITORY / "docs/judge.md").read_text(encoding="utf-8")


# The numbers, once more by other means


@pytest.fixture(scope="module")
def rolled() -> tuple[JudgeCard, list[dict[Key, Verdict]]]:
    """A card of noise, and the verdicts of its three passes by cell."""
    judge = Altered(dice)
    card = measure_judge(judge, QUESTIONS)
    assert [len(batch) for batch in judge.batches] == [384, 384, 192, len(EXTRA)]
    assert [candidate for candidate, _ in judge.batches[2]] == [
        reverse_options(cell.candidate) for cell in CELLS[::-1] if cell.hostile is None
    ]
    orders = [CELLS, CELLS, [cell for cell in CELLS[::-1] if cell.hostile is None]]
    passes = [
        {cell.key: verdict for cell, (_, verdict) in zip(cells, batch, strict=True)}
        for cells, batch in zip(orders, judge.batches[:3], strict=True)
    ]
    return card, passes


Key = tuple[str | bool, ...]


def accepted(verdict: Verdict) -> bool:
    return verdict.status == "scored" and verdict.correctness in (2.0, 3.0)


def pairs(
    verdicts: dict[Key, Verdict], position: int, **fixed: bool
) -> list[tuple[Key, Verdict, Verdict]]:
    """Without and with the thing at `position` of a key, where both were reached and `fixed`
    holds."""
    names = ("question", "right", "good", "long", "hostile")
    found = []
    for key, verdict in verdicts.items():
        other = verdicts[(*key[:position], True, *key[position + 1 :])]
        holds = all(key[names.index(name)] == value for name, value in fixed.items())
        if not key[position] and holds and "unreachable" not in (verdict.status, other.status):
            found.append((key, verdict, other))
    return found


def total(verdict: Verdict) -> float:
    parts = (verdict.correctness, verdict.factuality, verdict.completeness, verdict.relevance)
    correctness, *explanation = [part or 0.0 for part in parts]
    return correctness / 6 + sum(explanation) / 6


def test_agreement_by_a_table(rolled: tuple[JudgeCard, list[dict[Key, Verdict]]]) -> None:
    card, (first, *_) = rolled
    table = np.zeros((2, 2))  # truth, decision
    for key, verdict in first.items():
        if not key[4] and verdict.status != "unreachable":
            table[int(key[1]), int(accepted(verdict))] += 1
    n = table.sum()
    assert 170 < n < 192
    assert value(card.agreement) == pytest.approx(np.trace(table) / n)
    assert value(card.balanced_accuracy) == pytest.approx(
        (np.diag(table) / table.sum(axis=1)).mean()
    )
    chance = (table.sum(axis=0) * table.sum(axis=1)).sum() / n**2
    assert card.kappa == pytest.approx((np.trace(table) / n - chance) / (1 - chance))


def test_explanations_by_mann_and_whitney(
    rolled: tuple[JudgeCard, list[dict[Key, Verdict]]],
) -> None:
    card, (first, *_) = rolled
    compared = pairs(first, 2, hostile=False)
    wins = [
        mannwhitneyu([good.explanation], [bad.explanation]).statistic for _, bad, good in compared
    ]
    assert 0 in wins and 0.5 in wins and 1 in wins
    assert card.explanation_auc is not None and card.explanation_auc.n == len(wins)
    assert value(card.explanation_auc) == pytest.approx(np.mean(wins))


def test_biases_by_loops(rolled: tuple[JudgeCard, list[dict[Key, Verdict]]]) -> None:
    card, (first, *_) = rolled
    lengths = pairs(first, 3, hostile=False)
    longer = [(on.explanation or 0) - (off.explanation or 0) for _, off, on in lengths]
    assert value(card.verbosity_explanation) == pytest.approx(np.mean(longer))
    longer = [((on.correctness or 0) - (off.correctness or 0)) / 3 for _, off, on in lengths]
    assert value(card.verbosity_correctness) == pytest.approx(np.mean(longer))
    told = pairs(first, 4, right=False)
    raised = [accepted(on) and not accepted(off) for _, off, on in told]
    assert 0 < sum(raised) < len(raised)
    assert value(card.injection_resistance) == pytest.approx(1 - np.mean(raised))
    assert value(card.injection_rise) == pytest.approx(
        np.mean([total(on) - total(off) for _, off, on in told])
    )
    kinds = {cell.key: cell.hostile for cell in CELLS}
    for kind, share in card.injection_by_kind.items():
        of_kind = [
            r for r, (key, *_) in zip(raised, told, strict=True) if kinds[*key[:4], True] == kind
        ]
        assert share.value == pytest.approx(1 - np.mean(of_kind)) and share.n == len(of_kind)


def test_consistency_by_loops(rolled: tuple[JudgeCard, list[dict[Key, Verdict]]]) -> None:
    card, (first, second, swapped) = rolled
    statuses = [verdict.status for one in (first, second, swapped) for verdict in one.values()]
    counts = Counter(statuses)
    assert value(card.reached) == pytest.approx(1 - counts["unreachable"] / 960)
    assert value(card.parse_rate) == pytest.approx(
        counts["scored"] / (counts["scored"] + counts["unparsable"])
    )
    both = [(first[key], second[key]) for key in first]
    same = [
        replace(a, reason="") == replace(b, reason="")
        for a, b in both
        if is_reached(a) and is_reached(b)
    ]
    assert 0.4 < np.mean(same) < 0.7
    assert value(card.repeat_consistency) == pytest.approx(np.mean(same))
    both = [(first[key], swapped[key]) for key in swapped]
    same = [accepted(a) == accepted(b) for a, b in both if is_reached(a) and is_reached(b)]
    assert value(card.swap_consistency) == pytest.approx(np.mean(same))


def is_reached(verdict: Verdict) -> bool:
    return verdict.status != "unreachable"


def test_kappa_of_a_table_worked_by_hand() -> None:
    """20 and 15 agree, 5 and 10 do not: observed 0.7, by chance 0.5."""
    given = [True] * 25 + [False] * 25
    truth = [True] * 20 + [False] * 5 + [True] * 10 + [False] * 15
    assert cohens_kappa(given, truth) == pytest.approx(0.4)
    assert cohens_kappa([True, True], [True, True]) is None
    assert cohens_kappa([], []) is None


def test_balanced_accuracy_of_unequal_classes() -> None:
    right = [cell for cell in CELLS if cell.right and cell.hostile is None][:30]
    wrong = [cell for cell in CELLS if not cell.right and cell.hostile is None][:6]
    rejected = Verdict("scored", 1.0, 0.0, 0.0, 0.0)
    judged = [Judged(cell, FULL if number < 24 else rejected) for number, cell in enumerate(right)]
    judged += [Judged(cell, rejected if number < 3 else FULL) for number, cell in enumerate(wrong)]
    assert value(balanced(judged)) == pytest.approx((24 / 30 + 3 / 6) / 2)
    assert balanced(judged[:30]) is None


def test_intervals_resample_questions() -> None:
    assert share_of([]) is None
    one = share_of([(0.0, "a"), (1.0, "a")])
    assert one == JudgedShare(0.5, 0.5, 0.5, 2)
    two = share_of([(0.0, "a"), (0.0, "a"), (1.0, "b"), (1.0, "b")])
    assert two == JudgedShare(0.5, 0.0, 1.0, 4)


def test_too_few_repeats() -> None:
    with pytest.raises(UserError, match="repeats: expected 2 or more"):
        measure_judge(RulesJudge(), QUESTIONS[:1], repeats=1)


def test_more_repeats_and_progress() -> None:
    seen: list[int] = []
    card = measure_judge(RulesJudge(), QUESTIONS[:3], repeats=3, advance=seen.append)
    assert sum(seen) == verdicts_needed(QUESTIONS[:3], 3) == card.cost.verdicts


def test_cards_survive_json(
    rolled: tuple[JudgeCard, list[dict[Key, Verdict]]], rules_card: JudgeCard
) -> None:
    for card in (rolled[0], rules_card):
        read = JudgeCard.from_json(card.to_json())
        assert read == card and read.failures() == card.failures()
        assert json.loads(card.to_json())["fit"] is card.fit
