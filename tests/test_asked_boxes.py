"""Boxes that are asked of a served model: the question is put as in training, and the boxes of the
answer come in shares of the image's sides, whatever the family writes and however the image was
shrunk."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
from PIL import Image
from transformers import AutoProcessor

from rarl.config import PromptsConfig
from rarl.data.images import png_bytes
from rarl.prompts import as_turn, evaluation_prompts, plain_prompt
from rarl.replies.boxes import STYLES, family_of, write_boxes
from rarl.schema import Box, Frame
from rarl.serving.asking import AskedModel, named_boxes, read_answer, sent_frame
from rarl.serving.images import data_urls
from rarl.serving.questions import pose
from rarl.serving.requests import NamedImage
from rarl.tiny.dataset import base_model
from rarl.tiny.pointing import draw_examples


@pytest.fixture(scope="module")
def processor() -> Any:
    return AutoProcessor.from_pretrained(str(base_model()))


def test_the_question_is_put_as_in_training(processor: Any) -> None:
    [example] = draw_examples("seen", 1, 0, "test")
    config = PromptsConfig()
    family = evaluation_prompts(config).families[config.eval]
    posed = pose(example.question, None, family, STYLES[family_of(processor)].asked)
    trained = plain_prompt()(processor, example)
    assert as_turn(processor, posed.text, [""]) == trained.text
    assert posed.options is None
    bare = pose(example.question, None, family)
    assert as_turn(processor, bare.text, [""]) != trained.text


@pytest.mark.parametrize("family", STYLES)
@pytest.mark.parametrize("size", [(112, 112), (400, 200), (90, 310)])
def test_boxes_come_in_shares_of_the_sides(
    family: str, size: tuple[int, int], processor: Any
) -> None:
    width, height = size
    image = Image.effect_noise(size, 50).convert("RGB")
    named = [NamedImage("image", "")]
    (url,) = data_urls(named, [image], processor.image_processor, None)
    encoded = base64.b64decode(url.partition(",")[2])
    assert encoded != png_bytes(image)
    shown = Image.open(io.BytesIO(encoded)).size
    box = Box("mass", width / 4, height / 2, width / 2, height * 3 / 4)
    answer = write_boxes([box], Frame(family, width, height, *shown))
    frame = sent_frame(family, url)
    found = named_boxes(answer, frame)
    assert found is not None
    [one] = found
    assert one["label"] == "mass"
    nearest = 1 / min(shown)
    assert one["x1"] == pytest.approx(1 / 4, abs=nearest)
    assert one["y1"] == pytest.approx(1 / 2, abs=nearest)
    assert one["x2"] == pytest.approx(1 / 2, abs=nearest)
    assert one["y2"] == pytest.approx(3 / 4, abs=nearest)
    assert named_boxes("on the left", frame) is None


def test_samples_agree_where_they_point_at_the_same() -> None:
    """Two of three point at the same with other numbers."""
    config = PromptsConfig()
    families = evaluation_prompts(config).families
    model = AskedModel("base", "base", None, families["none"], families["look"], None)
    frame = Frame("qwen2_vl", 1, 1, 112, 112)
    elsewhere, here, near = "(700,700),(900,900)", "(100,100),(300,300)", "(110,95),(300,310)"
    replies = [f"<answer>mass{corners}</answer>" for corners in (elsewhere, here, near)]
    question = pose("Where is the mass?", None, model.family, STYLES["qwen2_vl"].asked)
    result, reply = read_answer(replies, question, model, frame)
    assert (result["answer"], result["confidence"]) == (f"mass{here}", pytest.approx(2 / 3))
    assert reply == replies[1]
