"""The set that a judge's card is measured on: its questions, its crossed design, its twins."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from dataclasses import replace

import numpy as np

from rarl.judge.card_set import (
    FILLERS,
    HOSTILE,
    QUESTIONS,
    build_cells,
    build_twins,
    reverse_options,
    set_version,
)
from rarl.judge.rubric import ITEMS
from rarl.judge.rules import judge_by_rules
from rarl.replies.concepts import content_words
from rarl.replies.tricks import addresses_the_judge
from tests.faulty_judges import CELLS, is_long

GRAMMAR = set(
    re.findall(
        r"\w+",
        "a an and are as at be by for from has have in into is it its not of on one or that the "
        "their them there they this to with which no",
    )
)


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
