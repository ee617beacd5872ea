"""A reward that is silent, or that can be earned without looking, says so: before a run, and while
it goes on."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rarl.commands.checked_rewards import check_rewards
from rarl.config import Config, RewardConfig
from rarl.data.parquet import write_examples
from rarl.errors import UserError
from rarl.grpo.workers import ALONE
from rarl.rewards import per_reply
from rarl.rewards.copies import COPIES, with_thinking
from rarl.rewards.sensitivity import Gains, copied_gains
from rarl.rewards.total import score_groups
from rarl.samples import Sample
from rarl.schema import Example
from rarl.training.alarms import WINDOW, alarms
from rarl.training.log import MetricsLog, read_metrics
from rarl.training.run_dir import open_run_dir
from rarl.training.step_metrics import Tally
from tests.records import example
from tests.samples import reply_to

RATIONALE = "There is a mass in the left upper lobe. The heart is not enlarged."


class Notes:
    """A display that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def config_of(tmp_path: Path, rewards: dict[str, Any], **train: Any) -> Config:
    data = {"train": str(tmp_path / "data.parquet"), "eval": {}}
    settings = {"run_dir": str(tmp_path / "run"), "data": data, "rewards": rewards, "train": train}
    return Config.model_validate(settings | {"model": {"path": "unused"}})


def checked(tmp_path: Path, examples: list[Example], **train: Any) -> list[str]:
    """What is said of the reward `reasoning` on these rows."""
    write_examples(tmp_path / "data.parquet", examples)
    config = config_of(tmp_path, {"accuracy": 1, "reasoning": 0.5}, **train)
    notes: Any = Notes()
    check_rewards(config, str(tmp_path / "data.parquet"), notes)
    return list(notes.lines)


def with_rationales(rows: int, having: int) -> list[Example]:
    """Rows of different images, of which the first have a rationale of their own."""
    names = [f"x{chr(97 + row // 26)}{chr(97 + row % 26)}" for row in range(rows)]
    findings = [f"There is a {one}om in the {one}ib. The {one}oc is {one}ur." for one in names]
    return [
        example(row, images=(b"x",), rationale=findings[row] if row < having else None)
        for row in range(rows)
    ]


def test_a_reward_that_can_score_nothing_is_refused_with_what_would(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        checked(tmp_path, with_rationales(80, 0))
    told = str(caught.value)
    assert told.startswith(f"rewards.reasoning can score 0% of 64 rows, drawn from {tmp_path}/data")
    for part in ("`rationale`", "explains", "--facts siblings", "on_silent_reward=warn"):
        assert part in told
    [warning] = checked(tmp_path, with_rationales(80, 0), on_silent_reward="warn")
    assert warning.startswith("warning: rewards.reasoning can score 0%")


def test_a_silent_reward_beside_one_that_needs_answers_alone_is_told_and_no_more(
    tmp_path: Path,
) -> None:
    write_examples(tmp_path / "data.parquet", with_rationales(80, 0))
    notes: Any = Notes()
    rewards = {"accuracy": 1, "reasoning": 0.5, "explains": 1}
    check_rewards(config_of(tmp_path, rewards), str(tmp_path / "data.parquet"), notes)
    [told] = notes.lines
    assert (
        told.startswith("rewards.reasoning can score 0%")
        and "on them explains acts, which needs none" in told
    )


def test_half_of_the_rows_is_a_warning_and_most_are_nothing(tmp_path: Path) -> None:
    [warning] = checked(tmp_path, with_rationales(80, 20))
    assert "can score" in warning and "explains" in warning
    assert checked(tmp_path, with_rationales(80, 70)) == []


def test_a_reward_that_does_not_count_is_not_asked_for(tmp_path: Path) -> None:
    write_examples(tmp_path / "data.parquet", with_rationales(5, 0))
    notes: Any = Notes()
    rewards = {"accuracy": 1, "reasoning": 0}
    check_rewards(config_of(tmp_path, rewards), str(tmp_path / "data.parquet"), notes)
    assert notes.lines == []


def test_one_text_for_every_image_must_not_pay(tmp_path: Path) -> None:
    """All images of the chest have the same rationale, which can be said without looking; those of
    the head have their own."""
    chest = [example(row, images=(b"x",), rationale=RATIONALE, organ="chest") for row in range(40)]
    head = [replace(one, organ="head") for one in with_rationales(80, 80)[40:]]
    with pytest.raises(UserError, match=r'pays 1\.00 on average for "what is usual"'):
        checked(tmp_path, chest)
    [warning] = checked(tmp_path, [*chest[:36], *head[:24]])
    assert "earned without looking" in warning and "what is usual" in warning
    assert checked(tmp_path, head) == []


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("mirrored", "There is a mass in the right lower lobe. The heart is not enlarged."),
        ("negated", "There is no mass in the left upper lobe. The heart is enlarged."),
        (
            "conditional",
            "If this were another picture, one might say that there is a mass in the left upper "
            "lobe. If this were another picture, one might say that the heart is not enlarged.",
        ),
    ],
)
def test_copies_say_something_else(kind: str, expected: str) -> None:
    assert COPIES[kind](RATIONALE) == expected


