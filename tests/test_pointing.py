"""Phantoms to point at: the boxes are where the lesions are, lessons ask as the recipe does, and
the base is made once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoProcessor, Qwen2VLForConditionalGeneration

from rarl.config import load_config
from rarl.data.check import RowCheck
from rarl.data.parquet import ParquetRows
from rarl.data.prepared import prepare_example
from rarl.prompts import evaluation_prompts, target_reply
from rarl.replies.boxes import read_boxes
from rarl.replies.overlap import boxes_value
from rarl.replies.tags import parse_reply
from rarl.tiny import dataset, follow_up, pointing, taught, training
from rarl.tiny.phantoms import SIZE, draw_boxed, draw_facts
from tests.runs import REPOSITORY

RECIPE = REPOSITORY / "configs/recipes/tiny/pointing.yaml"


@pytest.fixture(scope="module")
def processor() -> Any:
    return AutoProcessor.from_pretrained(str(dataset.base_model()))


@pytest.mark.parametrize("seed", range(12))
def test_the_box_is_where_the_lesion_is(seed: int) -> None:
    """The same picture with and without the lesion's contrast differs in the box alone, and up to
    its edges."""
    facts = replace(draw_facts(np.random.default_rng(seed)), side="left" if seed % 2 else "right")
    shown, [box] = draw_boxed(facts, "seen", np.random.default_rng(seed), 0.5)
    without, _ = draw_boxed(facts, "seen", np.random.default_rng(seed), 0.0)
    rows, columns = np.nonzero(shown.astype(int) - without.astype(int))
    found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert found == pytest.approx(box.corners, abs=2.0)
    assert ((box.x1 + box.x2) / 2 < SIZE / 2) is (facts.side == "left")


def test_examples_are_sound_and_pure_and_the_shares_are_mixed(tmp_path: Path) -> None:
    pointing.write_train(tmp_path / "a.parquet", 0)
    pointing.write_train(tmp_path / "b.parquet", 0)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    rows = ParquetRows(tmp_path / "a.parquet")
    kinds = rows.column("answer_type")
    assert kinds.count("boxes") == pointing.TRAINED_POINTS
    assert len(kinds) == pointing.TRAINED_POINTS + pointing.TRAINED_OTHERS
    facts = RowCheck().facts_in(str(tmp_path / "a.parquet"), list(range(0, len(rows), 40)))
    assert not [one["reason"] for one in facts if one["reason"]]
    test = pointing.draw_examples("seen", 20, 0, "test")
    train = pointing.draw_examples("seen", 20, 0, "train")
    assert not {one.images for one in test} & {one.images for one in train}
    assert all(one.boxes == () or one.boxes for one in dataset.draw_examples("seen", 9, 0, "test"))


def test_lessons_ask_as_the_recipe_does_and_answer_rightly(processor: Any) -> None:
    config = load_config(RECIPE)
    [example] = pointing.draw_examples("seen", 1, 0, "test")
    prepared = prepare_example(example, processor, evaluation_prompts(config.prompts))
    assert prepared.prompt.frame == pointing.FRAME
    lessons = pointing.draw_pointing_lessons(0, 1, 0.0)
    pointed = [one for one in (next(lessons) for _ in range(60)) if "(x1,y1)" in one.prompt]
    assert 30 <= len(pointed) <= 58
    assert any(one.prompt in prepared.prompt.text for one in pointed)
    reply = parse_reply(target_reply(prepared.example, "think", prepared.prompt.frame))
    named = read_boxes(reply.answer, pointing.FRAME)
    assert boxes_value(named, example.boxes or ()) > 0.95
    room = config.rollout.max_completion_tokens
    for lesson in pointed:
        assert len(processor.tokenizer(lesson.reply).input_ids) < room


@pytest.mark.parametrize("world", [pointing, follow_up])
def test_the_base_is_made_once_and_is_the_same_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: Any
) -> None:
    """By a few steps of the real training."""
    for name in ("VISION_STEPS", "TRUE_STEPS", "DOUBTING_STEPS"):
        monkeypatch.setattr(world, name, 2)
    monkeypatch.setattr(world, "VISION_BATCH", 4)
    monkeypatch.setattr(training, "BATCH", 4)
    folders = []
    for name in ("a", "b"):
        monkeypatch.setenv(taught.CACHE, str(tmp_path / name))
        folders.append(world.base_model())
    first, second = ((one / "model.safetensors").read_bytes() for one in folders)
    assert first == second
    assert first != (dataset.base_model() / "model.safetensors").read_bytes()
    made = (folders[1] / "config.json").stat().st_mtime_ns
    assert world.base_model() == folders[1]
    assert (folders[1] / "config.json").stat().st_mtime_ns == made
    model = Qwen2VLForConditionalGeneration.from_pretrained(folders[0])
    assert model.config.model_type == "qwen2_vl"
