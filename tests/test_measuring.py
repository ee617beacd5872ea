"""Measurements through real engines: killed and continued, with controls, samples and the
likelihood of options."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from rarl.config import PromptsConfig
from rarl.data.controls import blank_image, rows_with_other_images
from rarl.data.stream import PreparerSettings, ordered_stream, unpack
from rarl.evaluation.options import score_options
from rarl.evaluation.predict import Asking, PartsOnDisk, measure, predict
from rarl.evaluation.prediction import load_predictions
from rarl.prompts import evaluation_prompts, plain_prompt
from rarl.replies.tags import target_text
from rarl.rollout.pool import SamplerPool
from rarl.schema import Example
from tests.runs import RARL, REPOSITORY, environment, rarl

pytestmark = pytest.mark.slow
QUESTIONS = 256


@pytest.mark.engines
def test_a_killed_evaluation_continues_without_losing_or_repeating_a_prediction(
    tmp_path: Path, model_path: str
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
    folder = tmp_path / "run" / "evaluation"
    parts = folder / "base-seen-test.parts"
    process = subprocess.Popen(
        [RARL, "eval", *command],
        cwd=REPOSITORY,
        env=environment(),
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.time() + 300
    while not list(parts.glob("0*.parquet")) and time.time() < deadline and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = PartsOnDisk(folder / "base-seen-test.parquet").load()
    assert 0 < len(kept) < QUESTIONS, "killed between two batches"

    done = rarl("eval", *command)
    assert done.returncode == 0, done.stderr
    predictions = load_predictions(folder / "base-seen-test.parquet")
    assert predictions[: len(kept)] == kept, (
        "what was on disk is not asked again: even its seconds are the same"
    )
    asked = pq.read_table(
        tmp_path / "run" / "data" / "data.eval.seen-test.parquet", columns=["id"]
    )["id"].to_pylist()
    assert [p.example_id for p in predictions] == asked[:QUESTIONS]
    assert not parts.exists() and not data.exists()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["base"]["seen-test"]["n"] == QUESTIONS
    right = np.mean([p.correct for p in predictions])
    assert summary["base"]["seen-test"]["accuracy"] == pytest.approx(right)


def test_samples_are_drawn_in_order_and_a_measurement_in_parts_is_the_same(
    pool: SamplerPool, dataset: Path, model_path: str, tmp_path: Path
) -> None:
    stream = ordered_stream(
        PreparerSettings(str(dataset), model_path, plain_prompt()), np.arange(24)
    ).materialize()
    asking = Asking(48, 256, use_adapter=False, samples=3, temperature=1.0, seed=7)
    whole = measure(stream, pool, asking, None, tmp_path / "whole.parquet", lambda _: None)
    assert [p.sample for p in whole] == [0, 1, 2] * 24
    assert len({p.example_id for p in whole}) == 24
    assert len({p.reply for p in whole if p.example_id == whole[0].example_id}) > 1, (
        "samples differ"
    )
    begun = PartsOnDisk(tmp_path / "begun.parquet")
    begun.add(whole[:30], 0)
    told: list[int] = []
    again = measure(stream, pool, asking, None, begun.path, told.append)
    assert [p.reply for p in again] == [p.reply for p in whole], (
        "seeds depend on a question's place alone"
    )
    assert told == [10, 14] and not begun.folder.exists()
    assert load_predictions(begun.path) == again


def test_controls_show_other_pictures_and_the_text_control_shows_none(
    pool: SamplerPool, dataset: Path, model_path: str, examples: list[Example]
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

    blind = Asking(48, 256, use_adapter=False, show_image=False)
    twice = [
        [p.reply for batch in predict(ordered_stream(s, rows), pool, blind, None) for p in batch]
        for s in (own, PreparerSettings(str(dataset), model_path, plain_prompt(), blank=True))
    ]
    assert twice[0] == twice[1] and len(twice[0]) == len(examples), (
        "without an image, its content cannot matter"
    )


def test_option_likelihoods_equal_transformers(
    pool: SamplerPool, dataset: Path, model_path: str, processor: Any, examples: list[Example]
) -> None:
    plan = evaluation_prompts(PromptsConfig(eval="none"))
    stream = ordered_stream(
        PreparerSettings(str(dataset), model_path, plan), np.arange(8)
    ).materialize()
    scores = score_options(stream, pool, False, lambda _: None)
    assert [one.example_id for one in scores] == [e.id for e in examples[:8]]
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
