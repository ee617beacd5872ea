"""Parsing of replies, by tables of hand-made cases."""

from __future__ import annotations

import pytest

from rarl.replies.grading import grade_answer, is_yes_no
from rarl.replies.tags import parse_reply
from rarl.replies.words import chosen_option, normalise, token_f1, yes_or_no
from rarl.rewards.form import format_reward
from rarl.rewards.registry import REWARDS


@pytest.mark.parametrize(
    ("text", "answer", "well_formed"),
    [
        ("<think>a</think><answer>b</answer>", "b", True),
        (" <think>a\nb</think>\n <answer> b \n</answer>\n", "b", True),
        ("<think>a</think> so <answer>b</answer>", "b", False),
        ("<think>a</think><answer>b</answer>.", "b", False),
        ("b <think>a</think><answer>b</answer>", "b", False),
        ("<answer>b</answer><think>a</think>", "b", False),
        ("<think></think><answer>b</answer>", "b", False),
        ("<think>a</think><answer> </answer>", "", False),
        ("<answer>b</answer>", "b", False),
        ("<think>a</think>b", None, False),
        ("b", None, False),
        ("", None, False),
        ("<think>a</think><answer>b", None, False),
        ("<think>a</think><answer>b</answer><answer>c</answer>", None, False),
        ("<think>a<answer>b</answer></think><answer>c</answer>", None, False),
        ("<think><think>a</think></think><answer>b</answer>", "b", False),
        ("<think>a</think><answer><answer>b</answer></answer>", None, False),
        ("<Think>a</Think><answer>b</answer>", "b", False),
        ("<think>" + "x " * 10_000 + "</think><answer>b</answer>", "b", True),
        ("<think>ü</think><answer>naïve</answer>", "naïve", True),
    ],
)
def test_parse_reply(text: str, answer: str | None, well_formed: bool) -> None:
    reply = parse_reply(text)
    assert reply.answer == answer
    assert reply.well_formed is well_formed
    assert format_reward([""], [text]) == [float(well_formed)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("yes", "yes"),
        ("No.", "no"),
        ("YES!", "yes"),
        ("normal", None),
        ("abnormal", None),
        ("It is not normal", None),
        ("no, it is normal", "no"),
        ("yes and no", None),
        ("nope", None),
        ("know", None),
        ("“No”", "no"),
        ("", None),
    ],
)
def test_yes_or_no_reads_words(text: str, found: str | None) -> None:
    assert yes_or_no(text) == found


@pytest.mark.parametrize(
    ("reply", "reference", "right"),
    [
        ("Ja, eine Fraktur.", "ja", True),
        ("Nein", "ja", False),
        ("nee", "Nee.", True),
        ("Oui.", "oui", True),
        ("ja und nein", "ja", False),
        ("Sim, no lobo inferior", "sim", True),  # Portuguese "no" is "in the"
        ("sí", "no", False),
        ("No, non si osserva", "no", True),  # Italian "si" is no answer beside other words
        ("si", "sí", True),
        ("Нет", "нет", True),
        ("yes", "ja", True),  # a model may answer in English
        ("no", "ja", False),
        ("the answer is hidden", "ja", False),
        ("ja", "yes", False),
    ],
)
def test_yes_and_no_of_other_languages(reply: str, reference: str, right: bool) -> None:
    assert is_yes_no(reference)
    for kind in ("closed", "open"):
        assert grade_answer(reply, reference, kind, None) == float(right)
    values = REWARDS["letter"](
        [""], [f"<answer>{reply}</answer>"], form=["answer"], answer=[reference], options=[None]
    )
    assert [bool(value) for value in values] == [right]


@pytest.mark.parametrize("text", ["not seen", "normal", "ja nein", "yes, a mass", "non-contrast"])
def test_what_is_no_yes_or_no(text: str) -> None:
    assert not is_yes_no(text)


@pytest.mark.parametrize(
    ("answer", "chosen"),
    [
        ("chest", "chest"),
        ("The Chest.", "chest"),
        ("A", "chest"),
        ("(b)", "brain"),
        ("B.", "brain"),
        ("B) brain", "brain"),
        ("B. chest", None),
        ("chest or brain", None),
        ("abdomen", None),
        ("F", None),
        ("", None),
        ("upper left", "upper left"),
        ("left", None),
    ],
)
def test_chosen_option(answer: str, chosen: str | None) -> None:
    assert chosen_option(answer, ["chest", "brain", "upper left"]) == chosen


@pytest.mark.parametrize(
    ("given", "reference", "score"),
    [
        ("right lower lobe", "right lower lobe", 1.0),
        ("the right lobe", "right lower lobe", 0.8),
        ("lobe lobe lobe", "right lower lobe", 1 / 3),
        ("normal", "abnormal", 0.0),
        ("", "x", 0.0),
        ("ﬁbrosis", "fibrosis", 1.0),
        ("2.5 cm", "2.5 cm.", 1.0),
    ],
)
def test_token_f1(given: str, reference: str, score: float) -> None:
    assert token_f1(given, reference) == pytest.approx(score)


def test_normalise_unifies_unicode_case_punctuation_and_articles() -> None:
    assert normalise(" The  Ｌeft “Lung”, ") == "left lung"
