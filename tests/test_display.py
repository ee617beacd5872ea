"""The lines of a training run where there is no terminal."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from rarl import display as module
from rarl.display import Display, means_of


def row(step: int, **changes: Any) -> dict[str, Any]:
    made = {"step": step, "seconds/step": 2.0, "completion_tokens/total": 100.0}
    return made | {"reward/mean": 0.5, "reward/accuracy": 0.25} | changes


class Watched:
    """A metrics file that is watched, with a clock that is set by hand."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, made: int = 0) -> None:
        self.metrics, self.now, self.text = folder / "metrics.jsonl", 0.0, io.StringIO()
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))
        display = Display()
        display.console = Console(file=self.text, width=200)
        self.reach(made)
        self.refresh = module.plain_lines(display, self.metrics, 100)

    def reach(self, step: int) -> None:
        lines = [json.dumps(row(number)) + "\n" for number in range(1, step + 1)]
        self.metrics.write_text("".join(lines))

    def lines(self, seconds: float, step: int) -> list[str]:
        """What is printed once so much time has passed and this step is the last one."""
        self.now += seconds
        self.reach(step)
        self.text.truncate(self.text.seek(0))
        self.refresh()
        return [" ".join(line.split()[:7]) for line in self.text.getvalue().splitlines()]


def test_a_line_comes_with_every_tenth_of_the_steps_and_every_30_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(tmp_path, monkeypatch)
    assert watched.lines(29, 0) == []
    assert watched.lines(1, 0) == ["step 1/100 under way for 30 s"]
    assert watched.lines(5, 10) == ["step 10/100 mean of 10 steps: reward"]
    assert watched.lines(25, 13) == []
    assert watched.lines(5, 14) == ["step 14/100 mean of 10 steps: reward"], "30 s after the last"
    assert watched.lines(30, 14) == ["step 15/100 under way for 30 s"]
    assert watched.lines(1, 15) == [], "neither a tenth nor 30 s"
    assert watched.lines(1, 31) == ["step 31/100 mean of 10 steps: reward"]


def test_a_continued_run_does_not_print_earlier_steps_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(tmp_path, monkeypatch, made=45)
    assert watched.lines(1, 45) == watched.lines(1, 43) == watched.lines(1, 49) == []
    assert watched.lines(1, 50) == ["step 50/100 mean of 10 steps: reward"]


def test_a_reward_that_scored_nothing_is_shown_as_such() -> None:
    scored = row(1, **{"reward/reasoning": 0.5, "reward/mine:own": 0.5})
    assert "reasoning 0.50" in means_of([scored]) and "nothing" not in means_of([scored])
    nothing = scored | {"step": 2, "reward/reasoning": None, "reward/mine:own": None}
    told = means_of([scored, nothing])
    assert told.startswith("mean of 2 steps: reward 0.50")
    assert "reasoning 0.50  reasoning scored nothing in 1 of 2 steps" in told
    assert "mine:own scored nothing in 1 of 2 steps" in told
    assert "reasoning 0.00" not in means_of([nothing])
    assert "reasoning scored nothing in 1 of 1 steps" in means_of([nothing])


def test_a_judge_that_was_asked_nothing_is_not_away() -> None:
    assert "judge" not in means_of([row(1, **{"judge/unreachable": None})])
    assert "judge away for 50 %" in means_of([row(1, **{"judge/unreachable": 0.5})])


def test_the_last_measurement_on_the_way_is_shown_until_there_is_another() -> None:
    ends = {"eval/far/accuracy/low": 0.58, "eval/far/accuracy/high": 0.7}
    rows = [row(1, **{"eval/far/accuracy": None}), row(2, **{"eval/far/accuracy": 0.64}, **ends)]
    assert "far" not in means_of(rows[:1])
    assert "far 64 % (58–70)" in means_of(rows)
    assert "far 64 % (58–70)" in means_of([*rows, row(3, **{"eval/far/accuracy": None})])
    assert "far 70 %  " in means_of([*rows, row(4, **{"eval/far/accuracy": 0.7})])
