"""`rarl data explain`: every reply of a teacher with faults is accounted for, nothing is asked
twice, and what is false of an image is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rarl.errors import UserError
from rarl.rationales.checks import OUTCOMES, check, known_of
from rarl.rationales.explain import TEXTS, figures_of
from rarl.rationales.teacher import (
    Said,
)
from tests.faulty_teacher import (
    KINDS,
    PLANTED,
    Asked,
    Bench,
    FaultyTeacher,
    by_seed,
    planted_examples,
    tagged,
)

# What becomes of a right reply of each kind; those with more than one depend on the question.
BECOMES = {
    "fitting": {"kept", "contradicts facts", "nothing but the answer", "too short"},
    "planted": {"kept", "contradicts facts", "nothing but the answer", "too short"},
    "wrong": {"wrong answer"},
    "refusal": {"refused"},
    "filtered": {"refused"},
    "http 400": {"refused"},
    "sorry": {"unreadable"},
    "foreign": {"other language"},
    "instructions": {"addresses a judge"},
    "hidden": {"addresses a judge"},
    "no tags": {"unreadable"},
    "two answers": {"unreadable"},
    "noise": {"unreadable"},
    "cut": {"cut off"},
    "empty": {"unreadable"},
    "silent": {"unreadable"},
    "bare": {"nothing but the answer"},
    "short": {"too short"},
    "long": {"too long"},
    "leak": {"was told"},
    "special": {"unreadable", "addresses a judge"},
}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(tmp_path, stack)


def test_every_reply_is_accounted_for(bench: Bench) -> None:
    """Each kind of reply has the outcome that is its own, and the counts add up to what the server
    has answered."""
    teacher = FaultyTeacher(by_seed(KINDS))
    bench.start(teacher)
    explainer, _ = bench.asking()
    explainer.ask(lambda: None)
    found = figures_of(explainer.work, len(bench.data), 0)
    outcomes = {
        Asked(int(one.example.image_id[6:]), one.example.question, each.number, each.hinted): each
        for one in explainer.work
        for each in one.replies
    }
    assert (
        len(outcomes)
        == len(teacher.answered)
        == sum(sum(counts.values()) for counts in found.replies.values())
    )
    for asked, kind in teacher.answered:
        checked = outcomes[asked].checked
        assert checked.outcome in BECOMES[kind], (kind, checked)
    assert {kind for _, kind in teacher.answered} == set(KINDS)
    assert sum(found.questions.values()) == len(bench.data)
    assert found.questions["no reply"] == 0
    refused = sum(found.replies["refused"].values())
    with_tokens = len(teacher.answered) - sum(kind == "http 400" for _, kind in teacher.answered)
    assert found.tokens == (100 * with_tokens, 20 * with_tokens)
    assert refused and found.untold == 0
    assert explainer.ended == Counter(
        {name: count for name, count in found.questions.items() if count}
    )
    for one in explainer.work:
        numbers = [(each.hinted, each.number) for each in one.replies]
        assert numbers == sorted(numbers) and len(set(numbers)) == len(numbers)
        kept = [each.checked.outcome == "kept" for each in one.replies]
        assert not any(kept[:-1]), "it was asked again although a reply was kept"
        assert one.status() == (
            ("hinted" if one.replies[-1].hinted else "machine") if kept[-1] else "rejected"
        )


@pytest.mark.parametrize("fault", ["500", "429", "garbage", "hollow", "dropped", "slow"])
def test_faults_on_the_way_are_sat_out(bench: Bench, fault: str) -> None:
    teacher = FaultyTeacher(by_seed(["fitting"]))
    slow: dict[str, Any] = {"slow_seconds": 20, "most": 2, "rate": 1.0} if fault == "slow" else {}
    bench.start(teacher, **{"faults": [fault], "rate": 0.2, **slow})
    explainer, asked = bench.asking(timeout_seconds=1 if fault == "slow" else 30, retries=6)
    explainer.ask(lambda: None)
    found = figures_of(explainer.work, len(bench.data), 0, asked.attempts)
    assert found.questions["no reply"] == 0
    assert sum(found.questions.values()) == len(bench.data)
    replies = sum(sum(counts.values()) for counts in found.replies.values())
    assert found.requests > replies, "failed requests are counted apart"


def test_a_teacher_that_is_gone_ends_the_command_and_the_next_start_goes_on(bench: Bench) -> None:
    teacher = FaultyTeacher(by_seed(["fitting"]))
    server = bench.start(teacher)
    explainer, first = bench.asking()
    with pytest.raises(UserError, match=r"cannot be reached .*goes on"):

        def gone() -> None:
            if len(teacher.answered) >= 20:
                server.faults, server.rate = ["500"], 1.0

        explainer.ask(gone)
    first.close()
    server.rate = 0.0
    before = [asked for asked, _ in teacher.answered]
    assert len(bench.data) > len(before) >= 20
    again, _ = bench.asking()
    taken = sum(len(one.replies) for one in again.work)
    again.ask(lambda: None)
    later = [asked for asked, _ in teacher.answered[len(before) :]]
    assert taken == len(before)
    assert not set(before) & set(later)
    assert figures_of(again.work, len(bench.data), 0).questions["no reply"] == 0


def test_one_question_without_a_reply_costs_no_other_and_is_asked_again(bench: Bench) -> None:
    first = bench.examples[0]
    stuck = {True}

    def choose(asked: Asked) -> str:
        if stuck and (asked.image, asked.question) == (0, first.question):
            raise RuntimeError("the server fails at this one")
        return "fitting"

    teacher = FaultyTeacher(choose)

    async def failing(body: bytes) -> tuple[int, bytes]:
        try:
            return await teacher(body)
        except RuntimeError:
            return 500, b"{}"

    bench.start(failing)
    explainer, _ = bench.asking()
    explainer.ask(lambda: None)
    found = figures_of(explainer.work, len(bench.data), 0)
    assert found.questions["no reply"] == 1 and explainer.work[0].status() is None
    count = len(teacher.answered)
    stuck.clear()
    again, _ = bench.asking()
    again.ask(lambda: None)
    assert again.work[0].status() == "machine" and len(teacher.answered) == count + 1


# What is false of the image


def test_right_answers_with_wrong_findings_are_left_out(bench: Bench) -> None:
    """At least four of five of those that contradict what is known of the image, and hardly any of
    those that fit it."""
    known = known_of(bench.data)
    share: dict[str, list[bool]] = {"wrong": [], "fitting": []}
    for row, example in enumerate(bench.examples):
        index = int(example.image_id.removeprefix("image-"))
        if example.id.endswith("-0"):
            for kind, kept in share.items():
                for text in PLANTED[index][kind]:
                    said = Said("said", tagged(text, example.answer))
                    checked = check(said, (text, example.answer), example, known[row])
                    assert checked.outcome in ("kept", "contradicts facts"), (text, checked)
                    kept.append(checked.outcome == "kept")
    assert len(share["wrong"]) >= 80 and len(share["fitting"]) >= 40
    assert sum(share["wrong"]) <= 0.2 * len(share["wrong"])
    assert sum(share["fitting"]) >= 0.9 * len(share["fitting"])


def test_planted_findings_do_not_come_through_the_whole_way(bench: Bench) -> None:
    """Asked four times, with wrong findings each; with the answer given, the truth is told."""
    teacher = FaultyTeacher(lambda asked: "fitting" if asked.hinted else "planted")
    bench.start(teacher)
    explainer, _ = bench.asking(attempts=4)
    explainer.ask(lambda: None)
    counts = figures_of(explainer.work, len(bench.data), 0).replies
    planted = {name: one["without answer"] for name, one in counts.items()}
    assert planted["kept"] <= 0.2 * sum(planted.values())
    assert counts["kept"]["hinted"] > 0.8 * sum(one["hinted"] for one in counts.values())


def test_facts_of_the_table_and_other_questions_count_and_so_does_the_modality() -> None:
    example = replace(
        planted_examples()[0], facts=("The aortic arch is calcified.",), modality="CT"
    )
    knows = ("The aortic arch is calcified.", "There is no pneumothorax.")
    texts = {
        "There is no calcification of the aortic arch; the left angle is blunted.": knows[0],
        "The left angle is blunted. A large pneumothorax is seen on the left.": knows[1],
        "On this MRI the left costophrenic angle holds fluid.": "The modality is CT.",
        "On this CT the left costophrenic angle holds fluid, better seen than on a radiograph.": "",
    }
    for text, against in texts.items():
        said = Said("said", tagged(text, "yes"))
        checked = check(said, (text, "yes"), example, knows)
        assert checked.why == against, checked
        assert (checked.outcome == "kept") == (not against)


def test_answers_that_also_count_are_right_and_boxes_are_told_apart() -> None:
    text = "The left costophrenic angle is blunted, which is a sign of fluid on that side."
    base = replace(planted_examples()[0], modality=None, options=None, answer_type="open")
    also = replace(base, answer="mr - t2 weighted", also_right=("t2",))
    report = replace(base, answer="There is a pleural effusion.", answer_type="report")
    boxes = replace(base, answer="mass (1, 2, 3, 4)", answer_type="boxes")
    given = [(also, "t2"), (report, "A pleural effusion is present."), (boxes, "mass")]
    outcomes = [check(Said("said", text), (text, told), one, ()).outcome for one, told in given]
    assert outcomes == ["kept", "kept", "asks for boxes"]
    assert "also_right" in TEXTS


LEAKING = [
    "As the question setter has told us, yes is right here, and the angle is indeed blunted.",
    "Since the answer is yes, the blunted angle has to be taken for fluid.",
    "The finding agrees with the answer: fluid is seen at the left base.",
    "You stated that there is an effusion, and the meniscus at the left base shows it.",
    "It was stated beforehand that fluid is present; the left base shows a meniscus.",
    "The reference answer is backed by a meniscus at the left lung base.",
    "We were told to expect an effusion, and the left costophrenic angle is blunted.",
    "Given the correct answer, the opacity of the left base is fluid.",
    "My answer matches the provided label, since the left base is opaque.",
    "This is supported by the image in accordance with the answer from the prompt.",
]
HONEST = [
    "The left costophrenic angle is blunted, which is consistent with pleural fluid on that side.",
    "A meniscus climbs the left chest wall. This supports the diagnosis of a pleural effusion.",
    "Given the blunted left angle, there is most likely free fluid in the pleural space.",
    "Because the left angle is blunted and the right one is sharp, fluid lies on the left.",
    "Known signs of an effusion, a meniscus and a lost diaphragm, are seen on the left.",
    "The left hemidiaphragm is not seen, as is expected with fluid above it.",
    "The labelled markers show the side; fluid is seen at the left base, not the right.",
    "The opacity at the left base follows the chest wall, a classic sign of fluid there.",
]


def test_explanations_that_say_that_they_were_told_are_left_out() -> None:
    example = replace(planted_examples()[0], modality=None)
    outcomes = {}
    for text in (*LEAKING, *HONEST):
        said = Said("said", tagged(text, "yes"))
        outcomes[text] = check(said, (text, "yes"), example, ()).outcome
    leaked = [outcomes[text] == "was told" for text in LEAKING]
    assert sum(leaked) >= 0.8 * len(LEAKING), [one for one in LEAKING if outcomes[one] == "kept"]
    assert [text for text in HONEST if outcomes[text] != "kept"] == []


def test_the_outcomes_are_those_of_the_documentation() -> None:
    page = (Path(__file__).parent.parent / "docs" / "rationales.md").read_text()
    assert [one for one in OUTCOMES if f"| {one} |" not in page] == []
