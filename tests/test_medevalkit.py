"""What MedEvalKit would count: as its own code did, reply by reply and in sum."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rarl.evaluation.medevalkit import OPEN_SCORES, grade, longest_common, medevalkit_scores
from rarl.samples import Sample
from rarl.schema import Verdict
from tests.records import example, reply_to

HELD: dict[str, Any] = yaml.safe_load(
    (Path(__file__).parent / "medevalkit_replies.yaml").read_text(encoding="utf-8")
)
SUMS: dict[str, Any] = HELD.pop("sums")
ROWS = [(data, row) for data, rows in HELD.items() for row in rows]


def replied(data: str, row: dict[str, Any], verdict: Verdict | None = None) -> Sample:
    options = tuple(row["options"]) if "options" in row else None
    kind = row.get("kind", "choice" if options else "open")
    answer = row["answer"]
    asked = example(answer=answer, answer_type=kind, options=options, dataset=data)
    return reply_to(asked, None, text=row["reply"], verdict=verdict)


@pytest.mark.parametrize(("data", "row"), ROWS, ids=[f"{d}-{i}" for i, (d, _) in enumerate(ROWS)])
def test_each_reply_counts_as_in_its_own_code(data: str, row: dict[str, Any]) -> None:
    sample = replied(data, row)
    found = grade(sample.example, sample.rollout.text)
    assert found.ends == row.get("ends", False)
    if not found.ends:
        assert found.right == row["right"]
        scores = [found.scores[name] for name in OPEN_SCORES if found.scores]
        assert scores == pytest.approx(row.get("scores", []), rel=1e-12, abs=1e-300)


def test_enough_replies_of_every_kind_were_compared() -> None:
    assert len(ROWS) >= 60
    assert sum("scores" in row for _, row in ROWS) >= 20
    assert sum("ends" in row for _, row in ROWS) == 2


@pytest.mark.parametrize("data", SUMS)
def test_sums_are_those_of_its_own_code(data: str) -> None:
    rows = [row for row in HELD[data] if "ends" not in row]
    found = medevalkit_scores([replied(data, row) for row in rows])
    known = SUMS[data]
    assert found["ends"] == 0 and "judged" not in found
    for part in ("total", "open", "close"):
        if part in known:
            held = {name: known[part][name] for name in ("total", "right", "acc")}
            assert {name: found[part][name] for name in held} == pytest.approx(held)
    if "open" in known:
        scores = [found["open"][name] for name in OPEN_SCORES]
        assert scores == pytest.approx(known["open"]["scores"], rel=1e-12, abs=1e-300)


@pytest.mark.parametrize("data", [data for data, one in SUMS.items() if "judged" in one])
def test_sums_with_a_judge_are_those_of_its_own_code(data: str) -> None:
    """Its judge was made to call right every other reply that it is asked about."""
    samples, number = [], 0
    for row in (row for row in HELD[data] if "ends" not in row):
        verdict = None
        if data == "slake" or "scores" in row:
            verdict = Verdict("scored", 1.0 if number % 2 else 2.0, None, None, None)
            number += 1
        samples.append(replied(data, row, verdict))
    assert medevalkit_scores(samples)["judged"] == {
        part: pytest.approx(counts) for part, counts in SUMS[data]["judged"].items()
    }


def test_a_reply_at_which_the_original_stops_is_counted_as_wrong() -> None:
    rows = [{"answer": "brain", "reply": ""}, {"answer": "brain", "reply": "brain"}]
    found = medevalkit_scores([replied("vqa-rad", row) for row in rows])
    assert (found["ends"], found["open"]["em"], found["total"]["acc"]) == (1, 0.5, 0.5)


def test_closed_questions_of_slake_alone_are_counted_by_both() -> None:
    row = {"answer": "Yes", "kind": "closed", "reply": "<answer>Yes</answer>"}
    found = medevalkit_scores([replied("slake", row, Verdict("scored", 3.0))])
    assert found["judged"]["close"] == {"total": 1, "right": 2, "acc": 2.0}
    assert "open" not in found["judged"]


def test_no_sums_with_a_judge_that_could_not_be_asked_about_all() -> None:
    row = {"answer": "brain", "reply": "brain"}
    told = [Verdict("scored", 3.0), Verdict("unreachable")]
    assert "judged" not in medevalkit_scores([replied("vqa-rad", row, one) for one in told])


@given(*[st.lists(st.sampled_from("abc"), max_size=7)] * 2)
def test_the_longest_common_part_is_one_of_both_and_there_is_no_longer(
    first: list[str], second: list[str]
) -> None:
    found = longest_common(first, second)
    assert is_part(found, first) and is_part(found, second)
    longest = max(
        (n for n in range(1 << len(first)) if is_part(chosen(first, n), second)), key=int.bit_count
    )
    assert len(found) == longest.bit_count()


def chosen(items: Sequence[str], bits: int) -> list[str]:
    return [one for place, one in enumerate(items) if bits >> place & 1]


def is_part(short: Sequence[str], whole: Sequence[str]) -> bool:
    rest = iter(whole)
    return all(one in rest for one in short)
