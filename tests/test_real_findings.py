"""The reader of findings on text that its rules were not written for: the real questions of
VQA-RAD as other people worded them, and the same transformations of the phantoms' rationales."""

from __future__ import annotations

import inspect
import os
from pathlib import Path

import findings as protocol
import pytest

from rarl.errors import UserError
from rarl.judge.card_set import QUESTIONS
from rarl.replies.facts import facts_value
from rarl.replies.findings import split_claims
from rarl.replies.grading import grade_answer, is_correct
from rarl.replies.lexicon import SHIPPED, read_lexicon
from rarl.replies.matching import compare_findings
from rarl.rewards.facts import facts_reward
from rarl.tiny.phantoms import ORGANS, SIDES, Facts, rationale_for

MIRRORED = 0.95  # a third of the mirrored texts has one side among several true statements


@pytest.fixture(scope="module")
def pairs() -> list[protocol.Pair]:
    place = os.environ.get("RARL_VQA_RAD")
    if not place:
        pytest.skip("RARL_VQA_RAD does not name the folder of VQA-RAD")
    return protocol.read_pairs(Path(place))


@pytest.mark.real_data
@pytest.mark.parametrize("kind", protocol.SEEN)
def test_bad_texts_earn_less_than_honest_ones(pairs: list[protocol.Pair], kind: str) -> None:
    bounds = {"mirrored": MIRRORED, "salad": 0.9, "shuffled": 0.95}
    rows = protocol.measure(pairs, {kind: protocol.SEEN[kind]})
    assert rows[kind][1] >= bounds.get(kind, 0.95)
    assert rows["honest"][0] >= 0.8


@pytest.mark.real_data
@pytest.mark.parametrize("kind", protocol.UNSEEN)
def test_wordings_that_the_rules_do_not_know(pairs: list[protocol.Pair], kind: str) -> None:
    mean, order, _ = protocol.measure(pairs, {kind: protocol.UNSEEN[kind]})[kind]
    assert mean < 0.2
    assert order >= 0.9


@pytest.mark.real_data
def test_paraphrases_are_recognised_and_true_pairs_seldom_contradict(
    pairs: list[protocol.Pair],
) -> None:
    assert protocol.recognised(pairs) >= 0.85
    assert protocol.false_alarms(pairs) <= 0.01


ALL = {
    (kind, number): wording
    for kind in protocol.SEEN
    for number, wording in enumerate([*protocol.SEEN[kind], *protocol.UNSEEN.get(kind, [])])
}


@pytest.mark.parametrize("kind", ALL, ids=lambda one: f"{one[0]} {one[1]}")
def test_bad_texts_about_phantoms_earn_less(kind: tuple[str, int]) -> None:
    """Over all rationales together: one of two claims may lose its words by chance."""
    good = bad = 0.0
    for organ in ORGANS:
        for side in SIDES:
            truth = rationale_for(Facts(organ, side))
            good += compare_findings(truth, truth).f1
            bad += compare_findings(ALL[kind](truth), truth).f1
    assert good == len(ORGANS) * len(SIDES)
    assert bad < 0.8 * good


@pytest.mark.parametrize("kind", protocol.SEEN)
def test_of_explanations_by_others_no_bad_one_comes_near_the_honest(kind: str) -> None:
    """The judge's card has 24 explanations of many fields, written before these rules."""
    wordings = [*protocol.SEEN[kind], *protocol.UNSEEN.get(kind, [])]
    near = tried = 0
    for one in QUESTIONS:
        honest = compare_findings(one.good, one.rationale, one.question).f1
        assert honest >= 0.5
        for wording in wordings:
            if (text := wording(one.good)) != one.good:
                tried += 1
                near += compare_findings(text, one.rationale, one.question).f1 >= 0.8 * honest
    assert tried >= 10
    # Rules without a language model take some shuffled texts for telegrams.
    assert near <= (tried / 8 if kind == "shuffled" else 0)


@pytest.mark.parametrize(
    ("given", "reference"),
    [
        ("collapsed lung", "pneumothorax"),
        ("RUL", "right upper lobe"),
        ("haemorrhage", "hemorrhage"),
        ("two", "2"),
        ("3 cm", "30 mm"),
        ("computed tomography", "CT"),
        ("enlarged heart", "cardiomegaly"),
        ("magnetic resonance imaging", "MRI"),
        ("chest radiograph", "chest x-ray"),
        ("cerebral haemorrhage", "intracranial bleed"),
        ("gallstones", "cholelithiasis"),
        ("oedema", "edema"),
        ("oesophagus", "esophagus"),
        ("tumour", "mass"),
        ("hepatomegaly", "enlarged liver"),
        ("kidney stone", "nephrolithiasis"),
        ("transverse", "axial"),
        ("3rd rib", "third rib"),
        ("1.5 cm", "15mm"),
        ("MS", "multiple sclerosis"),
        ("swollen lymph nodes", "lymphadenopathy"),
        ("both lungs", "bilateral lungs"),
        ("windpipe", "trachea"),
        ("belly", "abdomen"),
        ("calcified", "calcifications"),
        ("unenhanced", "noncontrast"),
        ("left-sided pleural effusion", "pleural effusion on the left"),
        ("free air", "pneumoperitoneum"),
        ("stroke", "infarction"),
        ("T2-weighted", "T2"),
        ("posteroanterior", "PA"),
        ("renal cysts", "kidney cyst"),
        ("broken ribs", "rib fracture"),
        ("ultrasonography", "ultrasound"),
        ("NG tube", "nasogastric tube"),
        ("the lower lobe of the right lung", "right lower lobe of the lung"),
    ],
)
def test_two_names_of_one_thing_are_one_answer(given: str, reference: str) -> None:
    for answer, truth in ((given, reference), (reference, given)):
        assert is_correct(answer, truth, None)
        assert grade_answer(answer, truth, "open", None) == 1.0


