"""Measurements without engines: what is on disk, what is missing, and when engines would start."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyarrow.dataset import dataset as dataset_of

from rarl.commands.evaluate import evaluate_only, ways_to_measure
from rarl.commands.session import Session, Setup
from rarl.commands.targets import read_target
from rarl.config import Config, JudgeConfig, load_config
from rarl.data.check import CheckedRows
from rarl.data.parquet import write_examples
from rarl.display import Display
from rarl.errors import UserError
from rarl.evaluation import options
from rarl.evaluation.measurements import (
    FINISHED,
    Exam,
    Measurement,
    complete,
    finished_measurements,
    folder_of,
    judge_name,
    look_up,
    own_measurement,
    part_path,
    parts_of,
    read_finished,
    write_part,
)
from rarl.evaluation.medevalkit import medevalkit_scores
from rarl.judge.client import open_judge
from rarl.judge.judge import Judge
from rarl.samples import read_samples
from rarl.schema import Example, Verdict
from tests.records import KEY, answers, exam, graded, read_measurement, reply_to, write_measurement
from tests.runs import REPOSITORY

RULES = Measurement("base", "d", "plain", judge="rules")


def rules() -> Judge:
    return open_judge(JudgeConfig(backend="rules", evaluate=True), None)


@pytest.fixture
def stored(tmp_path: Path, dataset: Path, examples: list[Example]) -> tuple[Path, Exam]:
    """A whole measurement of the examples without a judge, and the exam; nothing starts."""
    evaluation = tmp_path / "evaluation"
    bare = [replace(one, images=()) for one in examples]
    write_measurement(evaluation, KEY, [reply_to(one, one.answer) for one in bare])
    return evaluation, exam(dataset, "no model", range(len(examples)))


@pytest.mark.parametrize("data", ["plain", "vqa-rad/test", "50 %=x", "ct-text", "ä", "2024"])
def test_a_key_is_a_path_and_back(tmp_path: Path, data: str) -> None:
    key = Measurement("trained", data, "reason", "blank", 8, "http://host:1/judge")
    write_measurement(tmp_path, key, [graded(0, True)])
    assert finished_measurements(tmp_path) == [key]
    folder = folder_of(tmp_path, key).relative_to(tmp_path)
    assert len(folder.parts) == 6 and folder.parts[4] == "samples=8"
    (tmp_path / "summary.json").write_text("{}")
    ignored = ["summary", "options", "_"]
    whole = dataset_of(tmp_path, partitioning="hive", ignore_prefixes=ignored)
    assert whole.to_table().to_pylist()[0]["model"] == "trained"
    table = pq.read_table(tmp_path / "model=trained").to_pylist()[0]
    assert (table["prompt"], table["control"]) == ("reason", "blank")
    assert str(table["data"]) == data
    assert (table["example/id"], table["score/rewards/correct"]) == ("0", 1.0)
    assert table["reply/answer"] == "yes"


def test_judges_have_names() -> None:
    own = JudgeConfig(backend="openai", url="http://a/v1", model="m", evaluate=True)
    other = own.model_copy(update={"url": "http://b/v1"})
    assert judge_name(own, own) == "m"
    assert judge_name(other, own) == "m@http://b/v1"
    assert judge_name(JudgeConfig(evaluate=True), own) == "rules"
    assert judge_name(JudgeConfig(), own) == "none"
    config: Config = load_config(REPOSITORY / "configs/demo.yaml")
    assert own_measurement(config, "base", "d").prompt == config.prompts.eval


def test_what_is_there_is_not_asked_again(stored: tuple[Path, Exam]) -> None:
    evaluation, asked = stored
    progress = look_up(KEY, evaluation, asked)
    assert progress.is_finished and not progress.missing
    assert progress.samples == read_measurement(evaluation, KEY)
    [part] = parts_of(progress.folder)
    replies = read_samples(part)
    part.unlink()
    write_part(part, replies[3:5])
    progress = look_up(KEY, evaluation, asked)
    assert progress.missing == [0, 1, 2, *range(5, len(replies))]
    assert not progress.is_finished


def test_another_judge_reads_the_replies_that_are_there(stored: tuple[Path, Exam]) -> None:
    evaluation, asked = stored
    progress = look_up(RULES, evaluation, asked)
    assert not progress.missing and not progress.is_finished
    told: list[int] = []
    with rules() as judge:
        judged = complete(progress, None, judge, told.append)
    assert sum(told) == len(judged) == len(asked.rows)
    assert {one.verdict.status for one in judged if one.verdict} == {"scored"}
    assert answers(judged) == answers(read_measurement(evaluation, KEY))
    assert read_measurement(evaluation, RULES) == judged
    assert all(one.verdict is None for one in read_measurement(evaluation, KEY))
    assert look_up(RULES, evaluation, asked).is_finished


def test_a_judge_that_was_away_is_asked_again(stored: tuple[Path, Exam]) -> None:
    evaluation, asked = stored
    away = [
        replace(one, verdict=Verdict("unreachable")) for one in read_measurement(evaluation, KEY)
    ]
    write_measurement(evaluation, RULES, away)
    progress = look_up(RULES, evaluation, asked)
    assert not progress.is_finished and not progress.missing
    with rules() as judge:
        complete(progress, None, judge, lambda _: None)
    again = read_measurement(evaluation, RULES)
    assert len(again) == len(away)
    assert all(one.verdict and one.verdict.status == "scored" for one in again)


def test_data_that_changed_under_the_same_name_are_an_error(
    stored: tuple[Path, Exam], examples: list[Example], dataset: Path
) -> None:
    evaluation, _ = stored
    write_examples(dataset, [replace(examples[0], question="Changed?"), *examples[1:]])
    asked = exam(dataset, "no model", range(len(examples)))
    with pytest.raises(UserError, match=f"question '{examples[0].id}'.* delete that folder"):
        look_up(KEY, evaluation, asked)


def test_questions_with_one_id_are_told_apart_by_their_order(
    tmp_path: Path, examples: list[Example], dataset: Path
) -> None:
    write_examples(dataset, [examples[0], examples[0], examples[1]])
    bare = replace(examples[0], images=())
    write_measurement(tmp_path, KEY, [reply_to(bare, "first"), reply_to(bare, "second")])
    progress = look_up(KEY, tmp_path, exam(dataset, "no model", range(3)))
    assert progress.missing == [2]
    assert [one.reply.answer for one in progress.samples] == ["first", "second"]


def test_replies_stay_when_the_data_have_further_rows_before_theirs(
    tmp_path: Path, examples: list[Example], dataset: Path
) -> None:
    folder = folder_of(tmp_path, KEY)
    bare = [replace(one, images=()) for one in examples[:6]]
    for first in (0, 3):
        write_part(part_path(folder, first), [reply_to(one, one.id) for one in bare[first:][:3]])
    (folder / FINISHED).write_text("")
    # One row before them all, and one between two of one file.
    new = [replace(examples[0], id=name) for name in ("top", "middle")]
    write_examples(dataset, [new[0], *examples[:2], new[1], *examples[2:6]])
    progress = look_up(KEY, tmp_path, exam(dataset, "no model", range(8)))
    assert progress.missing == [0, 3]
    assert read_finished(tmp_path, KEY) is None, "not all that the data ask is answered"
    names = [int(part.stem) for part in parts_of(folder)]
    assert names == [1, 4] and not set(names) & set(progress.missing)
    for place, one in zip(progress.missing, new, strict=True):
        write_part(part_path(folder, place), [reply_to(replace(one, images=()), one.id)])
    progress = look_up(KEY, tmp_path, exam(dataset, "no model", range(8)))
    complete(progress, None, None, lambda _: None)
    asked = ["top", *(one.id for one in bare[:2]), "middle", *(one.id for one in bare[2:])]
    stored = read_measurement(tmp_path, KEY)
    assert [one.example.id for one in stored] == [one.reply.answer for one in stored] == asked


def test_scores_of_options_stay_when_the_data_have_further_rows_before_theirs(
    tmp_path: Path, examples: list[Example], dataset: Path
) -> None:
    folder = folder_of(tmp_path / options.FOLDER, options.OptionsKey("base", "d"))
    asked = [replace(one, answer="a", options=("a", "b")) for one in examples[:4]]
    kept = [
        options.OptionScores(one.id, one.image_id, one.question, "a", ["a", "b"], [-1.0, -2.0], 0)
        for one in asked
    ]
    options.write_scores(part_path(folder, 0), kept)
    write_examples(dataset, [replace(asked[0], id="top"), *asked])
    key, new = options.OptionsKey("base", "d"), exam(dataset, "no model", range(5))
    assert options.missing_options(key, tmp_path, new) == [0]
    assert not part_path(folder, 0).exists(), "where the missing ones will lie"
    assert options.read_scores(folder, new) == dict(enumerate(kept, start=1))
    assert pq.read_table(part_path(folder, 1))["margin"].to_pylist() == [1.0] * 4


class EnginesStarted(Exception):
    """In the place of engines."""


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch, examples: list[Example]) -> list[bool]:
    """Sessions without Ray, in which all rows are good; whether each had engines."""
    opened: list[bool] = []

    @contextmanager
    def open_session(
        setup: Setup, display: Display, data: dict[str, str], engines: bool, **_: Any
    ) -> Iterator[Session]:
        opened.append(engines)
        if engines:
            raise EnginesStarted
        good = np.arange(len(examples))
        judge = open_judge(setup.config.judge, None) if setup.config.judge.evaluate else None
        yield Session(None, judge, {name: CheckedRows(good, []) for name in data})

    monkeypatch.setattr("rarl.commands.evaluate.open_session", open_session)
    return opened


def evaluate(
    tmp_path: Path, model_path: str, dataset: Path, judge: str = "", **ways: Any
) -> dict[str, Any]:
    run = tmp_path / "run"
    if (run / "config.yaml").exists():
        asked = read_target(str(run), [], judge, None)
    else:
        asked = read_target(model_path, [str(dataset), "device=cpu"], judge, run)
    prompt, control = ways.get("prompt", ""), ways.get("control", "")
    how = ways_to_measure(prompt, control, 1, ways.get("options", False))
    scoring = ways.get("scoring", "")
    return evaluate_only(asked.config, asked.made_with, how, Display(), asked.adapter, scoring)


def test_a_run_without_an_adapter_says_that_only_its_base_is_measured(
    tmp_path: Path,
    model_path: str,
    dataset: Path,
    sessions: list[bool],
    capfd: pytest.CaptureFixture[str],
) -> None:
    for number, told in enumerate((False, True)):
        with pytest.raises(EnginesStarted):
            evaluate(tmp_path, model_path, dataset)
        said = "has no adapter yet (0 of 200 steps are made): only its base model is measured"
        assert (said in capfd.readouterr().out) == told, "a model's name, then its run directory"
        assert len(sessions) == number + 1


def test_engines_start_only_if_replies_are_missing(
    tmp_path: Path, model_path: str, dataset: Path, examples: list[Example], sessions: list[bool]
) -> None:
    with pytest.raises(EnginesStarted):
        evaluate(tmp_path, model_path, dataset)
    assert sessions == [True], "nothing is there, so nothing is looked up without engines first"
    sessions.clear()

    evaluation = tmp_path / "run" / "evaluation"
    key = Measurement("base", "examples", "reason")
    bare = [replace(one, images=()) for one in examples]
    write_measurement(evaluation, key, [reply_to(one, one.answer) for one in bare])
    summary = evaluate(tmp_path, model_path, dataset)
    assert sessions == [False]
    assert summary[""]["base"]["examples"]["accuracy"] == 1.0
    assert json.loads((evaluation / "summary.json").read_text()) == summary[""]

    judged = evaluate(tmp_path, model_path, dataset, judge="rules")["judged by rules"]
    assert sessions == [False, False], "another judge reads the replies that are there"
    assert judged["base"]["examples"]["judge"]["correctness"]["n"] == len(examples)
    assert (evaluation / "summary-judged-by-rules.json").exists()
    assert replace(key, judge="rules") in finished_measurements(evaluation)
    sessions.clear()

    for further in ({"prompt": "none"}, {"options": True}):
        with pytest.raises(EnginesStarted):
            evaluate(tmp_path, model_path, dataset, **further)
    assert sessions == [True, True]
    sessions.clear()

    [part] = parts_of(folder_of(evaluation, replace(key, judge="rules")))
    [own] = parts_of(folder_of(evaluation, key))
    for path in (part, own):
        write_part(path, read_samples(path)[:-1])
    with pytest.raises(EnginesStarted):
        evaluate(tmp_path, model_path, dataset)
    assert sessions == [False, True], "a reply is gone, which is seen without engines"


def test_what_medevalkit_would_count_is_in_the_summary_and_on_the_screen(
    tmp_path: Path,
    model_path: str,
    dataset: Path,
    examples: list[Example],
    sessions: list[bool],
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(EnginesStarted):
        evaluate(tmp_path, model_path, dataset)
    key = Measurement("base", "examples", "reason")
    bare = [replace(one, images=()) for one in examples]
    replies = [reply_to(one, one.answer) for one in bare]
    write_measurement(tmp_path / "run" / "evaluation", key, replies)
    found = evaluate(tmp_path, model_path, dataset, scoring="medevalkit")[""]
    assert found["medevalkit"] == {"base": {"examples": medevalkit_scores(replies)}}
    Display().measured("", found)
    assert "as MedEvalKit counts, in %" in capfd.readouterr().out
    with pytest.raises(UserError, match="--scoring radeval: unknown; known is medevalkit"):
        evaluate(tmp_path, model_path, dataset, scoring="radeval")


def test_controls_and_other_prompts_are_set_against_the_usual_way(
    tmp_path: Path,
    model_path: str,
    dataset: Path,
    examples: list[Example],
    sessions: list[bool],
    capfd: pytest.CaptureFixture[str],
) -> None:
    evaluation = tmp_path / "run" / "evaluation"
    with pytest.raises(EnginesStarted):
        evaluate(tmp_path, model_path, dataset)
    bare = [replace(one, images=()) for one in examples]
    for prompt, control in (("reason", "none"), ("reason", "text"), ("none", "none")):
        key = Measurement("base", "examples", prompt, control)
        usual = (prompt, control) == ("reason", "none")
        replies = [reply_to(one, one.answer if usual else "x") for one in bare]
        write_measurement(evaluation, key, replies)
    found = evaluate(tmp_path, model_path, dataset, control="text")
    change = found["no image"]["with_image_minus_this"]["base"]["examples"]
    assert (change["n"], change["points"]) == (len(examples), 100.0)
    assert change["ci95"][0] < 100.0
    found = evaluate(tmp_path, model_path, dataset, prompt="reason,none")
    other = found[""]["other_prompts"]["examples"]["base (prompt none)"]
    assert (other["accuracy"], other["model_minus_this"]["points"]) == (0.0, 100.0)
    Display().measured(
        "no image", evaluate(tmp_path, model_path, dataset, control="text")["no image"]
    )
    assert "base on examples: with image minus without +100.0 (" in capfd.readouterr().out
    assert json.loads((evaluation / "_data.json").read_text()) == {"examples": str(dataset)}


def test_a_run_of_an_earlier_version_is_measured_again_and_says_so(
    tmp_path: Path,
    model_path: str,
    dataset: Path,
    sessions: list[bool],
    capfd: pytest.CaptureFixture[str],
) -> None:
    evaluation = tmp_path / "run" / "evaluation"
    with pytest.raises(EnginesStarted):
        evaluate(tmp_path, model_path, dataset)
    evaluation.mkdir()
    (evaluation / "base-examples.parquet").write_bytes(b"")
    with pytest.raises(EnginesStarted):
        evaluate(tmp_path, model_path, dataset)
    assert "measured by an earlier version of RARL" in capfd.readouterr().out
