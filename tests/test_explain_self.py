"""A model of ours as the teacher: on the engines that the tests share, and as a whole command."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rarl.collect import Collector
from rarl.commands.own_teacher import read_own, thinking
from rarl.data.parquet import ParquetRows, write_examples
from rarl.prompts import evaluation_prompts, plain_prompt
from rarl.rationales.explain import Explainer, figures_of
from rarl.rationales.own import HintedPrompt, OwnTeacher
from rarl.rationales.teacher import SaidCache
from rarl.rollout.pool import SamplerPool
from rarl.schema import Example
from tests.runs import rarl
from tests.serving.service import write_run


@pytest.fixture
def bare(tmp_path: Path, examples: list[Example]) -> Path:
    """Phantoms without their rationales."""
    path = tmp_path / "bare.parquet"
    write_examples(path, [replace(one, rationale=None) for one in examples])
    return path


def own_teacher(pool: SamplerPool, processor: Any, model_path: str, cache: SaidCache) -> OwnTeacher:
    return OwnTeacher(
        weights=("tiny",),
        name="the tiny base",
        collector=Collector.unscored(pool, model_path, 512),
        processor=processor,
        plan=plain_prompt(),
        cache=cache,
        max_tokens=96,
        max_pixels=None,
        adapter=False,
    )


def test_the_tiny_base_explains_phantoms(
    bare: Path, pool: SamplerPool, processor: Any, model_path: str, tmp_path: Path
) -> None:
    """What is kept answers rightly, equal questions are drawn alike, and nothing is asked twice."""
    data = ParquetRows(bare)
    found = []
    for start in ("first", "second"):
        cache = SaidCache(tmp_path / f"{start}.sqlite")
        teacher = own_teacher(pool, processor, model_path, cache)
        explainer = Explainer(data, range(len(data)), teacher, 2)
        explainer.ask(lambda: None)
        found.append(
            {
                (one.row, each.number, each.hinted): each
                for one in explainer.work
                for each in one.replies
            }
        )
    assert found[0] == found[1]
    figures = figures_of(explainer.work, len(data), 0)
    assert figures.questions["machine"] > 0 and figures.untold == 0
    assert min(figures.tokens) > 0
    for one in explainer.work:
        if one.kept is not None:
            answer = str(one.kept.checked.answer)
            assert answer.lower() == one.example.answer.lower()
    again = Explainer(data, range(len(data)), own_teacher(pool, processor, model_path, cache), 2)
    again.look_up(cache)
    asked = [
        question for number, hinted in again.askings for question in again.questions(number, hinted)
    ]
    assert asked == []


def test_the_answer_is_given_away_in_the_second_asking_alone(
    processor: Any, examples: list[Example]
) -> None:
    example = next(one for one in examples if one.answer_type == "choice")
    plain, hinted = plain_prompt(), HintedPrompt(plain_prompt())
    without, told = plain(processor, example), hinted(processor, example)
    assert f"the answer is: {example.answer}." in told.text
    assert "the answer is" not in without.text
    assert (told.form, told.wording) == (without.form, without.wording)


def test_a_run_is_asked_as_it_measures_but_always_for_thinking(
    model_path: str, bare: Path, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", model_path, seed=1)
    asked = read_own(str(run), bare, tmp_path / "engine")
    assert asked.adapter == (run / "adapter").resolve()
    assert asked.config.data.train is None and asked.config.run_dir == str(tmp_path / "engine")
    alone = asked.config.model_copy(
        update={"prompts": asked.config.prompts.model_copy(update={"eval": "none"})}
    )
    for config in (asked.config, alone):
        family = thinking(config).prompts.eval
        assert evaluation_prompts(thinking(config).prompts).families[family].form != "answer"


@pytest.mark.whole
def test_a_run_explains_by_the_command_line(model_path: str, bare: Path, tmp_path: Path) -> None:
    run, out = write_run(tmp_path / "run", model_path, seed=1), tmp_path / "out"
    options = ["--teacher=self", f"--model={run}", "-n", "2"]
    done = rarl("data", "explain", bare, out, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = ParquetRows(out / "rationales.parquet")
    statuses = Counter(rows.column("rationale_status"))
    assert statuses["machine"] > 0 and set(statuses) <= {"machine", "hinted", "rejected"}
    figures = json.loads((out / "explain.json").read_text())
    assert figures["questions"]["machine"] == statuses["machine"]
    again = rarl("data", "explain", bare, out, *options)
    assert (
        again.returncode == 0
        and again.stdout.splitlines()[-4:-1] == done.stdout.splitlines()[-4:-1]
    )
