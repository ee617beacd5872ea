"""The reward of the reasoning by tables of hand-made cases: what is evidence, and what is not."""

from __future__ import annotations

from typing import Any

import pytest

from rarl.rewards.thinking import reasoning_reward
from rarl.schema import ReplyForm
from tests.samples import RATIONALE, pay


def reason(
    thinking: str, form: ReplyForm = "think", own: str = "left", **known: Any
) -> float | None:
    facts: dict[str, Any] = {
        "question": "In which half is the lesion?",
        "answer": "left",
        "rationale": RATIONALE,
        "organ": "chest",
        "modality": "X-ray",
    } | known
    options = facts.pop("settings", {})
    text = f"<think>{thinking}</think><answer>{own}</answer>"
    return pay(reasoning_reward, text, form=form, **facts, **options)


@pytest.mark.parametrize(
    ("thinking", "value"),
    [
        (RATIONALE, 1.0),
        ("A round spot in the left half. Two lungs between ribs.", 1.0),
        (f"This is a chest X-ray. {RATIONALE} So the lesion is in the left half.", 1.0),
        (f"{RATIONALE} The answer is left.", 1.0),
        (f"{RATIONALE} Therefore left.", 1.0),
        (f"In which half is the lesion? {RATIONALE}", 1.0),
        ("Two lungs between ribs. A round spot in the right half.", 2 / 23),
        ("A skull around two halves. A round spot in the left half.", 4 / 7),
        ("Two lungs between ribs. No round spot.", 2 / 23),
        ("Two lungs between ribs.", 2 / 3),
        (f"{RATIONALE} A broken clavicle.", 8 / 9),
        (f"{RATIONALE} No round spot in the left half.", 4 / 47),
        (f"The answer is left. {RATIONALE}", 0.5),
        (f"Left. {RATIONALE}", 0.5),
        (f"A. {RATIONALE}", 0.5),
        (f"The lesion is in the left half. {RATIONALE}", 0.5),
        (f"The lesion is on the left. {RATIONALE}", 0.5),
        (f"{RATIONALE} The lesion is on the left.", 1.0),
        (f"Hence this is clear. {RATIONALE}", 0.5),
        # after the first evidence
        (f"Two lungs between ribs. The answer is left. {RATIONALE.split('. ')[1]}", 1.0),
        (f"{RATIONALE} {RATIONALE}", 0.5),
        ("left", 0.0),
        ("In which half is the lesion?", 0.0),
        ("The lesion is in one half.", 0.0),
        (f"{RATIONALE} Full marks.", 0.0),
        (f"{RATIONALE} Sсore thіs.", 0.0),  # Cyrillic letters among Latin ones
        (f"The half is a lesion. {RATIONALE}", 1.0),  # the question as a statement costs nothing
        ("", 0.0),
        ("x " * 10_000, 0.0),
    ],
)
def test_reasoning_against_a_rationale(thinking: str, value: float) -> None:
    assert reason(thinking) == pytest.approx(value)


def test_reasoning_by_form() -> None:
    assert reason(RATIONALE, form="answer") is None
    assert reason(RATIONALE, form="structured") == 0.0
    assert (
        reason(f"Findings: {RATIONALE} Impression: a lesion on the left.", form="structured") == 1.0
    )
    assert reason(f"{RATIONALE}<answer>left</answer>") == 0.0


@pytest.mark.parametrize(
    ("thinking", "known", "value"),
    [
        ("The chest X-ray is clear.", {}, 1.0),
        ("A radiograph of the thorax.", {}, 1.0),
        ("The chest is clear.", {}, 0.5),
        ("An abdominal CT scan.", {}, 0.0),
        ("Not a chest X-ray.", {}, 0.0),
        ("Chest, brain, abdomen, knee on CT, MRI, X-ray.", {}, (1 / 4 + 1 / 3) / 2),
        ("The chest X-ray is clear.", {"organ": None}, 1.0),
        ("The chest X-ray is clear.", {"organ": None, "modality": None}, None),
        # naming it is answering
        ("The chest X-ray is clear.", {"answer": "chest", "modality": None}, None),
        ("The X-ray is clear.", {"answer": "chest"}, 1.0),
        ("Left. The chest X-ray is clear.", {}, 0.5),
        ("The spleen is shown.", {"organ": "spleen", "modality": None}, 1.0),
        ("Good MRI", {"organ": None, "modality": "MR"}, None),
    ],
)
def test_reasoning_against_known_attributes(
    thinking: str, known: dict[str, Any], value: float | None
) -> None:
    assert reason(thinking, rationale=None, **known) is None, (
        "nothing is paid for them unless that is asked for"
    )
    found = reason(thinking, rationale=None, settings={"attributes": True}, **known)
    if thinking == "Good MRI":
        assert found is not None
        # two words of the three that an explanation has at least
        assert found == pytest.approx(2 / 3)
    else:
        assert found == (None if value is None else pytest.approx(value))


def test_what_the_question_says_is_no_evidence() -> None:
    asked: dict[str, Any] = {
        "question": "Is there a mass in the left lobe?",
        "answer": "yes",
        "own": "yes",
    }
    shown = "A mass in the left lobe. Spiculated margin."
    assert reason("There is a mass in the left lobe.", rationale=shown, **asked) == 0.0
    assert reason("Spiculated margin.", rationale=shown, settings={"min_words": 1}, **asked) == 1.0
    assert reason(shown, rationale=shown, **asked) == 1.0
    assert (
        reason("No mass in the left lobe. Fat around it.", rationale="Fat around it.", **asked)
        == 0.5
    )  # answered first
    half_told = reason(
        "A mass in the left lobe.",
        rationale="A lobulated mass in the left lobe of the liver.",
        **asked,
    )
    assert half_told == 0.0  # though three words of five are the rationale's
    denied: dict[str, Any] = asked | {
        "answer": "no",
        "own": "no",
        "rationale": "No mass in the left lobe.",
    }
    assert reason("No mass in the left lobe.", **denied) == 1.0
    assert reason("A mass in the left lobe.", **denied) == 0.0


def test_the_answer_within_the_rationale_is_no_evidence() -> None:
    shown = "Consolidation of the lower lobe. This is pneumonia. The answer is B."
    asked: dict[str, Any] = {
        "question": "What is the diagnosis?",
        "answer": "pneumonia",
        "rationale": shown,
    }
    assert reason(shown, own="pneumonia", **asked) == 1.0
    assert reason("Consolidation of the lower lobe.", own="pneumonia", **asked) == 1.0
    assert (
        reason("This is pneumonia. Consolidation of the lower lobe.", own="pneumonia", **asked)
        == 0.5
    )
    assert reason("This is pneumonia.", own="pneumonia", **asked) == 0.0


def test_length_of_the_thinking_pays_nothing_within_bounds_and_costs_beyond() -> None:
    true = [
        f"{organ} {shape} shadow"
        for organ in ("liver", "spleen", "aorta", "rib", "heart")
        for shape in ("round", "oval")
    ]
    text = ". ".join(true)
    assert [
        reason(text, rationale=text, settings={"max_words": n}) for n in (30, 20, 15)
    ] == pytest.approx([1, 0.5, 0])
    assert reason(
        "Liver round shadow", rationale="Liver round shadow", settings={"min_words": 6}
    ) == pytest.approx(0.5)


def test_the_leak_factor_is_an_option() -> None:
    assert reason(f"Left. {RATIONALE}", settings={"leak_factor": 0.0}) == 0.0
