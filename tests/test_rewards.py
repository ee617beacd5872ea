"""Rewards together, by tables of hand-made cases: accuracy, users' own, gates and groups."""

from __future__ import annotations

from typing import Any

import pytest

from rarl.config import RewardConfig
from rarl.errors import UserError
from rarl.replies.grading import is_correct
from rarl.rewards import COLUMNS, per_reply
from rarl.rewards.answer import accuracy_reward
from rarl.rewards.registry import check_gates, find_rewards
from rarl.rewards.total import score_groups, weigh
from rarl.samples import Group, Sample
from rarl.schema import Example, Score
from tests.samples import reply_to


@pytest.mark.parametrize(
    ("answer", "reference", "kind", "options", "score"),
    [
        ("yes", "Yes", "closed", None, 1.0),
        ("Yes, there is a lesion", "yes", "closed", None, 1.0),
        ("normal", "no", "closed", None, 0.0),
        ("both", "both", "closed", None, 1.0),
        ("both lungs", "both", "closed", None, 0.0),
        ("b", "brain", "choice", ["chest", "brain"], 1.0),
        ("brain", "brain", "choice", ["chest", "brain"], 1.0),
        ("brain chest", "brain", "choice", ["chest", "brain"], 0.0),
        ("right lobe", "right lower lobe", "open", None, 0.8),
        ("left lower lobe", "right lower lobe", "open", None, 0.0),
        ("right and left lower lobe", "right lower lobe", "open", None, 0.0),
        ("no pneumonia", "pneumonia", "open", None, 0.0),
        ("pneumonia or no pneumonia", "pneumonia", "open", None, 0.0),
        ("abnormal", "normal", "open", None, 0.0),
        ("Yes, a mass", "yes", "open", None, 1.0),
        ("yes/no", "yes", "closed", None, 0.0),
        ("yes and no", "yes", "closed", None, 0.0),
        ("chest, brain", "brain", "choice", ["chest", "brain"], 0.0),
        ("A or B", "brain", "choice", ["chest", "brain"], 0.0),
        ("B)brain", "brain", "choice", ["chest", "brain"], 1.0),
        ("B", "Brain", "choice", ["chest", "brain"], 1.0),
        ("abnormal", "normal", "choice", ["normal", "abnormal"], 0.0),
        ("not normal", "normal", "choice", ["normal", "abnormal"], 0.0),
        ("A", "+", "choice", ["+", "-"], 1.0),
        ("B", "+", "choice", ["+", "-"], 0.0),
        ("<5", ">5", "choice", ["<5", ">5"], 0.0),
        ("br\u200bain", "brain", "choice", ["chest", "brain"], 1.0),
        ("brаin", "brain", "choice", ["chest", "brain"], 0.0),  # a Cyrillic letter
        ("?", "!", "open", None, 0.0),
    ],
)
def test_accuracy_by_type(
    answer: str, reference: str, kind: str, options: Any, score: float
) -> None:
    text = f"<think>x</think><answer>{answer}</answer>"
    asked = {"answer": [reference], "answer_type": [kind], "options": [options]}
    assert accuracy_reward([""], [text], **asked) == [pytest.approx(score)]


def test_an_untagged_answer_earns_nothing() -> None:
    asked = {"answer": ["yes"], "answer_type": ["closed"], "options": [None]}
    assert accuracy_reward([""], ["yes"], **asked) == [0.0]
    assert not is_correct(None, "yes", None)


def reply(text: str, answer: str = "yes") -> Sample:
    return reply_to(Example("1", (), "i", "q", answer, "closed"), text)


def score(settings: dict[str, RewardConfig], *groups: Group) -> list[list[Score]]:
    score_groups(groups, find_rewards(settings), settings)
    return [[one.score for one in group if one.score is not None] for group in groups]


def totals(settings: dict[str, RewardConfig], *groups: Group) -> list[list[float]]:
    return [[one.total for one in group] for group in score(settings, *groups)]


