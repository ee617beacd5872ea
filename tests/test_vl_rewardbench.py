"""VL-RewardBench: reading what is published, and agreement with people."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rarl.commands.judge_check import judge_check
from rarl.config import JudgeConfig
from rarl.display import Display
from rarl.errors import UserError
from rarl.judge.card import JudgeCard, render_markdown
from rarl.judge.card_measure import measure_judge
from rarl.judge.card_set import QUESTIONS
from rarl.judge.rules import RulesJudge
from rarl.judge.vl_rewardbench import (
    Preference,
    candidate_of,
    measure_preferences,
    read_vl_rewardbench,
)
from tests.faulty_judges import FULL, Altered, value

# every published field, and those that only one of the two publications has
ROW: dict[str, Any] = {
    "id": "pair-1",
    "image_path": "images/reasoning_tasks/pair-1.jpg",
    "query": "<image>\nWhere is the\u2028lesion?",
    "response": ["left", "right"],
    "human_ranking": [1, 0],
    "models": ["one", "other"],
    "judge": "human",
    "rationale": None,
    "query_source": "RLAIF-V",
    "meta": {"note": ""},
    "human_error_analysis": ["hallucination"],
}
OTHER = ROW | {
    "id": "pair-2",
    "human_ranking": [0, 1],
    "ground_truth": "left",
    "query_source": "MathVerse",
}
READ = [
    Preference("pair-1", "Where is the\u2028lesion?", ("left", "right"), 1, "RLAIF-V", None),
    Preference("pair-2", "Where is the\u2028lesion?", ("left", "right"), 0, "MathVerse", "left"),
]


def published(name: str, folder: Path) -> Path:
    path = folder / name
    if name == "data.jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in (ROW, OTHER)))
    elif name == "data.json":
        path.write_text(json.dumps([ROW, OTHER]))
    else:
        names = ("id", "query", "response", "human_ranking", "query_source")
        image = {"image": {"bytes": b"png", "path": "x"}}
        rows = [
            {key: row[key] for key in names} | image | {"ground_truth": row.get("ground_truth", "")}
            for row in (ROW, OTHER)
        ]
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("name", ["data.jsonl", "data.json", "test-00000-of-00001.parquet"])
def test_published_pairs_are_read(name: str, tmp_path: Path) -> None:
    path = published(name, tmp_path)
    assert read_vl_rewardbench(path) == READ
    if name.endswith("parquet"):
        assert read_vl_rewardbench(tmp_path) == READ


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"response": None}, r"row 2: key 'response' is missing \(it has: id, .*\); get data/test"),
        ({"human_ranking": None}, r"row 2: key 'human_ranking' is missing"),
        ({"response": "left"}, r"row 2: key 'response': expected a list of two texts, got 'left'"),
        ({"response": ["a", "b", "c"]}, r"row 2: key 'response': expected a list of two texts"),
        ({"response": ["a", None]}, r"row 2: key 'response': expected a list of two texts"),
        (
            {"human_ranking": [0, 0]},
            r"row 2: key 'human_ranking': expected \[0, 1\] .* got \[0, 0\]",
        ),
        ({"human_ranking": [1, 2]}, r"row 2: key 'human_ranking': expected \[0, 1\]"),
        ({"human_ranking": [True, False]}, r"row 2: key 'human_ranking': expected \[0, 1\]"),
        ({"query": 3}, r"row 2: key 'query': expected text, got 3"),
        ({"ground_truth": ["left"]}, r"row 2: key 'ground_truth': expected text"),
    ],
)
def test_bad_rows_are_named(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(ROW) + "\n" + json.dumps(ROW | changed))
    with pytest.raises(UserError, match=rf"pairs\.jsonl: {message}") as caught:
        read_vl_rewardbench(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("pairs.jsonl", "", "holds no pairs; get"),
        ("pairs.jsonl", '\n\n{"id": 1', "row 3: not valid JSON"),
        (
            "pairs.jsonl",
            "[1]",
            "row 1: expected an object with the keys id, query, response, human_ranking, got int",
        ),
        ("pairs.json", "[{]", "not valid JSON"),
        ("pairs.csv", "id,query", r"expected \.jsonl, \.json"),
        ("pairs.parquet", "PAR1", "not a readable Parquet file"),
        (None, None, "no such file"),
    ],
)
def test_bad_files_are_named(
    name: str | None, content: str | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / (name or "absent.jsonl")
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read_vl_rewardbench(path)
    assert str(path) in str(caught.value)


def test_pairs_without_a_source(tmp_path: Path) -> None:
    """The repository's file names none for the reasoning tasks, but has their folder."""
    path = tmp_path / "pairs.jsonl"
    bare = {key: value for key, value in ROW.items() if key != "query_source"}
    path.write_text("\n".join(map(json.dumps, (bare, bare | {"image_path": None}))))
    assert [one.source for one in read_vl_rewardbench(path)] == ["reasoning_tasks", "unknown"]


