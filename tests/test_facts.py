"""Facts about an image: which sentences the other questions about it tell, what they must not tell,
how much each is worth, and how they travel."""

from __future__ import annotations

import inspect
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rarl.config import RewardConfig
from rarl.errors import UserError
from rarl.prepare.convert import prepare_dataset
from rarl.prepare.facts import OTHERS, FactQuestion, find_facts
from rarl.prepare.sources.folder import read_facts
from rarl.prepare.statements import state
from rarl.rewards.facts import facts_reward
from rarl.rewards.registry import find_rewards
from rarl.rewards.sensitivity import blind_means
from tests.pictures import read, write_folder
from tests.runs import rarl_here


def sentence(question: str, answer: str) -> str | None:
    statement = state(question, answer)
    return None if statement is None else statement.sentence


def facts_of(*asked: tuple[str, str], organ: str | None = None) -> list[list[str]]:
    """The facts of each of these questions, which are all about one image."""
    questions = [FactQuestion("image", organ, question, answer) for question, answer in asked]
    return [list(known.facts) for known in find_facts(questions, siblings=True)]


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("Is there evidence of a pleural effusion?", "No", "There is no pleural effusion."),
        ("Are air-fluid levels present on this CT?", "yes", "There are air-fluid levels."),
        ("Can you see the adrenal glands?", "no", "The adrenal glands is not visible."),
        ("Does the patient have cardiomegaly?", "Yes", "There is cardiomegaly."),
        ("Is the portal vein engorged?", "no", "The portal vein is not engorged."),
        ("Is the size of the left kidney normal?", "yes", "The size of the left kidney is normal."),
        ("Has the gallbladder been removed?", "Yes", "The gallbladder has been removed."),
        ("Do the lungs appear hyperinflated?", "No", "The lungs are not hyperinflated."),
        ("Does the mass enhance?", "no", "The mass does not enhance."),
        ("Is this an axial image?", "yes", "This is an axial image."),
        ("Where is the mass located in this image?", "Pons", "The mass is in the pons."),
        (
            "Which lobe is the nodule in?",
            "right upper lobe",
            "The nodule is in the right upper lobe.",
        ),
        ("On which side is the effusion?", "left", "The effusion is on the left."),
        ("How many masses are there?", "2", "The number of masses is 2."),
        ("How many lesions are visible?", "none", "There are no lesions."),
        ("What modality was used?", "MRI", "This is a MRI."),
        ("Is the mass solid or cystic?", "Cystic", "The mass is cystic."),
        ("What abnormality is seen in the left lung?", "mass", "There is mass in the left lung."),
        ("How would you describe the lesion?", "Lobulated", "The lesion is lobulated."),
    ],
)
def test_a_question_and_its_answer_are_one_sentence(
    question: str, answer: str, expected: str
) -> None:
    assert sentence(question, answer) == expected


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Why is there free air?", "perforation"),
        ("What is the likely cause of the lesion?", "infarct"),
        ("Should this patient be operated on?", "yes"),
        ("Where is the mass?", "not sure"),
        ("Is the lesion on the left side of the image?", "yes"),
        ("Besides the liver, which organ is shown?", "spleen"),
        ("Is there no mass?", "yes"),
        ("Ist ein Bruch zu sehen?", "ja"),
        ("?", "yes"),
        ("Is there?", "no"),
    ],
)
def test_what_says_nothing_of_the_picture_is_no_fact(question: str, answer: str) -> None:
    assert sentence(question, answer) is None


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        # the same question, the same in other words, its denial, and what implies the answer
        (("Is there a mass?", "yes"), ("Is a mass present?", "yes")),
        (("Is the mass calcified?", "yes"), ("Is there calcification of the mass?", "yes")),
        (("Is the gallbladder distended?", "no"), ("Is the gallbladder large in size?", "no")),
        (("Is there a mass?", "yes"), ("Where is the mass?", "left lung")),
        (("Is there a mass in the liver?", "no"), ("Is there a mass?", "no")),
        (("Is the heart enlarged?", "yes"), ("Is there cardiomegaly?", "yes")),
        # the open answer by its name
        (("What is abnormal?", "pleural effusion"), ("Is there a pleural effusion?", "yes")),
        (("Where is the mass?", "right kidney"), ("Which organ is enlarged?", "right kidney")),
        (("Is the mass solid or cystic?", "cystic"), ("Is the mass cystic?", "yes")),
    ],
)
def test_no_fact_tells_the_answer(asked: tuple[str, str], told: tuple[str, str]) -> None:
    evidence = ("Is there a rib fracture?", "no")
    facts, others, _ = facts_of(asked, told, evidence)
    assert facts == ["There is no rib fracture."]
    assert facts == others, "neither way"