def test_a_shuffled_copy_has_the_same_words() -> None:
    copy = COPIES["shuffled"](RATIONALE)
    assert copy != RATIONALE and sorted(copy.split()) == sorted(RATIONALE.split())
    assert copy == COPIES["shuffled"](RATIONALE), "the same in a run that is made again"


def test_a_copy_keeps_the_answer_and_is_none_where_nothing_changes() -> None:
    mirror = COPIES["mirrored"]
    reply = "<think>On the left.</think><answer>left</answer>"
    assert with_thinking(reply, mirror) == "<think>On the right.</think><answer>left</answer>"
    assert with_thinking("<think>A mass.</think><answer>left</answer>", mirror) is None
    assert with_thinking("<answer>left</answer>", mirror) is None


@per_reply
def sees_sides(text: str) -> float | None:
    return float("left" in text)


@per_reply
def counts_words(text: str) -> float | None:
    """Blind to what is said."""
    return min(1.0, len(text.split()) / 40)


def scored(reward: Any, texts: list[str]) -> list[Sample]:
    samples = [reply_to(example(number), text) for number, text in enumerate(texts)]
    score_groups([samples], {"reasoning": reward}, {"reasoning": RewardConfig(weight=1.0)})
    return samples


def test_what_copies_earn_is_told_from_what_the_originals_earn() -> None:
    texts = [f"<think>{RATIONALE}</think><answer>x</answer>"] * 3
    texts += ["<think>It is on the right.</think><answer>x</answer>", "no tags"]
    gains = copied_gains(scored(sees_sides, texts), {"reasoning": sees_sides})
    assert set(gains) == {f"reasoning/{kind}" for kind in COPIES}
    assert gains["reasoning/mirrored"] == Gains(3.0, 0.0), "what earns nothing does not count"
    assert gains["reasoning/negated"] == Gains(3.0, 3.0)
    blind = copied_gains(scored(counts_words, texts), {"reasoning": counts_words})
    assert blind["reasoning/mirrored"].copies == blind["reasoning/mirrored"].originals > 0
    assert copied_gains([], {"reasoning": sees_sides})["reasoning/mirrored"] == Gains(0.0, 0.0)
    assert copied_gains(scored(sees_sides, texts), {"accuracy": sees_sides}) == {}


def test_a_step_logs_one_number_for_each_kind_of_copy() -> None:
    tally = Tally()
    tally.ratio("sensitivity/reasoning/mirrored", 1.0, 4.0)
    tally.ratio("sensitivity/reasoning/negated", 0.0, 0.0)
    assert tally.over(ALONE) == {
        "sensitivity/reasoning/mirrored": 0.25,
        "sensitivity/reasoning/negated": None,
    }


def step_of(step: int, **changes: float | None) -> dict[str, Any]:
    row: dict[str, Any] = {"step": step, "reward/mean": 0.5}
    return row | {key.replace("__", "/"): value for key, value in changes.items()}


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("unscored__reasoning", 1.0, "the reward reasoning had no value for 100% of the replies"),
        ("unscored__reasoning", 0.9, None),
        ("without_spread__facts", 0.97, "the reward facts told the replies apart in 3% of the"),
        ("sensitivity__facts__shuffled", 0.8, "shuffled copies of the thinkings earned 80% of"),
        ("sensitivity__facts__shuffled", 0.3, None),
        ("sensitivity__facts__shuffled", None, None),
    ],
)
def test_what_20_steps_agree_on_is_told(key: str, value: float | None, told: str | None) -> None:
    rows = [step_of(step, **{key: value}) for step in range(1, WINDOW + 1)]
    assert alarms(rows[1:]) == {}
    sentences = list(alarms(rows).values())
    assert len(sentences) == (told is not None)
    assert told is None or told in sentences[0]


