"""A second look through engines: in training, where looks are paid for the answers after them, and
in a measurement."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rarl.collect import Collector
from rarl.config import PromptsConfig
from rarl.data.parquet import write_examples
from rarl.data.prepared import prepare_example
from rarl.evaluation.measurements import finished_measurements, read_finished
from rarl.look import Looker
from rarl.prompts import evaluation_prompts, looking_prompts
from rarl.reading import follow_looks
from rarl.rollout.pool import SamplerPool
from rarl.rollout.sampler import SampleRequest, SamplingSettings
from rarl.samples import flatten, read_samples
from rarl.schema import Answered, Example, Rollout
from rarl.tiny.second_look import draw_examples
from tests.runs import SHORT, rarl_here

LOOKS = PromptsConfig(train={"look": 1, "reason": 1}, eval="reason")
NAMED = [
    "<look>a(100,100),(200,200)</look>",
    "<look>b(100,100),(200,200)</look>",
    "<look>none</look>",
    "<look>a(700,300),(720,320)</look>",
]


@pytest.fixture(scope="module")
def pictures() -> list[Example]:
    return draw_examples(12, 0, "test")


def test_looks_are_followed_by_the_question_with_what_lies_there(
    pool: SamplerPool, processor: Any, model_path: str, pictures: list[Example]
) -> None:
    """The answers are those that the engines give when asked directly, one for each place."""
    asked = [prepare_example(one, processor, looking_prompts(LOOKS)) for one in pictures[:2]]
    looker = Looker(model_path, evaluation_prompts(LOOKS), 32, 512)
    collector = Collector(pool, {}, {}, None, model_path, 512, looker=looker)
    pending = collector.submit(asked, [0, 4], SamplingSettings(4, 1.0, 32), use_adapter=False)
    looks = flatten(pending.result())
    assert len(looks) == 8
    for one in looks:
        assert one.prepared is not None
        named = looker.following(one.prepared, one.rollout.text)
        assert (one.answered is None) == (named is None)
        one.rollout = Rollout(NAMED[one.number], [1], "stop", -1)
        one.answered = None
    followed = follow_looks(pool, looker, looks, use_adapter=False)
    assert [len(its) for its in followed.looks] == [2, 1, 2, 1], "equal places share their answer"
    followed.write()
    for one in looks:
        assert one.prepared is not None
        detail = looker.following(one.prepared, one.rollout.text)
        if detail is None:
            assert one.answered is None and one.number == 2
            continue
        again = looker.again(one.prepared, detail)
        request = SampleRequest(again.prompt.text, again.pixels)
        ((reply,),) = pool.generate([request], SamplingSettings(1, 0.0, 32), False)
        assert one.answered == Answered(reply.text, "think")


@pytest.mark.slow
def test_a_run_trains_on_looks_and_is_measured_with_a_second_look(
    pool: SamplerPool, tmp_path: Path, pictures: list[Example]
) -> None:
    """Where a look names no place, the reply is that of one look."""
    run, train, held = (tmp_path / name for name in ("run", "train.parquet", "held.parquet"))
    write_examples(train, draw_examples(12, 0, "train"))
    write_examples(held, pictures)
    made = [f"run_dir={run}", f"data.train={train}", f"data.eval={{held: {held}}}", *SHORT]
    made += [
        "prompts.train={look: 1, reason: 1}",
        "prompts.eval=reason",
        "rewards={format: 0.2, accuracy: 1, boxes: 0.5}",
    ]
    made += ["train.steps=2", "rollout.max_model_length=512"]
    done = rarl_here("train", "configs/demo.yaml", *made, pool=pool)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [row for part in sorted(run.glob("samples/**/*.parquet")) for row in read_samples(part)]
    forms = {one.prompt.form for one in rows}
    assert forms == {"look", "think"}
    for one in rows:
        if one.prompt.form == "look":
            assert one.rewards["accuracy"] == float(one.is_right)
            assert one.rewards["boxes"] is not None
        else:
            assert one.answered is None and one.rewards["boxes"] is None
    done = rarl_here("eval", run, "--look", pool=pool)
    assert done.returncode == 0, done.stdout + done.stderr
    for words in ("second look", "second look at a random part", "second look at the other half"):
        assert words in done.stdout
    evaluation = run / "evaluation"
    keys = finished_measurements(evaluation)
    kinds = {"none", "look", "look-random", "look-opposite"}
    assert {(key.model, key.control) for key in keys} == {
        (model, kind) for model in ("base", "trained") for kind in kinds
    }
    for key in keys:
        samples = read_finished(evaluation, key)
        assert samples is not None and len(samples) == 12
        (plain,) = [o for o in keys if (o.model, o.control) == (key.model, "none")]
        usual = {one.example.id: one for one in read_finished(evaluation, plain) or []}
        for one in samples:
            if one.detail is None:
                assert one.rollout.text == usual[one.example.id].rollout.text
    summary = json.loads((evaluation / "summary-look.json").read_text())
    assert "with_image_minus_this" in summary