def test_facts_are_of_the_same_image_and_agree() -> None:
    questions = [
        FactQuestion("a", None, "Is there a mass?", "yes"),
        FactQuestion("a", None, "Is the trachea deviated?", "yes"),
        FactQuestion("a", None, "Is the trachea deviated?", "no"),
        FactQuestion("a", None, "Are the ribs intact?", "yes"),
        FactQuestion("b", None, "Is there a fracture?", "yes"),
    ]
    found = find_facts(questions, siblings=True)
    assert found[0].facts == ("The ribs are intact.",)
    assert found[0].others == (("There is a fracture.",),)
    assert found[-1].facts == ()
    assert not any(known.facts for known in find_facts(questions, siblings=False))


def test_other_images_are_of_the_organ_and_tell_no_answer() -> None:
    """Each another image, whose facts are those that the row might have had itself."""
    questions = [
        FactQuestion(
            f"{organ}-{image}", organ, f"Is there {finding}?", "no" if image % 2 else "yes"
        )
        for organ in ("chest", "head")
        for image in range(9)
        for finding in ("a mass", "a fracture", "an effusion")
    ]
    found = find_facts(questions, siblings=True)
    assert found == find_facts(questions, siblings=True), "the same each time"
    for asked, known in zip(questions, found, strict=True):
        assert len(known.facts) == 2 and len(known.others) == OTHERS
        finding = asked.question.split()[-1].rstrip("?")
        assert not any(finding in sentence for told in known.others for sentence in told)
    both = [told for known in found for told in known.others]
    assert {sentence for told in both for sentence in told if " no " in sentence}
    alone = find_facts([one for one in questions if one.image_id == "head-0"], siblings=True)
    assert all(known.facts and not known.others for known in alone)


@pytest.mark.parametrize("said", ["no", "yes"])
def test_who_always_says_the_same_earns_nothing(said: str) -> None:
    """Of findings of which some are frequent and some rare, and of those that the reader of
    findings cannot tell to exclude each other, such as two views."""
    draw = random.Random(0)
    shares = {"an effusion": 0.1, "a mass": 0.7, "a cyst": 0.02, "a stone": 0.5}
    questions = []
    for image in range(400):
        for finding, share in shares.items():
            if draw.random() < 0.6:
                answer = "yes" if draw.random() < share else "no"
                questions.append(FactQuestion(str(image), "chest", f"Is there {finding}?", answer))
        view = "PA" if draw.random() < 0.8 else "lateral"
        questions.append(FactQuestion(str(image), "chest", "What view was taken?", view))
    sentences = {"no": "There is no {}.", "yes": "There is {}. The view taken is PA."}
    text = " ".join(sentences[said].format(finding) for finding in shares)
    known = [one for one in find_facts(questions, siblings=True) if one.facts]
    paid = [paid_for(text, one.facts, one.others) for one in known]
    assert len(paid) > 1000
    assert sum(paid) / len(paid) == pytest.approx(0.5, abs=0.02)
    honest = [paid_for(" ".join(one.facts), one.facts, one.others) for one in known]
    assert sum(honest) / len(honest) > 0.6


def paid_for(thinking: str, facts: Sequence[str], others: Sequence[Sequence[str]] | None) -> float:
    """What the reward pays for a thinking about an image with these facts."""
    text = f"<think>{thinking}</think><answer>a cyst</answer>"
    score = inspect.unwrap(facts_reward)  # of one reply
    paid = score(text, form="think", question="What?", answer="x", facts=facts, other_facts=others)
    assert paid is not None
    return paid


def table_row(image: int, question: str, answer: str, **further: Any) -> dict[str, Any]:
    return {"image": f"{image}.png", "question": question, "answer": answer} | further


def test_siblings_never_come_from_another_split(tmp_path: Path) -> None:
    """Not even where the image is in both, as in the published split of VQA-RAD."""
    rows = [
        table_row(0, "Is there a mass?", "yes", split="train"),
        table_row(0, "Is the trachea deviated?", "no", split="train"),
        table_row(0, "Are the ribs intact?", "yes", split="test"),
        table_row(1, "Is there an effusion?", "no", split="test"),
        table_row(1, "Is the heart enlarged?", "no", split="test"),
    ]
    write_folder(tmp_path / "mine", rows)
    report = prepare_dataset("folder", tmp_path / "mine", tmp_path / "out", facts="siblings")
    train, test = (read(tmp_path / "out" / f"{split}.parquet") for split in ("train", "test"))
    assert [row.facts for row in train] == [
        ("The trachea is not deviated.",),
        ("There is a mass.",),
    ]
    assert [row.facts for row in test] == [
        None,
        ("The heart is not enlarged.",),
        ("There is no effusion.",),
    ]
    assert train[0].other_facts is None, "there is no other image"
    assert test[1].other_facts == (("The ribs are intact.",),)
    assert "train: 100.0 % of the questions have facts about their image, 0.0 % three" in report
    assert "  Is there a mass? → yes   facts: The trachea is not deviated." in report
    card = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert card["facts"] == "siblings"
    assert card["splits"]["test"]["with_1_facts"] == 2


