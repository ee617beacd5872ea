"""Measurements: what is on disk and what is missing, and through real engines: killed and
continued, with controls, samples and the likelihood of options."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pyarrow.dataset import dataset as dataset_of
from transformers import AutoModelForImageTextToText

from rarl.collect import Collector
from rarl.commands.evaluate import evaluate_only, read_target, ways_to_measure
from rarl.commands.session import Session, Setup
from rarl.config import Config, JudgeConfig, PromptsConfig, load_config
from rarl.data.check import CheckedRows
from rarl.data.images import blank_image, rows_with_other_images
from rarl.data.parquet import write_examples
from rarl.data.stream import PreparerSettings, ordered_stream, unpack
from rarl.display import Display
from rarl.errors import UserError
from rarl.evaluation.measurements import (
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
    write_part,
)
from rarl.evaluation.metrics import GRADE_SETTINGS, GRADES
from rarl.evaluation.options import OptionsKey, missing_options, score_options
from rarl.judge.client import open_judge
from rarl.judge.judge import Judge
from rarl.prompts import evaluation_prompts, plain_prompt
from rarl.replies.tags import target_text
from rarl.rollout.pool import SamplerPool
from rarl.rollout.sampler import SamplingSettings
from rarl.samples import Sample, read_samples, to_table
from rarl.schema import Example, Verdict
from tests.records import graded, read_measurement, reply_to, rights, write_measurement
from tests.runs import RARL, REPOSITORY, environment, rarl_here

QUESTIONS = 256
KEY = Measurement("base", "d", "plain")
RULES = Measurement("base", "d", "plain", judge="rules")


def exam(dataset: Path, model_path: str, rows: Any, samples: int = 1, **changes: Any) -> Exam:
    temperature = 1.0 if samples > 1 else 0.0
    preparer = PreparerSettings(str(dataset), model_path, plain_prompt())
    return Exam(preparer, np.asarray(rows), SamplingSettings(samples, temperature, 48), **changes)


def collector(pool: SamplerPool, model_path: str, judge: Judge | None = None) -> Collector:
    return Collector(pool, GRADES, GRADE_SETTINGS, judge, model_path, 256)


def answers(samples: list[Sample]) -> list[str]:
    return [one.rollout.text for one in samples]


def rules() -> Judge:
    return open_judge(JudgeConfig(backend="rules", evaluate=True), None)


@pytest.fixture
def stored(tmp_path: Path, dataset: Path, examples: list[Example]) -> tuple[Path, Exam]:
    """A whole measurement of the examples without a judge, and the exam; nothing starts."""
    evaluation = tmp_path / "evaluation"
    bare = [replace(one, image=b"") for one in examples]
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
    bare = replace(examples[0], image=b"")
    write_measurement(tmp_path, KEY, [reply_to(bare, "first"), reply_to(bare, "second")])
    progress = look_up(KEY, tmp_path, exam(dataset, "no model", range(3)))
    assert progress.missing == [2]
    assert [one.reply.answer for one in progress.samples] == ["first", "second"]


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
    return evaluate_only(asked.config, asked.made_with, how, Display(), asked.adapter)


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
    bare = [replace(one, image=b"") for one in examples]
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
    bare = [replace(one, image=b"") for one in examples]
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


@pytest.mark.slow
@pytest.mark.whole
def test_a_killed_evaluation_continues_without_losing_or_repeating_a_prediction(
    pool: SamplerPool, tmp_path: Path, model_path: str
) -> None:
    data = tmp_path / "questions.parquet"
    command = [
        model_path,
        "rarl.tiny.dataset:write_seen_test",
        "device=cpu",
        "rollout.max_completion_tokens=48",
    ]
    command += [
        "rollout.max_model_length=256",
        f"evaluation.max_examples={QUESTIONS}",
        "--out",
        str(tmp_path / "run"),
    ]
    evaluation = tmp_path / "run" / "evaluation"
    key = Measurement("base", "seen-test", "reason")
    folder = folder_of(evaluation, key)
    process = subprocess.Popen(
        [RARL, "eval", *command],
        cwd=REPOSITORY,
        env=environment(),
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.time() + 300
    while not parts_of(folder) and time.time() < deadline and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = [one for part in parts_of(folder) for one in read_samples(part)]
    assert 0 < len(kept) < QUESTIONS, "killed between two batches"
    assert finished_measurements(evaluation) == []

    done = rarl_here("eval", *command, pool=pool)
    assert done.returncode == 0, done.stderr
    samples = read_measurement(evaluation, key)
    assert samples[: len(kept)] == kept, (
        "what was on disk is not asked again: even its seconds are the same"
    )
    asked = pq.read_table(
        tmp_path / "run" / "data" / "data.eval.seen-test.parquet", columns=["id"]
    )["id"].to_pylist()
    assert [one.example.id for one in samples] == asked[:QUESTIONS]
    assert not data.exists()
    summary = json.loads((evaluation / "summary.json").read_text())
    assert summary["base"]["seen-test"]["n"] == QUESTIONS
    right = np.mean(rights(samples))
    assert summary["base"]["seen-test"]["accuracy"] == pytest.approx(right)

    # All is there now, also for another judge: no engine starts.
    shutil.rmtree(tmp_path / "run" / "logs")
    for again in (command, [str(tmp_path / "run"), "--judge", "rules"]):
        done = rarl_here("eval", *again)
        assert done.returncode == 0, done.stderr
        assert "starting vLLM" not in done.stdout
        assert "seen-test" in done.stdout
    assert not list((tmp_path / "run" / "logs").glob("sampler-*"))
    judged = read_measurement(evaluation, replace(key, judge="rules"))
    assert answers(judged) == answers(samples)
    summary = json.loads((evaluation / "summary-judged-by-rules.json").read_text())
    assert summary["base"]["seen-test"]["judge"]["unreachable"] == 0


@pytest.mark.slow
def test_samples_are_drawn_in_order_and_a_measurement_in_parts_is_the_same(
    pool: SamplerPool, dataset: Path, model_path: str, tmp_path: Path
) -> None:
    asked = exam(dataset, model_path, range(24), samples=3, seed=7)
    key = replace(KEY, samples=3)
    asking = collector(pool, model_path)
    whole = complete(look_up(key, tmp_path, asked), asking, None, lambda _: None)
    assert [one.number for one in whole] == [0, 1, 2] * 24
    assert len({one.example.id for one in whole}) == 24
    first = [one.rollout.text for one in whole if one.example.id == whole[0].example.id]
    assert len(set(first)) > 1, "samples differ"
    assert to_table(read_measurement(tmp_path, key)).equals(to_table(whole))
    # places 4 to 9 are there
    begun = tmp_path / "begun"
    write_part(part_path(folder_of(begun, key), 4), whole[12:30])
    told: list[int] = []
    progress = look_up(key, begun, asked)
    assert progress.missing == [*range(4), *range(10, 24)]
    again = complete(progress, asking, None, told.append)
    assert answers(again) == answers(whole), "seeds depend on a question's place alone"
    assert told == [6, 4, 14]
    assert to_table(read_measurement(begun, key)).equals(to_table(again))


@pytest.mark.slow
def test_controls_show_other_pictures_and_the_text_control_shows_none(
    pool: SamplerPool, dataset: Path, model_path: str, examples: list[Example], tmp_path: Path
) -> None:
    rows = np.arange(len(examples))
    own = PreparerSettings(str(dataset), model_path, plain_prompt())
    others = rows_with_other_images([e.image_id for e in examples])

    def pixels(settings: PreparerSettings, image_rows: Any = None) -> list[np.ndarray]:
        batches = ordered_stream(settings, rows, image_rows).iter_batches(
            batch_size=None, batch_format="pyarrow"
        )
        return [one.pixels for batch in batches for one in unpack(batch)]

    def decoded(example: Example) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(example.image)).convert("RGB"))

    shuffled = pixels(own, others)
    assert all(
        np.array_equal(a, decoded(examples[i])) for a, i in zip(shuffled, others, strict=True)
    )
    blank = pixels(PreparerSettings(str(dataset), model_path, plain_prompt(), blank=True))
    assert {int(a.min()) for a in blank} == {int(a.max()) for a in blank} == {128}
    assert (
        blank[0].shape == np.asarray(Image.open(io.BytesIO(blank_image(examples[0].image)))).shape
    )

    blind = exam(dataset, model_path, rows, show_image=False)
    grey = replace(blind, preparer=replace(own, blank=True))
    twice = [
        answers(
            complete(
                look_up(KEY, tmp_path / name, asked),
                collector(pool, model_path),
                None,
                lambda _: None,
            )
        )
        for name, asked in (("own", blind), ("grey", grey))
    ]
    assert twice[0] == twice[1] and len(twice[0]) == len(examples), (
        "without an image, its content cannot matter"
    )


@pytest.mark.slow
def test_option_likelihoods_equal_transformers(
    pool: SamplerPool,
    dataset: Path,
    model_path: str,
    processor: Any,
    examples: list[Example],
    tmp_path: Path,
) -> None:
    plan = evaluation_prompts(PromptsConfig(eval="none"))
    asked = exam(dataset, model_path, range(8))
    asked = replace(asked, preparer=replace(asked.preparer, render=plan))
    key = OptionsKey("base", "d")
    told: list[int] = []
    assert len(missing_options(key, tmp_path, asked)) == 8
    scores = score_options(key, tmp_path, asked, pool, lambda _: None)
    assert missing_options(key, tmp_path, asked) == []
    again = score_options(key, tmp_path, asked, None, told.append)
    assert (again, told) == (scores, [8]), "what is on disk is not scored again"
    folder = tmp_path / "options/model=base/data=d"
    [row, *_] = pq.ParquetFile(folder / "00000000.parquet").read().to_pylist()
    assert row["margin"] == scores[0].margin and row["probability"] == scores[0].probability
    assert [one.id for one in scores] == [e.id for e in examples[:8]]
    model = AutoModelForImageTextToText.from_pretrained(model_path, dtype=torch.float32).eval()
    for one, example in zip(scores, examples, strict=False):
        assert one.options == (list(example.options) if example.options else ["yes", "no"])
        assert one.options[one.correct] == example.answer
        image = Image.open(io.BytesIO(example.image)).convert("RGB")
        for option, logprob in zip(one.options, one.logprobs, strict=True):
            reply = target_text("answer", "", option) + "<|im_end|>"
            text = plan(processor, example).text + reply
            batch = processor(text=[text], images=[image], return_tensors="pt")
            with torch.no_grad():
                logits = model(**batch).logits[0, :-1].log_softmax(-1)
            count = len(processor.tokenizer(reply).input_ids)
            wanted = logits.gather(1, batch["input_ids"][0, 1:, None])[-count:].sum().item()
            assert logprob == pytest.approx(wanted, abs=2e-3), (example.question, option)
    assert any(one.chosen_right for one in scores)
    assert all(0 < one.probability < 1 and (one.margin > 0) == one.chosen_right for one in scores)
