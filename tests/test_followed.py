"""Whether the answers of a data set follow a group, such as the site of the image."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from rarl.data.parquet import write_examples
from rarl.evaluation.ways import floors_of
from rarl.prepare.floors import FloorQuestion, floors
from rarl.prepare.followed import follow, follow_lines, follows, group_columns, question_answers
from rarl.prepare.leaks import check_datasets
from rarl.prepare.show import show_dataset
from rarl.schema import Example
from tests.pictures import picture
from tests.records import reply_to

QUESTIONS = ("Is there a mass?", "Is there an effusion?", "Is a rib broken?")


def draw(rng: np.random.Generator, images: int, site_says: float, name: str) -> list[FloorQuestion]:
    """One to three questions about each image, of three sites of different size. With `site_says`
    0 answers follow the question alone, with 1 the site alone."""
    drawn = []
    for image in range(images):
        site = str(rng.choice(["A", "B", "C"], p=[0.5, 0.3, 0.2]))
        sex = str(rng.choice(["F", "M"]))
        for question in rng.permutation(QUESTIONS)[: rng.integers(1, 4)]:
            by_site = rng.random() < site_says
            yes = site != "A" if by_site else rng.random() < 0.3 + 0.2 * QUESTIONS.index(question)
            drawn.append(
                FloorQuestion(
                    question=str(question),
                    answer="yes" if yes else "no",
                    answer_type="closed",
                    image_id=f"{name}-{image}",
                    site=site,
                    extra={"sex": sex},
                )
            )
    return drawn


def flagged(rng: np.random.Generator, site_says: float) -> list[str]:
    asked = {
        name: draw(rng, size, site_says, name) for name, size in (("train", 150), ("test", 50))
    }
    return [one.column for one in follows(asked) if one.is_clear]


def test_answers_that_follow_the_site_are_flagged_and_others_are_not() -> None:
    rng = np.random.default_rng(0)
    assert [flagged(rng, 0.7) for _ in range(20)] == [["site"]] * 20
    without = [flagged(rng, 0.0) for _ in range(100)]
    assert sum(map(bool, without)) <= 5


def test_what_a_site_is_worth_is_counted_by_hand() -> None:
    """At A the answer is yes, at B no; both are asked the same, and most are of A."""
    train = [
        FloorQuestion("Mass?", "yes" if site == "A" else "No.", "closed", f"t{i}", site=site)
        for i, site in enumerate("AAAAAAAABBBBB")
    ]
    test = [
        FloorQuestion("mass", "yes" if site == "A" else "no", "closed", f"x{i}", site=site)
        for i, site in enumerate("AAAABBBBBB")
    ]
    assert question_answers(train, test) == ["yes"] * 10
    assert question_answers(train, test, "site") == ["yes"] * 4 + ["No."] * 6
    found = follow(train, test, "site")
    assert found is not None
    assert (found.questions, found.over_all, found.in_group) == (10, 0.4, 1.0)
    assert found.p == pytest.approx(0.5**6), "six images are served better, none worse"
    # four answers of a site are too few to go by
    assert question_answers(train[:12], test, "site") == ["yes"] * 10
    # a site that is not trained on, and a question that is new
    new = [test[0]._replace(site="C"), test[4]._replace(question="Rib?")]
    assert question_answers(train, new, "site") == ["yes", "yes"]
    own = [one._replace(image_id="t0") for one in test]
    assert follow(train, own, "site") is None, "images that are trained on tell nothing"


def test_floors_are_graded_as_replies_are() -> None:
    asked = "Write the report."
    train = [FloorQuestion(asked, "No acute cardiopulmonary process.", "report", "t")]
    test = [FloorQuestion(asked, "Normal chest.", "report", "x")]
    assert [one[1:] for one in floors(train, test)] == [(1, 1.0, 1.0)]
    train = [FloorQuestion("Which sequence?", "t2", "open", "t")]
    test = [FloorQuestion("Which sequence?", "mr - t2 weighted", "open", "x", also_right=("t2",))]
    assert [one[1:] for one in floors(train, test)] == [(1, 1.0, 1.0)]
    assert [one[1:] for one in floors(train, [test[0]._replace(also_right=None)])] == [
        (1, 0.0, 0.0)
    ]


def test_of_a_question_with_options_the_answer_is_one_of_them() -> None:
    options = ["lung", "heart", "liver"]
    train = [
        FloorQuestion(
            "Organ?", "heart" if i < 8 else "lung", "choice", f"{i}", options, site="AB"[i > 7]
        )
        for i in range(14)
    ]
    asked = [train[0]._replace(site="B"), train[0]._replace(site="B", options=["heart", "liver"])]
    assert question_answers(train, asked, "site") == ["lung", "heart"]


def test_a_patient_is_served_once_however_many_the_questions() -> None:
    train = [
        FloorQuestion("Mass?", "yes" if site == "A" else "no", "closed", f"t{i}", site=site)
        for i, site in enumerate("AAAAAAAABBBBB")
    ]
    test = [
        FloorQuestion("Mass?", "no", "closed", f"x{i}", patient=f"p{i % 2}", site="B")
        for i in range(8)
    ]
    found = follow(train, test, "site")
    assert found is not None and found.p == pytest.approx(0.25), "two patients"


def test_columns_that_go_with_the_question_are_not_looked_at() -> None:
    kinds = dict(zip(QUESTIONS, ("PRES", "ABN", "SIZE"), strict=True))
    asked = draw(np.random.default_rng(1), 150, 0.0, "all")
    typed = [one._replace(extra={"question_type": kinds[one.question]}) for one in asked]
    assert group_columns(typed) == ["site", "question_type"]
    assert [one.column for one in follows({"train": typed})] == ["site"], "held out by itself"


def example_of(one: FloorQuestion, number: int) -> Example:
    return Example(
        id=str(number),
        images=(picture(number),),
        image_id=one.image_id,
        question=one.question,
        answer=one.answer,
        answer_type="closed",
        site=one.site,
        extra=dict(one.extra or {}),
    )


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    rng = np.random.default_rng(2)
    for name, size in (("train", 120), ("test", 40)):
        rows = [example_of(one, n) for n, one in enumerate(draw(rng, size, 0.9, name))]
        write_examples(tmp_path / f"mine/{name}.parquet", rows)
    return tmp_path / "mine"


def test_check_show_and_the_tables_of_results_say_so(prepared: Path) -> None:
    [line] = follow_lines(sorted(prepared.glob("*.parquet")))
    assert line.startswith("ANSWERS FOLLOW 'site': ") and "--by site" in line
    report, _ = check_datasets([prepared])
    assert line in report
    console = Console(file=io.StringIO(), width=120, record=True)
    parts = list(show_dataset(prepared))
    assert line in parts
    for part in parts:
        console.print(part)
    shown = " ".join(console.export_text().split())
    assert "the most frequent answer to the same question, by who was asked" in shown
    asked = [
        example_of(one, n) for n, one in enumerate(draw(np.random.default_rng(3), 40, 0.9, "x"))
    ]
    replies = {"d": [reply_to(one, "yes") for one in asked]}
    found = floors_of(prepared / "train.parquet", replies)["d"]
    assert list(found) == ["majority answer", "nearest question", "majority answer by site"]
    rights = [
        sum(one.rewards["correct"] or 0.0 for one in own) / len(own) for own in found.values()
    ]
    assert rights[2] > rights[0] + 0.2
