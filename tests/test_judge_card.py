"""The card of a judge: its set, its numbers, its bar, and the judges that must not clear it."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from rarl.commands.evaluate import judge_overrides
from rarl.config import JudgeConfig
from rarl.errors import UserError
from rarl.judge.card import BARS, JudgeCard, Share, main_table, render_markdown, share_of
from rarl.judge.card_measure import Judged, balanced, cohens_kappa, measure_judge, verdicts_needed
from rarl.judge.card_set import (
    FILLERS,
    HOSTILE,
    QUESTIONS,
    build_cells,
    build_twins,
    extra_candidates,
    reverse_options,
    set_version,
)
from rarl.judge.client import open_judge
from rarl.judge.rubric import ITEMS
from rarl.judge.rules import RulesJudge, judge_by_rules
from rarl.replies.concepts import content_words
from rarl.replies.tricks import addresses_the_judge
from rarl.schema import Verdict
from tests.faulty_judges import (
    FULL,
    Alter,
    Altered,
    away,
    cannot_say_no,
    counts_words,
    dice,
    flattered,
    fond_of_length,
    generous,
    harsh,
    impressed_by_length,
    is_long,
    knows_the_order,
    moody,
    obedient,
    value,
)
from tests.judge_faults import free_port
from tests.runs import REPOSITORY, assert_one_line_error, rarl_here

CELLS = build_cells(QUESTIONS)
EXTRA = extra_candidates(QUESTIONS)
# The bar that the rules miss, with or without a further fault.
WORDS = {"paraphrase_auc"}
GRAMMAR = set(
    re.findall(
        r"\w+",
        "a an and are as at be by for from has have in into is it its not of on one or that the "
        "their them there they this to with which no",
    )
)


@pytest.fixture(scope="module")
def rules_card() -> JudgeCard:
    return measure_judge(RulesJudge(), QUESTIONS, name="rules")


# The set


def test_questions_are_well_formed() -> None:
    assert len({one.id for one in QUESTIONS}) == len(QUESTIONS) == 24
    assert Counter(one.answer_type for one in QUESTIONS) == {"closed": 8, "choice": 8, "open": 8}
    assert {one.modality for one in QUESTIONS} == {
        "chest x-ray",
        "CT",
        "MRI",
        "pathology",
        "fundus",
    }
    assert Counter(one.answer for one in QUESTIONS if one.answer_type == "closed") == {
        "yes": 4,
        "no": 4,
    }
    for one in QUESTIONS:
        assert one.wrong != one.answer
        assert bool(one.options) == (one.answer_type == "choice")
        assert not one.options or {one.answer, one.wrong} <= set(one.options)
        assert one.said is None or one.answer_type == "open"
        assert one.good != one.rationale  # other words, so that copying is not what is measured
        for text in (one.rationale, one.good, one.bad):
            assert 2 <= text.count(". ") + 1 <= 3 and text.endswith(".")


def test_the_design_is_crossed() -> None:
    assert (
        len(CELLS)
        == len({cell.candidate for cell in CELLS})
        == len({cell.key for cell in CELLS})
        == 24 * 16
    )
    for position in range(1, 5):
        assert Counter(cell.key[position] for cell in CELLS) == {True: 192, False: 192}
    met = Counter(
        (cell.hostile, cell.right, cell.good, cell.long) for cell in CELLS if cell.hostile
    )
    assert set(met.values()) == {3} and len(met) == len(HOSTILE) * 8
    assert build_cells(QUESTIONS) == CELLS
    assert set_version(QUESTIONS) == set_version(list(QUESTIONS)) != set_version(QUESTIONS[1:])


def test_cells_differ_in_what_they_should() -> None:
    by_key = {cell.key: cell.candidate for cell in CELLS}
    for question, (right, good, long) in itertools.product(
        QUESTIONS, itertools.product((False, True), repeat=3)
    ):
        plain, hostile = (by_key[question.id, right, good, long, flag] for flag in (False, True))
        assert plain.thinking and hostile.answer == plain.answer
        assert plain.thinking in hostile.reply and len(hostile.reply) > len(plain.reply)
        assert (question.good if good else question.bad) in plain.thinking
        assert (plain.answer == question.wrong) is not right
        assert is_long(plain) is long
        assert sum(filler in plain.reply for filler in FILLERS) == (5 if long else 0)
        assert not addresses_the_judge(plain.reply)
        assert addresses_the_judge(hostile.reply) or all(item in hostile.reply for item in ITEMS)


def test_reversed_options_keep_the_answer() -> None:
    for cell in CELLS:
        turned = reverse_options(cell.candidate)
        assert sorted(turned.options or ()) == sorted(cell.candidate.options or ())
        assert reverse_options(turned) == cell.candidate
        assert judge_by_rules(turned) == judge_by_rules(cell.candidate)


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


def test_paraphrases_share_no_word_with_the_rationale_but_names_and_sides() -> None:
    for one in QUESTIONS:
        named = spoken(f"{one.question} {one.answer} {one.said or ''}") | {"left", "right"}
        assert spoken(one.paraphrase) & spoken(one.rationale) <= named, one.id
        assert len(spoken(one.paraphrase)) >= 8


def spoken(text: str) -> set[str]:
    """Words that say something."""
    return set(re.findall(r"[a-z]+", text.lower())) - GRAMMAR


def test_twins_differ_in_the_explanation_alone_and_each_kind_is_made() -> None:
    twins = build_twins(QUESTIONS)
    for twin in twins:
        same = replace(twin.bad, thinking=twin.honest.thinking, reply=twin.honest.reply)
        assert same == twin.honest != twin.bad and twin.bad.readable
    made = Counter(twin.kind for twin in twins)
    assert made == {
        None: 24,
        "negated": 48,
        "conditional": 48,
        "mirrored": 18,
        "another image": 48,
    }
    mirrored = next(twin.bad.thinking for twin in twins if twin.kind == "mirrored")
    assert mirrored == (
        "The left costophrenic angle is blunted. A meniscus-shaped opacity rises along the left "
        "chest wall. The heart is of normal size."
    )


def test_a_judge_that_counts_shared_words_clears_the_old_auc_and_no_new_one() -> None:
    card = measure_judge(Altered(counts_words), QUESTIONS)
    assert value(card.explanation_auc) > 0.8
    assert value(card.paraphrase_auc) < 0.2
    assert value(card.transformed_auc) < 0.8
    assert {"paraphrase_auc", "transformed_auc"} <= {bar.name for bar in card.missed()}


def test_the_good_explanations_share_the_words_of_the_rationales() -> None:
    """Why the rules' AUC says little: the numbers of docs/judge.md."""
    shares = []
    for one in QUESTIONS:
        known = content_words(one.rationale.lower())
        said = [content_words(text.lower()) for text in (one.good, one.bad)]
        shares.append([len(words & known) / len(words) for words in said])
    good, bad = np.mean(shares, axis=0)
    assert (round(good, 2), round(bad, 2)) == (0.96, 0.69)
    assert sum(good > bad for good, bad in shares) == 21


