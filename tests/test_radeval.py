"""The reward `radeval`: RARL's side of the seam, with a stand-in for the package."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rarl.config import RewardConfig
from rarl.errors import UserError
from rarl.rewards.radeval import load_metric
from rarl.rewards.registry import find_rewards

STAND_INS = Path(__file__).parent / "stand_ins"
SAID = "<think>a spot on the left</think><answer>left</answer>"


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(STAND_INS)
    load_metric.cache_clear()
    yield
    load_metric.cache_clear()
    for name in [one for one in sys.modules if one.partition(".")[0] == "RadEval"]:
        del sys.modules[name]


def score(
    completions: list[str], rationales: list[str | None], form: str = "think", **options: Any
) -> list[float | None]:
    settings = {"radeval": RewardConfig(weight=1.0, options=options)}
    columns = {"form": [form] * len(completions), "rationale": rationales}
    reward = find_rewards(settings)["radeval"]
    return reward([""] * len(completions), completions, verdict=None, **columns)


def test_the_thinking_is_held_against_the_rationale(stand_in: None) -> None:
    rationales = ["a spot on the right", None, "a spot", "a spot"]
    replies = [SAID, SAID, "no tags", SAID]
    assert score(replies, rationales, metric="shared_words") == [0.8, None, 0.0, 1.0]
    assert score([SAID], ["a spot"], form="answer", metric="shared_words") == [None]


def test_a_number_by_its_key_is_brought_to_0_to_1(stand_in: None) -> None:
    given = {"metric": "shared_words", "key": "count"}
    rationales: list[str | None] = ["a spot", "a spot on the left", "shadow"]
    assert score([SAID] * 3, rationales, **given, highest=4) == [0.5, 1.0, 0.0]
    # A distance: 4 is the worst.
    assert score([SAID] * 3, rationales, **given, lowest=4, highest=0) == [0.5, 0.0, 1.0]
    with pytest.raises(UserError, match="lowest and highest must differ"):
        score([SAID], ["a spot"], **given, lowest=1)


def test_a_metric_that_is_not_there_is_told_in_radevals_words(stand_in: None) -> None:
    with pytest.raises(UserError, match=r"metric 'green' cannot be had: .*shared_words"):
        score([SAID], ["a spot"], metric="green")


def test_without_the_package_one_line_says_how_to_install_it() -> None:
    assert "RadEval" not in sys.modules
    with pytest.raises(UserError, match=r"RadEval is not installed: pip install RadEval$"):
        find_rewards({"radeval": RewardConfig(weight=1.0)})
    find_rewards({"format": RewardConfig(weight=1.0)})
    assert "RadEval" not in sys.modules
