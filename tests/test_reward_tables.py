"""The rewards but that of the reasoning, each by a table of hand-made cases, the known bugs of
others among them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rarl.config import RewardConfig
from rarl.rewards.answer import accuracy_reward, items_reward, letter_reward
from rarl.rewards.form import format_reward, length_reward, repetition_reward
from rarl.rewards.judge import judge_reward
from rarl.rewards.registry import REWARDS, find_rewards
from rarl.rewards.thinking import consistency_reward
from rarl.rewards.total import score_groups
from rarl.schema import Example, Frame, ReplyForm, Verdict
from tests.samples import RATIONALE, pay, reply_to

# `radeval` needs a package that is not there; tests/test_radeval.py has a stand-in.
OURS = [name for name in REWARDS if name != "radeval"]
STRUCTURED = "<think>Findings: a spot. Impression: a lesion.</think><answer>yes</answer>"


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
    known |= {"answer_type": "choice" if options else "closed", "frame": None}
    text = WELL_FORMED.format(own)
    assert pay(consistency_reward, text, form=form, rederived=again, **known) == value


def test_consistency_of_boxes_is_their_overlap() -> None:
    known: dict[str, Any] = {"answer": "", "answer_type": "boxes", "options": None}
    known |= {"frame": Frame("qwen2_vl", 448, 448, 448, 448), "form": "think"}
    text = WELL_FORMED.format("mass(100,100),(300,300)")
    for corners, value in (("(105,100),(300,310)", 1.0), ("(400,400),(600,600)", 0.0)):
        again = f"<answer>mass{corners}</answer>"
        assert pay(consistency_reward, text, rederived=again, **known) == value


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
    example = Example("1", (), "1", "q", "yes", "closed")
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
        (),
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
    example = Example("1", (), "1", "q", "left lung", "open", None, RATIONALE, "CT", "chest")
    reply = reply_to(example, text, rederived=text)
    score_groups([[reply]], find_rewards(config), config)
    assert reply.rewards.keys() == config.keys()