def test_what_is_earned_by_all_is_no_alarm() -> None:
    rows = [step_of(step, without_spread__format=1.0, reward__format=1.0) for step in range(30)]
    assert alarms(rows) == {}
    rows = [step_of(step, without_spread__format=1.0, reward__format=0.0) for step in range(30)]
    assert list(alarms(rows)) == ["without_spread/format"]


def moving(by: float, **more: float) -> list[dict[str, Any]]:
    """Twenty first steps, in each of which the adapter moves by so much."""
    return [
        {"step": step, "adapter/movement": 0.01 + by * step, "learning_rate": 1e-9} | more
        for step in range(1, WINDOW + 1)
    ]


def test_an_adapter_that_does_not_move_is_told_with_its_likely_reason() -> None:
    assert alarms(moving(1e-4)) == {}
    (still,) = alarms(moving(1e-9)).values()
    assert "less than 0.001% in 20 steps: raise train.learning_rate (now 1e-09)" in still
    (still,) = alarms(moving(0.0, **{"groups_without_spread": 0.97})).values()
    assert "hardly a group has replies that earn differently" in still
    (still,) = alarms(moving(0.0, **{"reward/format": 0.01})).values()
    assert "1% of the replies are well formed" in still
    later = [row | {"step": row["step"] + 50} for row in moving(1e-9)]
    assert alarms(later) == {}, "what has learnt may rest"


def test_replies_that_shrink_are_told() -> None:
    rows = [
        {"step": step, "completion_tokens": 100.0 / (1 + step), "completion_truncated": 0.0}
        for step in range(WINDOW)
    ]
    (told,) = alarms(rows).values()
    assert re.match("replies have shrunk from 46 to 6 tokens in steps 0 to 19", told)
    assert alarms([row | {"completion_tokens": 50.0} for row in rows]) == {}
    for row in rows:
        del row["completion_truncated"]
    assert alarms(rows) == {}, "the targets of supervised fine-tuning have the length they have"


def test_one_data_set_that_falls_while_another_rises_is_told() -> None:
    def measured(step: int, own: float | None, other: float | None) -> dict[str, Any]:
        return {"step": step, "eval/mine/accuracy": own, "eval/other/accuracy": other}

    blank = [measured(step, None, None) for step in range(1, WINDOW + 1)]
    rows = [*blank, measured(21, 0.5, 0.6), measured(22, 0.62, 0.64), measured(23, 0.7, 0.58)]
    assert alarms(rows) == {}, "once may be chance"
    (told,) = alarms([*rows, measured(24, 0.75, 0.55), measured(25, None, None)]).values()
    assert told.startswith(
        "accuracy on other has fallen from 64% after step 22 to 55%, while that on mine has risen "
        "from 50% to 75%: what is learnt does not hold elsewhere"
    )
    assert alarms([*rows, measured(24, 0.5, 0.55)]) == {}, "nothing is gained for it"
    assert alarms([*rows, measured(24, 0.75, 0.63)]) == {}, "it has come back"


@pytest.mark.parametrize("stops", [False, True])
def test_the_log_warns_once_or_ends_the_run(
    tmp_path: Path, stops: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    write_examples(tmp_path / "data.parquet", with_rationales(2, 2))
    how = {"on_silent_reward": "stop"} if stops else {}
    config = config_of(tmp_path, {"accuracy": 1}, trackers=[], **how)
    run_dir = open_run_dir(config)
    rows = [step_of(step, unscored__reasoning=1.0) for step in range(1, WINDOW + 5)]
    with MetricsLog(run_dir, config, 1) as log:
        for row in rows[: WINDOW - 1]:
            log.write(row)
        if stops:
            with pytest.raises(UserError, match=r"reasoning had no value.*on_silent_reward=stop"):
                log.write(rows[WINDOW - 1])
        else:
            for row in rows[WINDOW - 1 :]:
                log.write(row)
    assert capsys.readouterr().out.count("warning: the reward reasoning had no value") == 1
    assert len(read_metrics(run_dir.metrics)) == (WINDOW if stops else len(rows))