@pytest.mark.parametrize(
    ("given", "reference"),
    [
        ("LUL", "right upper lobe"),
        ("hypodense", "hyperdense"),
        ("two", "3"),
        ("3 cm", "3 mm"),
        ("pericardial effusion", "pleural effusion"),
        ("MRI", "CT"),
        ("T1", "T2"),
        ("coronal", "axial"),
        ("no pneumothorax", "pneumothorax"),
        ("above the diaphragm", "below the diaphragm"),
        ("liver", "kidney"),
        ("L4", "L5"),
        ("AP", "PA"),
        ("epidural hematoma", "subdural hematoma"),
        ("3rd rib", "4th rib"),
        ("if pneumothorax", "lung abscess"),
    ],
)
def test_other_things_are_other_answers(given: str, reference: str) -> None:
    assert not is_correct(given, reference, None)


def test_facts_are_supported_contradicted_or_unknown() -> None:
    facts = ["There is no pneumothorax.", "There is a mass in the right upper lobe.", "This is CT."]
    found = facts_value("A large RUL tumour is seen. The left lung has collapsed.", facts)
    assert (found.supported, found.contradicted, found.unknown) == (1, 0, 2)
    found = facts_value("There is a mass in the left upper lobe, and a pneumothorax.", facts)
    assert (found.supported, found.contradicted, found.unknown) == (0, 2, 1)
    assert facts_value("", facts).verdicts == (0.0, 0.0, 0.0)
    assert facts_value("If this is a CT, all is well.", ["This is CT."]).supported == 0


@pytest.mark.parametrize(
    ("thinking", "value"),
    [
        ("There is a mass in the right upper lobe.", 0.5 + 0.25 * 0.5),
        ("There is a mass in the left upper lobe.", 0.5 - 0.25 * 0.5),
        ("There is no pneumothorax.", 0.5 + 0.25 * (0.5 + 0.25)),
        ("There is a pneumothorax.", 0.5 - 0.25 * (0.5 + 0.25)),
        ("The bones are slender.", 0.5),
    ],
)
def test_facts_are_held_against_those_of_other_images(thinking: str, value: float) -> None:
    """A half of its own facts is said, or contradicted; of the others a half and the whole."""
    facts = ["There is no pneumothorax.", "There is a mass in the right upper lobe."]
    others = [["There is no pneumothorax.", "The heart is large."], ["There is a pneumothorax."]]
    asked = {"form": "think", "question": "What is seen?", "answer": "a mass"}
    text = f"<think>{thinking}</think><answer>a cyst</answer>"
    score = inspect.unwrap(facts_reward)  # of one reply
    assert score(text, facts=facts, other_facts=others, **asked) == pytest.approx(value)
    assert score("a mass", facts=facts, other_facts=None, **asked) == 0.0
    assert score(text, facts=None, other_facts=None, **asked) is None


def test_a_users_lexicon_is_added(tmp_path: Path) -> None:
    path = tmp_path / "own.tsv"
    path.write_text("zebra sign\tfinding\tstriped sign\n", encoding="utf-8")
    lexicon = read_lexicon(str(path))
    assert facts_value("A striped sign is seen.", ["There is a zebra sign."], "", lexicon).supported
    path = tmp_path / "bad.tsv"
    path.write_text("zebra sign\tanimal\tstripes\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"bad.tsv, line 1: .*kind"):
        read_lexicon(str(path))


def test_the_lexicon_names_no_form_twice() -> None:
    for forms in SHIPPED.forms.values():
        found = [form for form, _ in forms]
        assert len(found) == len(set(found))


@pytest.mark.parametrize(
    ("text", "statuses"),
    [
        ("There is a mass.", ["asserted"]),
        ("If there is a mass, it grows.", ["conditional"]),
        ("The previous film shows a mass. It has a cyst. This image shows an effusion.",
         ["past", "past", "asserted"]),
        ("In another patient there is a mass. Today: a cyst.", ["other_patient", "asserted"]),
        ("There is a mass. I was wrong. There is a cyst.", ["withdrawn", "asserted"]),
        ("There is a mass. None of this is true.", ["withdrawn"]),
    ],
)  # fmt: skip
def test_claims_have_a_status(text: str, statuses: list[str]) -> None:
    assert [one.status for one in split_claims(text) if one.words][: len(statuses)] == statuses
