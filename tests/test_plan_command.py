"""`rarl plan`: what it says of a card, and the lengths of the data that it plans with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import Qwen2VLConfig
from typer.testing import CliRunner

from rarl.cli import app
from rarl.commands.plan_comparison import plan_comparison
from rarl.config import Config, load_config
from rarl.data.images import png_bytes
from rarl.data.parquet import ParquetRows, write_examples
from rarl.data.prepared import prepare_example
from rarl.errors import UserError
from rarl.planning.comparison import comparison_lines
from rarl.planning.data import read_lengths, spread_rows
from rarl.planning.memory import CARDS, find_card
from rarl.planning.plan import Plan, lines, make_plan
from rarl.planning.sizes import QWEN2_VL_2B, tower_flops
from rarl.prompts import plain_prompt
from rarl.schema import Example
from tests.runs import DEMO, HUB, QWEN, REPOSITORY, assert_one_line_error, rarl


@pytest.mark.parametrize("config", [DEMO, QWEN])
def test_a_cpu_configuration_can_be_planned_for_a_card(config: Path) -> None:
    loaded: Config = load_config(config)
    plan = make_plan(loaded, gpu="a100-80g")
    assert plan.memory is not None
    assert plan.memory.card == CARDS["a100-80g"].memory
    assert plan.memory.shortfalls() == []
    assert make_plan(loaded, gpu_gib=20.0).card == replace(CARDS["a100-40g"], memory=20.0)


def test_the_command_says_what_to_set_and_that_nothing_was_measured(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert CliRunner().invoke(app, ["plan", str(QWEN), "--gpu", "a100-40g"]).exit_code == 0
    printed = capfd.readouterr().out
    for part in (
        "fits; best use: rollout.gpu_memory_share=",
        "train.micro_batch_tokens=",
        "estimate, not measured",
    ):
        assert part in printed
    assert CliRunner().invoke(app, ["plan", str(DEMO)]).exit_code == 0
    assert "sampler x 2" in capfd.readouterr().out


def test_a_card_that_is_not_known_is_named() -> None:
    assert_one_line_error(
        rarl("plan", DEMO.relative_to(REPOSITORY), "--gpu", "a100"),
        "--gpu a100: not a card that is known here; choose one of",
        "a100-40g",
    )
    with pytest.raises(UserError, match="--gpu-gib -1: a card has more than 0 GiB"):
        find_card("a100-40g", -1)


def test_the_datas_own_lengths_are_planned_with_where_they_are_at_hand(
    tmp_path: Path, dataset: Path, examples: list[Example], processor: Any
) -> None:
    longer = replace(examples[1], question="Where " * 50)
    write_examples(
        tmp_path / "test.parquet", [examples[0], longer, replace(longer, images=(b"x",))]
    )
    overrides = [f"data.train={dataset}", f"data.eval={{a: {tmp_path}/test.parquet, b: no/file}}"]
    overrides += ["prompts.train={plain: 1}"]
    plan = make_plan(load_config(DEMO, overrides))
    prepared = [prepare_example(one, processor, plain_prompt()) for one in examples]
    mean = float(np.mean([len(one.prompt_token_ids) for one in prepared]))
    assert plan.lengths is not None
    assert plan.lengths.prompt == pytest.approx(mean)
    assert (plan.work.prompt, plan.work.image) == (round(mean), 16)
    assert plan.lengths.longest == f"{tmp_path}/test.parquet: row 1"
    assert plan.shortfalls() == []
    assert any(f"{dataset}: prompts of {round(mean)} tokens" in line for line in lines(plan))
    short = [*overrides, f"rollout.max_model_length={plan.lengths.needed - 1}"]
    (problem,) = make_plan(load_config(DEMO, short)).shortfalls()
    assert f"row 1 needs {plan.lengths.needed} tokens with its reply: set rollout.max" in problem
    assert make_plan(load_config(DEMO)).lengths is None, "a function makes them"


def test_lengths_are_estimated_without_the_model_and_of_a_part_of_large_data(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, examples: list[Example]
) -> None:
    path = tmp_path / "train.parquet"
    write_examples(path, [replace(one, id=str(i)) for i, one in enumerate(examples * 20)])
    monkeypatch.setattr("rarl.planning.data.MOST_ROWS", 128)
    monkeypatch.setattr("rarl.planning.data.local_processor", lambda path: None)
    config = load_config(QWEN, [f"data.train={path}", "data.eval={}"])
    found = read_lengths(config, HUB)
    assert found is not None and not found.text_known
    assert (found.looked_at, found.rows) == (128, 480)
    assert (found.prompt, found.image) == (100 + 16, 16)  # pictures of 112 x 112
    assert found.needed == 100 + 16 + config.rollout.max_completion_tokens
    rows = spread_rows(ParquetRows(path))
    assert rows[0] < 32 and rows[-1] >= 448, "from one end to the other"


def test_a_comparison_is_planned_as_a_whole_and_names_what_is_missing() -> None:
    path = REPOSITORY / "configs" / "compare" / "paper.yaml"
    planned, absent = plan_comparison(path, [], "a100-40g", None)
    assert not planned.shortfalls()
    by_title = {one.title: one for one in planned.models}
    sft, rl, rarl_ = (by_title[one] for one in ("SFT on rationales", "plain RL", "RARL"))
    assert 0 < sft.seconds < rl.seconds < rarl_.seconds, "imitation samples nothing"
    assert by_title["RARL, no reasoning prompting (answer alone)"].seconds == 0
    assert planned.training == pytest.approx(sum(3 * one.seconds for one in planned.models))
    assert planned.measuring == 0 and set(planned.questions.values()) == {None}
    assert len(absent) == 6 and absent[0].startswith("data.train=")
    told = " ".join(comparison_lines(planned))
    assert "a100-40g with 39.4 GiB: fits" in told and "15 trainings in" in told
    assert "not at hand, so not in these hours: silvar-med, vqa-rad, slake" in told


def test_a_comparison_that_does_not_fit_says_which_model() -> None:
    path = REPOSITORY / "configs" / "compare" / "paper.yaml"
    planned, _ = plan_comparison(path, ["train.micro_batch_tokens=65536"], "a100-40g", None)
    [first, *_] = planned.shortfalls()
    assert first.startswith("SFT on answers: ")
    assert "does not fit" in comparison_lines(planned)[0]


def test_questions_that_are_known_are_in_the_plan_of_a_comparison() -> None:
    path = REPOSITORY / "configs" / "compare" / "paper_tiny.yaml"
    planned, absent = plan_comparison(path, [], None, None)
    assert not absent and planned.questions == {"phantoms-seen": 200, "phantoms-unseen": 200}
    expected = sum(2 * 3 * 400 * one.per_question for one in planned.models)
    assert planned.measuring == pytest.approx(expected) and expected > 0


def test_several_images_are_planned_with_and_text_needs_no_vision_tower(
    tmp_path: Path, examples: list[Example], processor: Any
) -> None:
    """As many pixels in three images cost less than in one, whose patches all attend to each
    other; and `data.max_pixels` is for all images of a question together."""

    def planned(images: int, *overrides: str) -> Plan:
        noise = [png_bytes(Image.effect_noise((336, 336), 40 + n)) for n in range(images)]
        path = tmp_path / f"{images}.parquet"
        several = replace(examples[0], images=tuple(noise), boxes=None)
        write_examples(path, [several, replace(several, id="again")])
        data = [f"data.train={path}", f"data.eval={{a: {path}}}"]
        return make_plan(load_config(DEMO, [*data, *overrides]))

    three, one = planned(3), planned(1)
    assert (one.work.image, one.work.images) == (16, 1), "the most of the tiny model"
    assert (three.work.image, three.work.images) == (48, 3)
    shapes = Qwen2VLConfig(**QWEN2_VL_2B)
    assert tower_flops(12_288, shapes, images=3) < 0.7 * tower_flops(12_288, shapes)
    assert any(f"({three.work.image} of 3.0 images)" in line for line in lines(three))
    bounded = planned(3, "data.max_pixels=12544")
    assert 12 <= bounded.work.image <= 16 and bounded.step.update < three.step.update
    text = planned(0)
    assert (text.work.image, text.work.images, text.work.patches) == (0, 0, 0)
    held, tower = ((one.processes or {})["sampler"].added["weights"] for one in (text, three))
    assert held < tower, "the engine has no vision tower"