@pytest.mark.parametrize(
    "cell",
    [
        "The heart is large.; No effusion.",
        "The heart is large.\nNo effusion.",
        "The heart is large. | No effusion.",
        '["The heart is large.", "No effusion."]',
        "['The heart is large.', 'No effusion.']",
        ["The heart is large.", None, "No effusion."],
        "The heart is large. No effusion.",
    ],
)
def test_facts_of_ones_own_are_read_as_options_are(cell: Any) -> None:
    assert read_facts(cell) == ("The heart is large.", "No effusion.")


def test_own_facts_go_along_and_stand_beside_others(tmp_path: Path) -> None:
    """An image whose cell is empty is no other image."""
    findings = ["No effusion.; There is a stone.", "No effusion.", "No effusion.", ""]
    rows = [
        table_row(image, "What is seen?", f"thing {image}", Facts=one)
        for image, one in enumerate(findings)
    ]
    rows.append(table_row(3, "Where is it?", "left", facts="[broken"))
    write_folder(tmp_path / "mine", rows)
    report = prepare_dataset("folder", tmp_path / "mine", tmp_path / "out")
    first, second, *_, last = read(tmp_path / "out" / "train.parquet")
    assert first.facts == ("No effusion.", "There is a stone.")
    assert second.facts == ("No effusion.",) and last.facts is None
    assert first.other_facts == (("No effusion.",), ("No effusion.",))
    assert second.other_facts is not None and {*second.other_facts} == {first.facts, second.facts}
    assert "facts '[broken' look like a JSON or Python list but are none" in report


def test_an_unknown_way_is_one_line(tmp_path: Path) -> None:
    write_folder(tmp_path / "mine", [table_row(0, "Is there a mass?", "yes")])
    with pytest.raises(UserError, match="--facts 'sibling' is unknown; known are: siblings"):
        prepare_dataset("folder", tmp_path / "mine", tmp_path / "out", facts="sibling")


def test_the_command_and_data_show_tell_of_facts(tmp_path: Path) -> None:
    rows = [table_row(0, "Is there a mass?", "yes"), table_row(0, "Are the ribs intact?", "no")]
    write_folder(tmp_path / "mine", [*rows, table_row(1, "Where is the mass?", "left")])
    done = rarl_here(
        "prepare", "folder", tmp_path / "mine", tmp_path / "out", "--facts", "siblings"
    )
    shown = rarl_here("data", "show", tmp_path / "out")
    for told in (done.stdout, shown.stdout):
        assert "train: 66.7 % of the questions have facts about their image" in told
        assert "Are the ribs intact? → no   facts: There is a mass." in told


@pytest.mark.real_data
def test_most_questions_of_vqa_rad_have_facts(vqa_rad: Path, tmp_path: Path) -> None:
    """And hardly one is told the answer by a paraphrase: pairs of one image that were published as
    a question and its other wording, with one answer."""
    prepare_dataset("vqa-rad", vqa_rad, tmp_path / "out", facts="siblings", split="image-disjoint")
    published = json.loads((vqa_rad / "trainset.json").read_text())
    phrases = {f"vqa-rad-{one['qid']}": one for one in published}
    rows = [
        one for split in ("train", "test") for one in read(tmp_path / "out" / f"{split}.parquet")
    ]
    counts = [len(row.facts or ()) for row in rows]
    assert sum(count >= 1 for count in counts) >= 0.93 * len(rows)
    assert sum(count >= 3 for count in counts) >= 0.6 * len(rows)
    stated = [state(row.question, row.answer) for row in rows]
    assert sum(one is not None for one in stated) >= 0.8 * len(rows)
    pairs = told = 0
    by_image: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        by_image.setdefault(row.image_id, []).append(place)
    for places in by_image.values():
        for one in places:
            for other in places:
                near = abs(phrases[rows[one].id]["qid"] - phrases[rows[other].id]["qid"])
                worded = {phrases[rows[place].id]["phrase_type"] for place in (one, other)}
                alike = rows[one].answer.lower() == rows[other].answer.lower()
                if 0 < near <= 3 and alike and worded == {"freeform", "para"}:
                    pairs += 1
                    fact = stated[other]
                    told += fact is not None and fact.sentence in (rows[one].facts or ())
    assert pairs > 900
    assert told <= 0.04 * pairs
    others = [len(row.other_facts or ()) for row in rows if row.facts]
    assert sum(count == OTHERS for count in others) >= 0.99 * len(others)


@pytest.mark.real_data
def test_what_is_said_of_every_image_of_vqa_rad_earns_nothing(
    vqa_rad: Path, tmp_path: Path
) -> None:
    """What is most often denied of an organ, what is most often there, and what is most often
    true of it: texts that the reward paid 0.57 to 0.63 when a fact had a prior instead."""
    prepare_dataset("vqa-rad", vqa_rad, tmp_path / "out", facts="siblings", split="image-disjoint")
    known = [one for one in read(tmp_path / "out" / "train.parquet") if one.facts]
    means = blind_means(
        known, known, find_rewards({"facts": RewardConfig(weight=1.0)})["facts"], "facts"
    )
    assert len(means) == 3
    assert all(0.48 < mean < 0.52 for mean in means.values()), means