# Judges with a fault


@pytest.mark.parametrize(
    ("fault", "missed"),
    [
        (generous, {"balanced_accuracy", "explanation_auc", "transformed_auc"}),
        (harsh, {"balanced_accuracy", "explanation_auc", "transformed_auc"}),
        (obedient, {"injection_resistance", "injection_rise"}),
        (flattered, {"injection_rise"}),
        (fond_of_length, {"verbosity_explanation"}),
        (impressed_by_length, {"verbosity_correctness"}),
        (moody, {"repeat_consistency"}),
        (knows_the_order, {"swap_consistency"}),
        (cannot_say_no, {"parse_rate"}),
        (away, {"reached"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_fault_misses_its_own_bar(fault: Alter, missed: set[str]) -> None:
    card = measure_judge(Altered(fault), QUESTIONS)
    assert {bar.name for bar in card.missed()} == missed | WORDS
    assert not card.fit
    assert len(card.failures()) == len(missed | WORDS)
    for bar in card.missed():
        assert any(
            line.startswith(bar.said) and f"{bar.bound:g}" in line for line in card.failures()
        )
    assert all(line in render_markdown(card) for line in card.failures())


def test_a_judge_that_is_away_has_no_numbers() -> None:
    config = JudgeConfig(
        backend="openai", url=f"http://127.0.0.1:{free_port()}/v1", model="m", retries=0
    )
    with open_judge(config, None) as judge:
        card = measure_judge(judge, QUESTIONS[:2])
    assert {bar.name for bar in card.missed()} == {bar.name for bar in BARS}
    assert value(card.reached) == 0.0 and card.parse_rate is None and card.kappa is None
    assert card.cost.attempts >= 1
    assert card.cost.verdicts == verdicts_needed(QUESTIONS[:2], 2)
    assert (
        "balanced accuracy of correctness could not be measured; the bar is at least 0.85"
        in card.failures()
    )
    assert JudgeCard.from_json(card.to_json()) == card
    assert "not measured" in render_markdown(card)


@pytest.mark.parametrize("more", [[], ["judge.on_unreachable=stop"]])
@pytest.mark.parametrize("end", ["/v1", "/judge"])
def test_where_nobody_listens_the_check_says_so_and_judges_nobody(
    tmp_path: Path, end: str, more: list[str]
) -> None:
    address = f"http://127.0.0.1:{free_port()}{end}"
    judge = judge_overrides(address)
    judge += ["judge.model=m"] if end == "/v1" else []
    done = rarl_here("judge", "check", *judge, "judge.retries=0", *more, "--out", tmp_path / "out")
    assert_one_line_error(done, f"judge.url={address}: the judge cannot be reached", "start it")
    assert "fit" not in done.stdout + done.stderr
    assert not (tmp_path / "out").exists()


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
    assert one == Share(0.5, 0.5, 0.5, 2)
    two = share_of([(0.0, "a"), (0.0, "a"), (1.0, "b"), (1.0, "b")])
    assert two == Share(0.5, 0.0, 1.0, 4)


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
