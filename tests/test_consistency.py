"""How the replies to one image's questions fit together, and which ask for perception and which for
reasoning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rarl.evaluation.consistency import ability_of, consistency
from rarl.evaluation.results import results, summarise
from rarl.samples import Sample
from tests.records import example, reply_to

FORWARD, ASTRAY, BACKWARD = (
    "right_if_related_right",
    "right_if_related_wrong",
    "related_right_if_right",
)
ALIKE = "paraphrase_agreement"


def reply(
    image: int, question: str, right: bool, kind: str | None = None, **changes: Any
) -> Sample:
    """A right or wrong reply to a yes/no question about an image."""
    extra = {"question_type": kind} if kind else {}
    values = {"image_id": f"i{image}", "question": question, "extra": extra, **changes}
    asked = example(abs(hash((image, question))) % 10**9, **values)
    says = asked.answer if right else "no" if asked.answer == "yes" else "something else"
    return reply_to(asked, says, {"reasoning": None})


def means(samples: Sequence[Sample]) -> dict[str, tuple[int, float]]:
    table = results({("m", "d"): {0: samples}}, ("all",))
    return {row["metric"]: (row["n"], row["mean"]) for row in table.to_dict("records")}


def test_right_where_related_ones_are_and_the_reverse() -> None:
    """Three images: all right; two of three right; one right alone."""
    samples = [reply(1, one, True) for one in ("Mass?", "Effusion?", "Fracture?")]
    samples += [reply(2, "Mass?", True), reply(2, "Effusion?", True), reply(2, "Fracture?", False)]
    samples += [reply(3, "Mass?", True), reply(3, "Effusion?", False), reply(4, "Mass?", True)]
    found = means(samples)
    # the three of image 1, the wrong one of 2, the wrong one of 3
    assert found[FORWARD] == (5, pytest.approx(3 / 5))
    # two of image 2 that are right beside the wrong one, the right one of 3
    assert found[ASTRAY] == (3, pytest.approx(1.0))
    assert found[BACKWARD] == (6, pytest.approx(3 / 6))
    assert ALIKE not in found
    alone = means([reply(1, "Mass?", True), reply(2, "Mass?", True)])
    assert not {FORWARD, ASTRAY, BACKWARD} & alone.keys(), "nothing is related"


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=5), min_size=1, max_size=5))
def test_rates_are_those_of_counting_pairs_of_a_question_and_its_image(
    rights: list[list[bool]],
) -> None:
    words = ("Mass?", "Effusion?", "Fracture?", "Aorta?", "Ribs?")
    samples = [
        reply(image, words[place], right)
        for image, own in enumerate(rights)
        for place, right in enumerate(own)
    ]
    expected: dict[str, list[bool]] = {FORWARD: [], ASTRAY: [], BACKWARD: []}
    for own in (one for one in rights if len(one) > 1):
        for place, right in enumerate(own):
            others = own[:place] + own[place + 1 :]
            expected[FORWARD if all(others) else ASTRAY].append(right)
            if right:
                expected[BACKWARD].append(all(others))
    for metric, values in expected.items():
        told = [one[metric] for one in consistency(samples) if metric in one]
        assert sorted(told) == sorted(map(float, values))


def test_images_of_other_data_sets_and_seeds_are_other_images() -> None:
    samples = [reply(1, "Mass?", True, dataset="a"), reply(1, "Effusion?", False, dataset="b")]
    assert consistency(samples) == [{}, {}]
    by_seed = {0: [reply(1, "Mass?", True)], 1: [reply(1, "Effusion?", True)]}
    table = results({("m", "d"): by_seed}, ("all",))
    assert FORWARD not in set(table["metric"])


def test_reasoning_is_held_against_perception_about_the_same_image() -> None:
    samples = [
        reply(1, "Which plane?", True, "PLANE"),
        reply(1, "Which organ?", True, "ORGAN"),
        reply(1, "What is abnormal?", True, "ABN"),
        reply(1, "What disease is it?", False, "ABN"),
    ]
    found = consistency(samples)
    assert found[2] == {FORWARD: 1.0, BACKWARD: 1.0}, "the other one for reasoning does not count"
    assert found[3] == {FORWARD: 0.0}
    assert found[0] == {ASTRAY: 1.0, BACKWARD: 0.0}


PARAPHRASED = ("Is there a pleural effusion?", "Is a pleural effusion there?")


@pytest.mark.parametrize(
    ("first", "second", "answers", "are_one"),
    [
        (*PARAPHRASED, ("yes", "yes"), True),
        (*PARAPHRASED, ("yes", "no"), False),
        ("Is the left lung clear?", "Is the right lung clear?", ("yes", "yes"), False),
        ("Are the upper lobes clear?", "Are the lower lobes clear?", ("no", "no"), False),
        ("Is there a mass?", "What modality is used?", ("yes", "yes"), False),
        ("Is there a mass?", "Is there a mass?", ("yes", "yes"), False),
    ],
)
def test_paraphrases_are_near_wordings_with_one_answer_and_one_subject(
    first: str, second: str, answers: tuple[str, str], are_one: bool
) -> None:
    samples = [
        reply(1, one, True, answer=answer, id=str(place))
        for place, (one, answer) in enumerate(zip((first, second), answers, strict=True))
    ]
    found = consistency(samples)
    assert [ALIKE in one for one in found] == [are_one, are_one]
    if are_one:
        assert found[0] == {ALIKE: 1.0}, "a paraphrase is not related: it would count twice"


def test_paraphrases_are_answered_alike_though_both_be_wrong_and_not_without_an_answer() -> None:
    def alike(*says: str | None) -> float:
        samples = [
            reply_to(example(place, image_id="i", question=question), said)
            for place, (question, said) in enumerate(zip(PARAPHRASED, says, strict=True))
        ]
        return consistency(samples)[0][ALIKE]

    assert alike("no", "No.") == alike("yes", "yes") == 1.0
    assert alike("yes", "no") == alike(None, None) == alike("no", None) == 0.0


@pytest.mark.parametrize(
    ("extra", "ability"),
    [
        ({"question_type": "PRES"}, "perception"),
        ({"question_type": "ABN"}, "reasoning"),
        ({"question_type": "ATTRIB, PRES"}, "perception"),
        ({"question_type": "ABN, POS"}, None),
        ({"question_type": "OTHER"}, None),
        ({"content_type": "Modality"}, "perception"),
        ({"content_type": "KG"}, "reasoning"),
        ({"question_type": "Anatomy Identification"}, "perception"),
        ({"question_type": "Disease Diagnosis"}, "reasoning"),
        ({"question_type": "Reasoning", "medical_task": "Diagnosis"}, "reasoning"),
        ({"question_type": "Understanding", "medical_task": "Diagnosis"}, "perception"),
        ({"medical_task": "Treatment"}, "reasoning"),
        ({"ward": "PRES"}, None),
        ({}, None),
    ],
)
def test_the_ability_follows_from_the_kind_that_the_data_name(
    extra: dict[str, str | None], ability: str | None
) -> None:
    assert ability_of(example(0, extra=extra)) == ability


def test_perception_and_reasoning_stand_apart_in_a_summary_with_their_margins() -> None:
    samples = []
    for place in range(40):
        kind, right = ("SIZE", place % 4 > 0) if place < 20 else ("ABN", place % 4 == 0)
        one = reply(place, "Large?", right, kind)
        assert one.score is not None
        one.score.rewards["option_margin"] = 2.0 if right else -1.0
        samples.append(one)
    found = summarise(samples)["by_ability"]
    assert {name: (one["n"], one["accuracy"]) for name, one in found.items()} == {
        "perception": (20, 0.75),
        "reasoning": (20, 0.25),
    }
    margin = found["perception"]["metrics"]["option_margin"]
    assert margin["mean"] == pytest.approx(0.75 * 2 - 0.25)
    low, high = margin["ci95"]
    assert low < margin["mean"] < high <= 2.0 and high > 1.0, "nats are no fractions"
    assert "by_ability" not in summarise(samples[:20]), "of one ability alone"
