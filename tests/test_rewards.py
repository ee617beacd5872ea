"""Parsing and rewards, by tables of hand-made cases."""

from __future__ import annotations

from typing import Any

import pytest

from rarl.errors import UserError
from rarl.rewards.accuracy import accuracy_reward, is_correct
from rarl.rewards.format import format_reward
from rarl.rewards.parsing import chosen_option, normalise, parse_reply, token_f1, yes_or_no
from rarl.rewards.registry import find_rewards, score_completions
from rarl.schema import Example


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


@pytest.mark.parametrize(
    ("answer", "reference", "kind", "options", "score"),
    [
        ("yes", "Yes", "closed", None, 1.0),
        ("Yes, there is a lesion", "yes", "closed", None, 1.0),
        ("normal", "no", "closed", None, 0.0),
        ("both", "both", "closed", None, 1.0),
        ("both sides", "both", "closed", None, 0.0),
        ("b", "brain", "choice", ["chest", "brain"], 1.0),
        ("brain", "brain", "choice", ["chest", "brain"], 1.0),
        ("brain chest", "brain", "choice", ["chest", "brain"], 0.0),
        ("right lobe", "right lower lobe", "open", None, 0.8),
    ],
)
def test_accuracy_by_type(answer: str, reference: str, kind: str, options: Any, score: float) -> None:
    reply = f"<think>x</think><answer>{answer}</answer>"
    assert accuracy_reward([""], [reply], [reference], [kind], [options]) == [pytest.approx(score)]


def test_an_untagged_answer_earns_nothing() -> None:
    assert accuracy_reward([""], ["yes"], ["yes"], ["closed"], [None]) == [0.0]
    assert not is_correct(None, "yes", None)


def test_normalise_unifies_unicode_case_punctuation_and_articles() -> None:
    assert normalise(" The  Ｌeft “Lung”, ") == "left lung"


def example(answer: str = "yes") -> Example:
    return Example("1", b"", "i", "q", answer, "closed")


def half(prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
    """A user's own reward: reads a column, and cannot score some replies."""
    return [0.5 if answer == "yes" else None for answer in columns["answer"]]


def too_large(prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
    return [2.0 for _ in completions]


def too_few(prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
    return []


def test_weighted_sum_with_a_reward_by_import_path() -> None:
    weights = {"accuracy": 1.0, "tests.test_rewards:half": 0.4}
    scores = score_completions(
        [example("yes"), example("no")],
        ["", ""],
        ["<think>x</think><answer>yes</answer>"] * 2,
        find_rewards(weights),
        weights,
    )
    assert scores[0].rewards == {"accuracy": 1.0, "tests.test_rewards:half": 0.5}
    assert scores[0].total == pytest.approx(1.2)
    assert scores[1].rewards == {"accuracy": 0.0, "tests.test_rewards:half": None}
    assert scores[1].total == 0.0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("acuracy", "unknown reward 'acuracy'; known are format, accuracy"),
        ("no_such_module:f", "cannot be imported"),
        ("tests.test_rewards:missing", "cannot be imported"),
    ],
)
def test_unknown_rewards_are_named(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_rewards({name: 1.0})


@pytest.mark.parametrize(("name", "message"), [("too_large", "returned 2.0"), ("too_few", "returned 0 values for 1")])
def test_rewards_that_break_their_contract_are_named(name: str, message: str) -> None:
    path = f"tests.test_rewards:{name}"
    with pytest.raises(UserError, match=message):
        score_completions([example()], [""], ["x"], find_rewards({path: 1.0}), {path: 1.0})
