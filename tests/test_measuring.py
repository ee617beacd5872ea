"""Measurements through real engines: killed and continued, with controls, samples and the
likelihood of options."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from rarl.collect import Collector
from rarl.config import PromptsConfig
from rarl.data.images import blank_image, rows_with_other_images
from rarl.data.stream import PreparerSettings, ordered_stream, unpack
from rarl.evaluation.measurements import (
    Measurement,
    complete,
    finished_measurements,
    folder_of,
    look_up,
    part_path,
    parts_of,
    write_part,
)
from rarl.evaluation.metrics import GRADE_SETTINGS, GRADES
from rarl.evaluation.options import OptionsKey, missing_options, score_options
from rarl.judge.judge import Judge
from rarl.prompts import evaluation_prompts, plain_prompt
from rarl.replies.tags import target_text
from rarl.rollout.pool import SamplerPool
from rarl.samples import read_samples, to_table
from rarl.schema import Example
from tests.records import KEY, answers, exam, read_measurement, rights
from tests.runs import RARL, REPOSITORY, environment, rarl_here

QUESTIONS = 256


def collector(pool: SamplerPool, model_path: str, judge: Judge | None = None) -> Collector:
    return Collector(pool, GRADES, GRADE_SETTINGS, judge, model_path, 256)


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
        return [one.pixels[0] for batch in batches for one in unpack(batch)]

    def decoded(example: Example) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(example.images[0])).convert("RGB"))

    shuffled = pixels(own, others)
    assert all(
        np.array_equal(a, decoded(examples[i])) for a, i in zip(shuffled, others, strict=True)
    )
    blank = pixels(PreparerSettings(str(dataset), model_path, plain_prompt(), blank=True))
    assert {int(a.min()) for a in blank} == {int(a.max()) for a in blank} == {128}
    assert (
        blank[0].shape
        == np.asarray(Image.open(io.BytesIO(blank_image(examples[0].images[0])))).shape
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
        image = Image.open(io.BytesIO(example.images[0])).convert("RGB")
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
