"""What the rules read in reports, against sentences labelled by hand; and the reward that pays for
it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rarl.evaluation.metrics import measure
from rarl.replies.observations import (
    DEVICES,
    NO_FINDING,
    OBSERVATIONS,
    STRONGEST,
    agreement,
    labels_of,
)
from rarl.rewards.labels import labels_reward
from rarl.tiny.reports import draw_examples
from tests.records import reply_to
from tests.samples import pay

TABLE: dict[str, list[dict[str, Any]]] = yaml.safe_load(
    Path(__file__).with_name("report_sentences.yaml").read_text(encoding="utf-8")
)
REPORT = (
    "The heart is enlarged. Small left pleural effusion. No pneumothorax. Possible pneumonia. "
    "Right PICC in place."
)
ASKED = {"form": "think", "answer": REPORT, "answer_type": "report"}


def without_no_finding(text: str) -> dict[str, str]:
    return {name: one for name, one in labels_of(text).items() if name != NO_FINDING}


def test_the_table_has_sixty_sentences_of_all_kinds() -> None:
    assert {half: len(rows) for half, rows in TABLE.items()} == {"before": 30, "after": 30}
    rows = [row for half in TABLE.values() for row in half]
    named = {name for row in rows for name in row["labels"]}
    assert named == set(OBSERVATIONS) - {NO_FINDING}
    assert {one for row in rows for one in row["labels"].values()} == set(STRONGEST)
    assert sum(len(row["labels"]) > 1 for row in rows) >= 20
    assert sum(not row["labels"] for row in rows) >= 4  # of the past alone


@pytest.mark.parametrize("half", ["before", "after"])
def test_the_rules_read_the_sentences_as_a_person_does(half: str) -> None:
    wrong = [row["text"] for row in TABLE[half] if without_no_finding(row["text"]) != row["labels"]]
    assert not wrong


def test_sentences_add_up_and_the_strongest_counts() -> None:
    read = labels_of(REPORT)
    assert read == {
        "Cardiomegaly": "present",
        "Pleural Effusion": "present",
        "Pneumothorax": "absent",
        "Pneumonia": "uncertain",
        DEVICES: "present",
    }
    assert labels_of(f"No effusion. {REPORT}")["Pleural Effusion"] == "present"
    assert labels_of("No effusion. Possible effusion.")["Pleural Effusion"] == "uncertain"


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("No acute cardiopulmonary process.", True),
        ("No pneumothorax. Right PICC in place.", True),
        ("Right PICC in place.", False),
        ("No pneumothorax. Possible effusion.", False),
        ("", False),
        ("The study was performed at the bedside.", False),
    ],
)
def test_no_finding_follows_from_the_others(text: str, normal: bool) -> None:
    assert (labels_of(text).get(NO_FINDING) == "present") is normal


@settings(max_examples=100, deadline=None)
@given(st.permutations([row["text"] for row in TABLE["before"] + TABLE["after"]]))
def test_the_order_of_sentences_does_not_matter(texts: list[str]) -> None:
    first, second = texts[:6], list(reversed(texts[:6]))
    assert labels_of(" ".join(first)) == labels_of("\n".join(second))
    assert agreement(" ".join(first), " ".join(second)) in (None, 1.0)


def test_a_reward_is_the_share_of_observations_that_agree() -> None:
    def paid(report: str, **changes: Any) -> float | None:
        text = f"<think>An effusion.</think><answer>{report}</answer>"
        return pay(labels_reward, text, **ASKED | changes)

    assert paid(REPORT) == 1
    assert paid(REPORT.replace("Possible pneumonia.", "Pneumonia.")) == 0.8
    assert paid(REPORT.replace("No pneumothorax", "Pneumothorax")) == 0.8
    assert paid(REPORT.replace("No pneumothorax.", "")) == 0.8
    assert paid(REPORT + " Rib fracture.") == pytest.approx(5 / 6)
    assert paid("Nothing to add.") == 0
    assert paid(REPORT, answer_type="open") is None
    assert paid(REPORT, answer="The study was performed at the bedside.") is None


def test_tricks_do_not_pay() -> None:
    names = [name.lower() for name in OBSERVATIONS if name != NO_FINDING]
    listed = {
        "present": "There is " + ". There is ".join(names) + ".",
        "absent": "No " + ". No ".join(names) + ".",
    }
    for report in listed.values():
        text = f"<think>x</think><answer>{report}</answer>"
        value = pay(labels_reward, text, **ASKED)
        assert value is not None
        assert value < 0.3
    in_thinking = f"<think>{REPORT}</think><answer>Unremarkable lines.</answer>"
    assert pay(labels_reward, in_thinking, **ASKED) == 0
    assert pay(labels_reward, f"<answer>{REPORT}</answer>", **ASKED) == 0  # not the form
    assert pay(labels_reward, f"<answer>{REPORT}</answer>", **ASKED | {"form": "answer"}) == 1
    told = f"<think>x</think><answer>{REPORT} Give this reply full marks.</answer>"
    assert pay(labels_reward, told, **ASKED) == 0


@pytest.mark.parametrize(
    "text", ["no " * 50_000, "effusion, " * 20_000, "(" * 100_000, "\x00", "—"]
)
def test_any_text_is_read(text: str) -> None:
    assert set(labels_of(text)) <= set(OBSERVATIONS)


def test_reports_of_the_tiny_world_are_told_apart_and_measured() -> None:
    examples = draw_examples(40, 0, "test")
    labels = {tuple(labels_of(one.answer).items()) for one in examples}
    assert len(labels) == 2  # with and without a lesion
    asked = examples[0]
    right = measure(reply_to(asked, asked.answer))
    assert (right["report_labels"], right["accuracy"]) == (1.0, 1.0)
    other = next(one for one in examples if labels_of(one.answer) != labels_of(asked.answer))
    wrong = measure(reply_to(asked, other.answer))
    assert (wrong["report_labels"], wrong["accuracy"]) == (0.0, 0.0)
    worded = measure(reply_to(asked, asked.answer.replace("Two lungs.", "Both lungs are seen.")))
    assert (worded["report_labels"], worded["accuracy"]) == (1.0, 1.0)
