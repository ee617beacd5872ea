"""The rubric by steps: what the judge is shown, what it must answer, and what the numbers are."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rarl.judge.candidate import Candidate
from rarl.judge.rubric import MOST_STEPS, find_rubric, steps_of
from rarl.schema import Verdict

STEPS = find_rubric("steps")
THREE = "The heart is wide. Hence 1.5 cm too much;\nnothing else"
ASKED = Candidate("Is it large?", None, "yes", "A wide heart. Clear lungs.", "whole", THREE, "yes")
TICKS = dict.fromkeys(STEPS.items, True)


def answer(steps: list[tuple[bool, bool]], said: list[bool], **changed: Any) -> str:
    listed = {
        "reply_steps": [{"advances": one, "right": other} for one, other in steps],
        "rationale_steps": [{"said": one} for one in said],
    }
    return json.dumps({"reason": "so", **TICKS, **listed, **changed})


def data_of(candidate: Candidate) -> dict[str, Any]:
    text: str = STEPS.messages(candidate)[1]["content"]
    read: dict[str, Any] = json.loads(text.removeprefix("<data>").partition("</data>")[0])
    return read


def test_the_steps_are_numbered_and_counted() -> None:
    shown = data_of(ASKED)
    assert shown["reply_steps"] == {
        "1": "The heart is wide.",
        "2": "Hence 1.5 cm too much;",
        "3": "nothing else",
    }
    assert shown["rationale_steps"] == {"1": "A wide heart.", "2": "Clear lungs."}
    arrays = STEPS.answer_schema(ASKED)["properties"]
    for name, length in (("reply_steps", 3), ("rationale_steps", 2)):
        assert arrays[name]["minItems"] == arrays[name]["maxItems"] == length
    unread = replace(ASKED, thinking=None, reply="One. Two.")
    assert data_of(unread)["reply_steps"] == {"1": "One.", "2": "Two."}


def test_every_answer_about_three_steps_gives_the_shares() -> None:
    """Efficiency over all steps, factuality over those that advance, completeness over the
    rationale's."""
    pairs = [(one, other) for one in (False, True) for other in (False, True)]
    for steps in itertools.product(pairs, repeat=3):
        for said in itertools.product((False, True), repeat=2):
            verdict = STEPS.read(answer(list(steps), list(said)), ASKED)
            advancing = [right for advances, right in steps if advances]
            assert verdict.status == "scored" and verdict.correctness == 3.0
            assert verdict.relevance == pytest.approx(len(advancing) / 3)
            right = sum(advancing) / len(advancing) if advancing else 0.0
            assert verdict.factuality == pytest.approx(right)
            assert verdict.completeness == pytest.approx(sum(said) / 2)


def test_what_cannot_be_known_is_none_and_what_was_not_said_is_nothing() -> None:
    alone = replace(ASKED, rationale=None)
    assert "rationale_steps" not in data_of(alone)
    verdict = STEPS.read(answer([(True, True)] * 3, []), alone)
    assert (verdict.completeness, verdict.explanation) == (None, 1.0)
    silent = replace(ASKED, thinking="")
    assert STEPS.read(answer([], [False, False]), silent).explanation == 0.0


@pytest.mark.parametrize(
    "text",
    [
        answer([(True, True)] * 2, [True] * 2),
        answer([(True, True)] * 4, [True] * 2),
        answer([(True, True)] * 3, [True] * 3),
        answer([(True, True)] * 3, [True] * 2, more=True),
        answer([(True, True)] * 3, [True] * 2, reply_steps=[{"advances": True}] * 3),
        answer([(True, True)] * 3, [True] * 2, rationale_steps=[True, True]),
        answer([(True, True)] * 3, [True] * 2, rationale_steps=[{"said": 1}] * 2),
        answer([(True, True)] * 3, [True] * 2).replace('{"said": true}', '{"said": true, "x": 1}'),
        answer([(True, True)] * 3, [True] * 2)[:-1],
    ],
)
def test_an_answer_that_is_not_quite_it_is_unparsable(text: str) -> None:
    verdict = STEPS.read(text, ASKED)
    assert (verdict.status, verdict.explanation) == ("unparsable", 0.0), verdict.reason
    assert verdict != Verdict("scored", 3.0, 1.0, 1.0, 1.0, "so")


@given(st.text(max_size=4000))
def test_no_text_is_lost_by_cutting_it_into_steps(text: str) -> None:
    steps = steps_of(text)
    assert len(steps) <= MOST_STEPS and all(step.strip() for step in steps)
    assert "".join("".join(steps).split()) == "".join(text.split())


def test_a_text_of_many_steps_is_bounded() -> None:
    many = replace(ASKED, thinking="It is so. " * 5000)
    shown = data_of(many)["reply_steps"]
    assert len(shown) == MOST_STEPS == STEPS.lengths(many)["reply_steps"]
    assert sum(map(len, shown.values())) < 5000
