"""Each reward by a table of hand-made cases, the known bugs of others among them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rarl.config import RewardConfig
from rarl.rewards import COLUMNS, Reward
from rarl.rewards.answer import accuracy_reward, items_reward, letter_reward
from rarl.rewards.form import format_reward, length_reward, repetition_reward
from rarl.rewards.judge import judge_reward
from rarl.rewards.registry import REWARDS, find_rewards
from rarl.rewards.thinking import consistency_reward, reasoning_reward
from rarl.rewards.total import score_groups
from rarl.schema import Example, ReplyForm, Verdict
from tests.samples import reply_to

# `radeval` needs a package that is not there; tests/test_radeval.py has a stand-in.
OURS = [name for name in REWARDS if name != "radeval"]
RATIONALE = "Two lungs between ribs. A round spot in the left half."
STRUCTURED = "<think>Findings: a spot. Impression: a lesion.</think><answer>yes</answer>"


def pay(reward: Reward, text: str, **arguments: Any) -> float | None:
    """What a reward pays for one reply; columns and options by name."""
    columns = {name: [one] if name in COLUMNS else one for name, one in arguments.items()}
    [value] = reward([""], [text], **columns)
    return value


def tagged(answer: str | None) -> str:
    return "none" if answer is None else f"<answer>{answer}</answer>"


@pytest.mark.parametrize(
    ("form", "text", "value"),
    [
        ("think", "<think>a b</think><answer>c</answer>", 1.0),
        ("structured", STRUCTURED, 1.0),
        ("structured", STRUCTURED.replace("Impression", "Also"), 0.0),
        ("structured", "<think>Findings: Impression: x</think><answer>yes</answer>", 0.0),
        ("structured", "<think>Impression: x Findings: y</think><answer>yes</answer>", 0.0),
        ("think", STRUCTURED, 1.0),
        ("answer", "<answer>left</answer>", 1.0),
        ("answer", "\n<answer> left </answer> ", 1.0),
        ("answer", "<think>a</think><answer>left</answer>", 0.0),
        ("answer", "<answer>left</answer> indeed", 0.0),
        ("answer", "<answer></answer>", 0.0),
        ("answer", "<answer><answer>left</answer></answer>", 0.0),
        ("think", "<think>\u200b</think><answer>c</answer>", 0.0),
        ("think", "<think>...</think><answer>c</answer>", 0.0),
        ("think", "<think>ü ß 肺</think><answer>ç</answer>", 1.0),
        ("think", "\u200b<think>a</think><answer>c</answer>", 0.0),
        ("think", "", 0.0),
    ],
)
def test_format_by_form(form: ReplyForm, text: str, value: float) -> None:
    assert pay(format_reward, text, form=form) == value


@pytest.mark.parametrize(
    ("form", "text", "value"),
    [
        ("think", "<think>b c</think><answer>c</answer>", 1.0),
        ("think", "<think>b c</think> so <answer>c</answer>", 0.5 * 7 / 8),
        ("think", "<think></think><answer>c</answer>", 0.5 * 7 / 8),
        ("think", "<answer>c</answer><think>b</think>", 0.5 * 4 / 8),
        ("think", "<answer>c</answer>", 0.5 * 2 / 8),
        ("think", "<think>b<answer>c", 0.5 * 2 / 8),
        ("think", "<think><think><think>", 0.0),
        ("think", "", 0.0),
        ("answer", "left <answer>left</answer>", 0.5 * 4 / 5),
        ("answer", "<answer> </answer>", 0.5 * 4 / 5),
        ("structured", "<think>b c</think><answer>c</answer>", 0.5 * 8 / 9),
        ("structured", STRUCTURED, 1.0),
    ],
)
def test_partial_format_is_well_below_the_whole(form: ReplyForm, text: str, value: float) -> None:
    assert pay(format_reward, text, form=form, partial=True) == pytest.approx(value)


@pytest.mark.parametrize(
    ("form", "text", "value"),
    [
        ("answer", "<answer>yes</answer>", 1.0),
        ("answer", "yes", 0.0),
        ("think", "<answer>yes</answer>", 1.0),  # the format is not accuracy's business
        ("think", "<think>yes</think>", 0.0),
        ("structured", STRUCTURED, 1.0),
        ("think", "<answer>yes</answer><answer>yes</answer>", 0.0),
        ("think", "<think>x</think><answer>yes <answer>no</answer></answer>", 0.0),
    ],
)
def test_accuracy_reads_one_tagged_answer(form: ReplyForm, text: str, value: float) -> None:
    asked: dict[str, Any] = {"answer": "yes", "answer_type": "closed", "options": None}
    assert pay(accuracy_reward, text, form=form, **asked) == value


ORGANS = ("chest", "brain", "upper left", "left")


@pytest.mark.parametrize(
    ("given", "reference", "options", "value"),
    [
        ("B", "brain", ORGANS, 1.0),
        ("b", "brain", ORGANS, 1.0),
        ("(B)", "brain", ORGANS, 1.0),
        ("B.", "brain", ORGANS, 1.0),
        ("brain", "brain", ORGANS, 1.0),
        ("The brain", "brain", ORGANS, 1.0),
        ("B. brain", "brain", ORGANS, 0.5),
        ("The answer is B", "brain", ORGANS, 0.5),
        ("It is the brain.", "brain", ORGANS, 0.5),
        ("B. chest", "brain", ORGANS, 0.0),
        ("A or B", "brain", ORGANS, 0.0),
        ("A, B", "brain", ORGANS, 0.0),
        ("A B C D", "brain", ORGANS, 0.0),
        ("brain, not chest", "brain", ORGANS, 0.0),
        ("A large thing in the brain", "brain", ORGANS, 0.5),  # an article
        ("upper left", "upper left", ORGANS, 1.0),
        ("in the upper left", "left", ORGANS, 0.0),
        ("in the upper left", "upper left", ORGANS, 0.5),
        ("brainstem", "brain", ORGANS, 0.0),
        ("Z", "brain", ORGANS, 0.0),
        ("B and Z", "brain", ORGANS, 0.0),
        ("Ｂ", "brain", ORGANS, 1.0),
        ("", "brain", ORGANS, 0.0),
        (None, "brain", ORGANS, 0.0),
        ("yes", "yes", None, 1.0),
        ("Yes.", "yes", None, 1.0),
        ("Yes, it is", "yes", None, 0.5),
        ("yes and no", "yes", None, 0.0),
        ("normal", "no", None, 0.0),
        ("pneumonia", "pneumonia", None, None),
    ],
)
def test_letter(given: str | None, reference: str, options: Any, value: float | None) -> None:
    asked: dict[str, Any] = {"form": "answer", "answer": reference, "options": options}
    assert pay(letter_reward, tagged(given), **asked, extra_text=0.5) == value
    strict = pay(letter_reward, tagged(given), **asked, extra_text=0.0)
    assert strict == (0.0 if value == 0.5 else value)


@pytest.mark.parametrize(
    ("given", "reference", "alpha", "value"),
    [
        ("lung, heart", "heart, lung", 0.5, 1.0),
        ("Lung and heart", "heart; lung", 0.5, 1.0),
        ("- lung\n- heart", "heart, lung", 0.5, 1.0),
        ("1. lung\n2. heart", "heart, lung", 0.5, 1.0),
        ("lung", "heart, lung", 0.5, 0.75),
        ("lung", "heart, lung", 1.0, 1.0),
        ("lung", "heart, lung", 0.0, 0.5),
        ("lung, lung, lung", "heart, lung", 0.5, 0.5 / 3 + 0.25),
        ("lung, heart, liver, knee", "heart, lung", 0.5, 0.75),
        ("liver", "heart, lung", 0.5, 0.0),
        ("abnormal", "normal", 0.5, 0.0),
        ("gland", "gl", 0.5, 0.0),  # "and" only as a word
        ("", "heart", 0.5, 0.0),
        (None, "heart", 0.5, 0.0),
        ("heart", "", 0.5, None),
        ("heart", " , ; ", 0.5, None),
        ("left-sided effusion", "left-sided effusion", 0.5, 1.0),
        ("item, " * 10_000, "item", 0.5, 0.5 / 10_000 + 0.5),
    ],
)
def test_items(given: str | None, reference: str, alpha: float, value: float | None) -> None:
    found = pay(items_reward, tagged(given), form="answer", answer=reference, alpha=alpha)
    assert found == (None if value is None else pytest.approx(value))


WELL_FORMED = "<think>a spot</think><answer>{}</answer>"


@pytest.mark.parametrize(
    ("form", "own", "again", "options", "value"),
    [
        ("think", "left", "<answer>left</answer>", ("left", "right"), 1.0),
        ("think", "A", "<answer>Left.</answer>", ("left", "right"), 1.0),
        # the truth is not asked
        ("think", "right", "<answer>right</answer>", ("left", "right"), 1.0),
        ("think", "left", "<answer>right</answer>", ("left", "right"), 0.0),
        ("think", "left", "<answer>left or right</answer>", ("left", "right"), 0.0),
        ("think", "left", "left", ("left", "right"), 0.0),
        ("think", "left", "", ("left", "right"), 0.0),
        ("think", "neither", "<answer>Neither</answer>", ("left", "right"), 1.0),
        ("think", "Yes, a lesion", "<answer>yes</answer>", None, 1.0),
        ("think", "Yes", "<answer>no</answer>", None, 0.0),
        ("think", "normal", "<answer>abnormal</answer>", None, 0.0),
        ("think", "left", None, ("left", "right"), None),
        ("answer", "left", "<answer>left</answer>", ("left", "right"), None),
        ("think", "", "<answer></answer>", None, 0.0),
        (
            "structured",
            "left",
            "<answer>left</answer>",
            ("left", "right"),
            0.0,
        ),  # no findings and impression: malformed
    ],
)
def test_consistency(
    form: ReplyForm, own: str, again: str | None, options: Any, value: float | None
) -> None:
    known: dict[str, Any] = {"answer": "left" if options else "yes", "options": options}
    text = WELL_FORMED.format(own)
    assert pay(consistency_reward, text, form=form, rederived=again, **known) == value


@pytest.mark.parametrize(
    ("verdict", "weight", "value"),
    [
        (Verdict("scored", 3, 1, 1, 1), 0.5, 1.0),
        (Verdict("scored", 0, 0, 0, 0), 0.5, 0.0),
        (Verdict("scored", 3, 0, 0, 0), 0.5, 0.5),
        (Verdict("scored", 3, 0, 0, 0), 1.0, 1.0),
        (Verdict("scored", 2, 1, 0.5, 0), 0.5, 1 / 3 + 0.25),
        (Verdict("scored", 2), 0.5, 2 / 3),
        (Verdict("scored", None, 1, None, 0.5), 0.5, 0.75),
        (Verdict("unparsable", 0, 0, 0, 0), 0.5, 0.0),
        (Verdict("unparsable"), 0.5, 0.0),
        (Verdict("unreachable"), 0.5, None),
        (None, 0.5, None),
    ],
)
def test_judge(verdict: Verdict | None, weight: float, value: float | None) -> None:
    found = pay(judge_reward, "", verdict=verdict, correctness=weight)
    assert found == (None if value is None else pytest.approx(value))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", 1.0),
        ("one two", 1.0),
        ("one two three four", 1.0),
        ("one two three one two three", 0.75),
        ("no " * 10_000, 1 / 9_998),
        ("Left, right; up. left right UP", 0.75),
    ],
)
def test_repetition(text: str, value: float) -> None:
    assert repetition_reward([""], [text]) == [pytest.approx(value)]


@pytest.mark.parametrize(
    ("words", "value"),
    [(0, 0.0), (5, 0.5), (10, 1.0), (20, 1.0), (30, 0.5), (40, 0.0), (10_000, 0.0)],
)
def test_length(words: int, value: float) -> None:
    assert length_reward([""], ["spot " * words], min_words=10, max_words=20) == [
        pytest.approx(value)
    ]


def test_leaving_out_spaces_does_not_shorten() -> None:
    assert length_reward([""], ["a" * 60_000], min_words=1, max_words=256) == [0.0]


def test_a_wrong_answer_is_not_paid_for_its_length_where_accuracy_gates() -> None:
    """The known bug of length schedules: the length of a wrong answer earned as much as that of a
    right one."""
    config = {
        "accuracy": RewardConfig(weight=1.0),
        "length": RewardConfig(
            weight=0.5, gate="accuracy", options={"min_words": 3, "max_words": 30}
        ),
    }
    example = Example("1", b"", "1", "q", "yes", "closed")
    texts = [
        "<think>one two three</think><answer>no</answer>",
        "<think>one two three</think><answer>yes</answer>",
        "<think>" + "word " * 45 + "</think><answer>yes</answer>",
    ]
    group = [reply_to(example, text) for text in texts]
    score_groups([group], find_rewards(config), config)
    [wrong, right, long] = [one.score for one in group if one.score is not None]
    assert (wrong.total, right.total) == (0.0, 1.5)
    assert 1.0 < long.total < 1.5
    assert wrong.rewards["length"] == right.rewards["length"] == 1.0


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


PIECES = st.lists(
    st.sampled_from(
        ["<think>", "</think>", "<answer>", "</answer>", "left", " right", "no ", "Findings: ",
         "Impression: ", ". ", RATIONALE, "yes", "A", " or ", "\u200b", "score this 3", "ü", "?",
         "\n"]
    ),
    max_size=14,
).map("".join)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    PIECES | st.text(max_size=80), st.sampled_from(["think", "structured", "answer"]), st.booleans()
)
def test_every_reward_of_any_reply_is_in_bounds(text: str, form: ReplyForm, closed: bool) -> None:
    options = None if closed else ("left", "right")
    answer = "yes" if closed else "left"
    example = Example(
        "1",
        b"",
        "1",
        "Is it?",
        answer,
        "closed" if closed else "choice",
        options,
        RATIONALE,
        "CT",
        "chest",
    )
    config = {name: RewardConfig(weight=1.0) for name in OURS}
    reply = reply_to(example, text, form, text, Verdict("scored", 2, 1, 1, 1))
    # It refuses a value out of bounds.
    score_groups([[reply]], find_rewards(config), config)
    assert set(reply.rewards) == set(OURS)
    if reply.rewards["format"] == 0:
        assert not reply.rewards["reasoning"]
        assert not reply.rewards["consistency"]


@pytest.mark.parametrize(
    "filler",
    [
        "word ",
        "<think>",
        "<answer>",
        "</answer>",
        "score this ",
        "\n",
        "no x, ",
        "A or ",
        "a",
        "1/",
        "ignore ",
    ],
)
def test_ten_thousand_tokens_are_scored(filler: str) -> None:
    """At once: anything worse than linear would take minutes here."""
    text = f"<think>{filler * 10_000}</think><answer>{filler * 1_000}</answer>"
    config = {name: RewardConfig(weight=1.0) for name in OURS}
    example = Example("1", b"", "1", "q", "left lung", "open", None, RATIONALE, "CT", "chest")
    reply = reply_to(example, text, rederived=text)
    score_groups([[reply]], find_rewards(config), config)
    assert reply.rewards.keys() == config.keys()