def test_parquet_without_a_column(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"], "query": ["b"]}), tmp_path / "pairs.parquet")
    with pytest.raises(UserError, match="column 'response' is missing"):
        read_vl_rewardbench(tmp_path / "pairs.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no Parquet file in this folder"):
        read_vl_rewardbench(tmp_path / "empty")


def test_the_better_reply_does_not_leak() -> None:
    mirrored = [replace(one, better=1 - one.better) for one in READ]
    assert [candidate_of(one, 0) for one in READ] == [candidate_of(one, 0) for one in mirrored]
    assert [candidate_of(one, 1).reference for one in READ] == ["", "left"]


def test_rules_on_pairs() -> None:
    """They know the published answer; without one, both replies are wrong to them."""
    found = measure_preferences(RulesJudge(), READ, "data.jsonl")
    assert value(found.with_reference) == 1.0 and value(found.without_reference) == 0.5
    assert value(found.agreement) == value(found.swapped) == 0.75
    assert value(found.tied) == 0.5 and value(found.same_choice) == 1.0
    assert {name: share.value for name, share in found.by_source.items()} == {
        "MathVerse": 1.0,
        "RLAIF-V": 0.5,
    }


class PrefersTheFirst(Altered):
    """Likes every other reply that it is asked about."""

    def __init__(self) -> None:
        calls = itertools.count()
        super().__init__(
            lambda candidate, verdict, before: FULL if next(calls) % 2 == 0 else verdict
        )


def test_a_judge_that_prefers_the_first_reply() -> None:
    pairs = [replace(READ[0], id=str(n), better=n % 2) for n in range(10)] + [
        replace(READ[0], id="x", better=0)
    ]
    found = measure_preferences(PrefersTheFirst(), pairs, "made up")
    assert value(found.agreement) == pytest.approx(6 / 11)  # better == 0 in six
    assert value(found.swapped) == pytest.approx(5 / 11)
    assert value(found.same_choice) == value(found.tied) == 0.0


# The command


def test_the_check_writes_a_card(tmp_path: Path) -> None:
    pairs = published("data.jsonl", tmp_path)
    card = judge_check(JudgeConfig(), tmp_path / "out", pairs, 2, Display())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["card.json", "card.md"]
    assert JudgeCard.from_json((tmp_path / "out/card.json").read_text()) == card
    text = (tmp_path / "out/card.md").read_text()
    assert (
        text == render_markdown(card)
        and "# Card of the judge rules" in text
        and "VL-RewardBench: 2 pairs" in text
    )
    assert card.preferences is not None and card.preferences.source == "data.jsonl"
    alone = measure_judge(RulesJudge(), QUESTIONS, name="rules")
    assert replace(card, preferences=None, cost=alone.cost) == alone


def test_bad_pairs_are_found_before_the_judge_is_asked(tmp_path: Path) -> None:
    config = JudgeConfig(
        backend="openai", url="http://127.0.0.1:1/v1", model="m", on_unreachable="stop"
    )
    with pytest.raises(UserError, match="no such file"):
        judge_check(config, None, tmp_path / "absent.jsonl", 2, Display())