def half(prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
    """A user's own reward: reads a column, and cannot score some replies."""
    return [0.5 if answer == "yes" else None for answer in columns["answer"]]


def spoken(
    prompts: Any, completions: Any, *, scale: float = 1.0, **columns: Any
) -> list[float | None]:
    """The completion is the value; "-" cannot be scored."""
    return [None if text == "-" else scale * float(text) for text in completions]


def gate(prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
    """The reference answer is the value; "-" cannot be scored."""
    return [None if answer == "-" else float(answer) for answer in columns["answer"]]


@per_reply
def shortness(text: str, *, question: str, form: str = "think", most: int = 10) -> float | None:
    """A user's own reward of one reply: reads its row of a column, and has an option."""
    return None if form == "answer" else max(0.0, 1 - len(text + question) / most)


def too_large(prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
    return [2.0 for _ in completions]


def too_few(prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
    return []


def not_a_number(prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
    return [float("nan") for _ in completions]


def a_word(prompts: Any, completions: Any, **columns: Any) -> list[Any]:
    return ["good" for _ in completions]


not_a_function = 3
HERE = "tests.test_rewards:"
SPOKEN, GATE = HERE + "spoken", HERE + "gate"


def test_weighted_sum_with_a_reward_by_import_path() -> None:
    settings = {"accuracy": RewardConfig(weight=1.0), HERE + "half": RewardConfig(weight=0.4)}
    text = "<think>x</think><answer>yes</answer>"
    [[right], [wrong]] = score(settings, [reply(text)], [reply(text, "no")])
    assert right.rewards == {"accuracy": 1.0, HERE + "half": 0.5}
    assert right.total == pytest.approx(1.2)
    assert wrong.rewards == {"accuracy": 0.0, HERE + "half": None}
    assert wrong.total == 0.0


def test_a_missing_value_counts_as_the_mean_of_its_own_group() -> None:
    settings = {SPOKEN: RewardConfig(weight=2.0)}
    groups = (
        [reply("0.2"), reply("-"), reply("0.6")],
        [reply("-"), reply("-")],
        [reply("1"), reply("1")],
    )
    assert totals(settings, *groups) == [pytest.approx([0.4, 0.8, 1.2]), [0.0, 0.0], [2.0, 2.0]]


def test_a_gate_multiplies_by_the_raw_value_and_passes_on_what_is_missing() -> None:
    settings = {SPOKEN: RewardConfig(weight=1.0, gate=GATE), GATE: RewardConfig(weight=0.0)}
    group = [reply("0.8", "0.5"), reply("0.8", "0"), reply("0.8", "-"), reply("-", "1")]
    [scores] = score(settings, group)
    # the mean of 0.4 and 0 for the last
    assert [one.total for one in scores] == pytest.approx([0.4, 0.0, 0.2, 0.2])
    assert [one.rewards[SPOKEN] for one in scores] == [0.8, 0.8, 0.8, None]


def test_normalised_rewards_have_mean_0_and_deviation_1_within_each_group() -> None:
    settings = {SPOKEN: RewardConfig(weight=3.0, normalise=True)}
    first, second, lone = totals(
        settings,
        [reply("0.1"), reply("0.3"), reply("-")],
        [reply("0.5"), reply("0.5"), reply("0.5")],
        [reply("-"), reply("1")],
    )
    assert first == pytest.approx([-3 / 2**0.5, 3 / 2**0.5, 0.0], rel=1e-2)
    assert second == [0.0, 0.0, 0.0]
    assert lone == [0.0, 0.0]


def test_groups_may_differ_in_size_and_be_empty() -> None:
    settings = {SPOKEN: RewardConfig(weight=1.0)}
    assert totals(settings, [], [reply("0.5")], [reply("1"), reply("0")]) == [[], [0.5], [1.0, 0.0]]


def test_a_function_of_one_reply_is_a_reward_of_a_batch() -> None:
    columns = {name: ["??", "?", ""] for name in COLUMNS} | {"form": ["think", "think", "answer"]}
    replies: dict[str, Any] = {"prompts": [""] * 3, "completions": ["abcd", "a", ""]}
    assert shortness(**replies, **columns) == [0.4, 0.8, None]
    name = HERE + "shortness"
    settings = {name: RewardConfig(weight=1.0, options={"most": 5})}
    assert find_rewards(settings)[name](**replies, **columns) == pytest.approx([0, 0.6, None])
    assert totals(settings, [reply("ab")]) == [[pytest.approx(0.4)]]
    with pytest.raises(UserError, match="unknown option 'form'; known are most"):
        find_rewards({name: RewardConfig(weight=1.0, options={"form": "think"})})
    with pytest.raises(ValueError, match="shorter"):
        shortness([""] * 2, ["a", "b"], question=["?"])
    assert shortness([""], ["abcd"], question=["?"]) == [0.5], "a column with a default may lack"


def test_options_reach_the_reward() -> None:
    settings = {SPOKEN: RewardConfig(weight=1.0, options={"scale": 0.5})}
    assert totals(settings, [reply("1")]) == [[0.5]]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("acuracy", "unknown reward 'acuracy'; known are format, accuracy"),
        ("no_such_module:f", "cannot be imported"),
        ("tests.test_rewards:missing", "cannot be imported"),
        ("tests.test_rewards:not_a_function", "is no function\\(prompts, completions"),
        ("rarl.cli:main", "is no function\\(prompts, completions"),
    ],
)
def test_unknown_rewards_are_named(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_rewards({name: RewardConfig(weight=1.0)})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("length", {"maximum": 3}, "unknown option 'maximum'; known are min_words, max_words"),
        ("length", {"max_words": "ten"}, "expected a number, got 'ten'"),
        ("length", {"max_words": True}, "expected a number, got True"),
        ("format", {"partial": 1}, "expected a truth value, got 1"),
        ("accuracy", {"form": "think"}, "unknown option 'form'; known are none"),
        ("judge", {"verdict": 1}, "unknown option 'verdict'; known are correctness"),
        (SPOKEN, {"size": 1}, "unknown option 'size'; known are scale"),
    ],
)
def test_wrong_options_are_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_rewards({name: RewardConfig(weight=1.0, options=options)})


def test_several_gates_multiply() -> None:
    found = weigh(
        3,
        {"a": [1.0, 0.5, 1.0], "b": [0.5, 0.5, None], "c": [0.5, 1.0, 1.0]},
        {
            "a": RewardConfig(weight=1.0, gate=["b", "c"]),
            "b": RewardConfig(weight=0.0),
            "c": RewardConfig(weight=0.0),
        },
    )
    # What is missing counts as the mean of the others.
    assert found.tolist() == [0.25, 0.25, 0.25]
    circle = {"a": RewardConfig(weight=1.0, gate=["b", "c"]), "b": RewardConfig(weight=1.0)}
    circle["c"] = RewardConfig(weight=1.0, gate="a")
    with pytest.raises(UserError, match=r"the gates form a circle: a → c → a"):
        check_gates("a", circle)


@pytest.mark.parametrize(
    ("gates", "message"),
    [
        (
            {"length": "acuracy", "accuracy": None},
            "no reward 'acuracy' is configured; there are length, accuracy",
        ),
        ({"length": "length"}, "form a circle: length → length"),
        (
            {"length": "accuracy", "accuracy": "format", "format": "length"},
            "circle: length → accuracy → format → length",
        ),
        (
            {"length": "accuracy", "accuracy": "format", "format": "accuracy"},
            "circle: length → accuracy → format",
        ),
    ],
)
def test_gates_that_lead_nowhere_are_named(gates: dict[str, str | None], message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_rewards({name: RewardConfig(weight=1.0, gate=gate) for name, gate in gates.items()})


def test_a_chain_of_gates_is_allowed() -> None:
    gates = {"length": "accuracy", "accuracy": "format", "format": None}
    assert list(
        find_rewards({name: RewardConfig(weight=1.0, gate=gate) for name, gate in gates.items()})
    ) == list(gates)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("too_large", "returned 2.0"),
        ("too_few", "returned 0 values for 1"),
        ("not_a_number", "returned nan"),
        ("a_word", "returned good"),
    ],
)
def test_rewards_that_break_their_contract_are_named(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        totals({HERE + name: RewardConfig(weight=1.0)}, [reply("x")])
