"""A second look, without engines: which part of the image it shows, how a look is asked, read and
paid, and that the detail is the file's own pixels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rarl.config import PromptsConfig, load_config
from rarl.data.images import decode_image, png_bytes
from rarl.data.lengths import measured_lengths, training_lengths
from rarl.data.prepared import PreparedExample, prepare_example
from rarl.errors import UserError
from rarl.evaluation.ways import AIMS, Look, Way
from rarl.look import Looker, detail_around, elsewhere, least_side, named_detail
from rarl.prompts import (
    evaluation_prompts,
    imitation_prompts,
    looking_prompts,
    training_prompts,
    trains_looks,
    with_detail,
)
from rarl.replies.boxes import STYLES, write_boxes
from rarl.replies.tags import parse_reply, target_text
from rarl.rewards.answer import accuracy_reward
from rarl.rewards.boxes import boxes_reward
from rarl.rewards.form import format_reward
from rarl.rewards.thinking import explains_reward
from rarl.samples import Sample, from_table, to_table
from rarl.schema import Answered, Box, Detail, Example, Frame, Prompt, Rollout
from tests.runs import REPOSITORY

LOOKS = PromptsConfig(train={"look": 1, "reason": 1}, eval="reason")
SIDES = st.integers(60, 900)
PLACES = st.floats(-50, 1000)


def asked_about(width: int, height: int) -> Example:
    """A question about a picture of noise, of which every part is another."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)
    image = png_bytes(Image.fromarray(noise))
    return Example("one", (image,), "one", "Is it hollow?", "yes", "closed")


def first_look(processor: Any, example: Example) -> PreparedExample:
    return prepare_example(example, processor, looking_prompts(LOOKS))


def looker(model_path: str, **options: Any) -> Looker:
    return Looker(model_path, evaluation_prompts(LOOKS), 32, 512, **options)


@given(SIDES, SIDES, PLACES, PLACES, st.floats(1, 300), st.floats(1, 300))
def test_a_detail_shows_the_box_with_its_margin_and_lies_in_the_image(
    width: int, height: int, x: float, y: float, across: float, down: float
) -> None:
    box = (x, y, x + across, y + down)
    found = detail_around(box, width, height, least=56)
    seen = (max(x, 0), max(y, 0), min(x + across, width), min(y + down, height))
    if seen[2] <= seen[0] or seen[3] <= seen[1]:
        assert found is None
        return
    assert found is not None
    x1, y1, x2, y2 = found
    assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
    assert x2 - x1 >= 56 and y2 - y1 >= 56
    longer = max(seen[2] - seen[0], seen[3] - seen[1])
    # One pixel for rounding.
    assert x1 <= max(0, seen[0] - longer / 2) + 1 and x2 >= min(width, seen[2] + longer / 2) - 1
    assert y1 <= max(0, seen[1] - longer / 2) + 1 and y2 >= min(height, seen[3] + longer / 2) - 1


@pytest.mark.parametrize("box", [(float("nan"), 0, 9, 9), (5, 5, 5, 9), (9, 9, 5, 5)])
def test_what_is_no_place_has_no_detail(box: tuple[float, ...]) -> None:
    assert detail_around(box, 100, 100, 56) is None


@given(SIDES, SIDES, st.floats(0, 50), st.floats(0, 50), st.text(max_size=5))
def test_the_controls_show_as_much_of_another_place(
    width: int, height: int, x: float, y: float, seed: str
) -> None:
    found = detail_around((x, y, x + 8, y + 8), width, height, least=56)
    assert found is not None
    size = (found[2] - found[0], found[3] - found[1])
    mirrored = elsewhere(found, width, "opposite", height, seed)
    assert elsewhere(mirrored, width, "opposite", height, seed) == found
    drawn = elsewhere(found, width, "random", height, seed)
    assert drawn == elsewhere(found, width, "random", height, seed)
    for x1, y1, x2, y2 in (mirrored, drawn):
        assert (x2 - x1, y2 - y1) == size
        assert x1 >= 0 and x2 <= width and y1 >= 0 and y2 <= height
    assert elsewhere(found, width, "own", height, seed) == found


def test_a_random_place_is_drawn_from_the_whole_image() -> None:
    drawn = [elsewhere((0, 0, 56, 56), 448, "random", 448, f"{n}") for n in range(400)]
    for place in (0, 1):
        starts = np.array([one[place] for one in drawn])
        assert starts.min() < 20 and starts.max() > 372
        assert starts.mean() == pytest.approx((448 - 56) / 2, abs=25)


def test_a_look_is_a_form_of_its_own() -> None:
    text = target_text("look", "", "mass(1,2),(3,4)")
    assert text == "<look>mass(1,2),(3,4)</look>"
    reply = parse_reply(text, "look")
    assert (reply.thinking, reply.answer, reply.well_formed) == (None, "mass(1,2),(3,4)", True)
    for other in ("<answer>yes</answer>", "<look></look>", "<look>a</look><look>b</look>", "a"):
        assert not parse_reply(other, "look").well_formed
    assert not parse_reply("<think>a</think><look>b</look><answer>c</answer>").well_formed
    columns: dict[str, Any] = {"form": ["look", "look"]}
    assert format_reward([""] * 2, [text, f"It is {text}"], **columns) == [1.0, 0.0]
    explained = explains_reward([""], [text], form=["look"], explained=[None])
    assert explained == [None], "it has no thinking to pay for"


def test_a_look_is_paid_for_the_answer_after_it_and_for_its_box() -> None:
    frame, true = Frame("qwen2_vl", 448, 448, 112, 112), Box("lesion", 100, 100, 108, 108)
    text = f"<look>{write_boxes([true], frame)}</look>"
    shared: dict[str, Any] = {"form": ["look"], "answer_type": ["closed"], "options": [None]}
    for answered, paid in (
        (Answered("<answer>yes</answer>", "answer"), 1.0),
        (Answered("<think>A ring.</think><answer>yes</answer>", "think"), 1.0),
        (Answered("<answer>no</answer>", "answer"), 0.0),
        (None, 0.0),
    ):
        found = accuracy_reward([""], [text], answer=["yes"], answered=[answered], **shared)
        assert found == [paid]
        sample = Sample(
            replace(asked_about(80, 80), images=()),
            Prompt("", "look/0", "look", frame),
            Rollout(text, [1], "stop", 0),
            answered=answered,
            detail=Detail(1, 2, 3, 4, 5),
        )
        assert sample.is_right is (paid == 1.0)
        (again,) = from_table(to_table([sample]))
        assert (again.answered, again.detail) == (answered, sample.detail)
    boxes = {"form": ["look"], "answer_type": ["closed"], "frame": [frame]}
    (value,) = boxes_reward([""], [text], boxes=[(true,)], **boxes)
    assert value == pytest.approx(1.0, abs=0.2), "thousandths are half a pixel here"
    elsewhere = text.replace("(2", "(7").replace(",(2", ",(7")
    assert boxes_reward([""], [elsewhere], boxes=[(true,)], **boxes) == [0.0]
    for nothing in ((), None):
        assert boxes_reward([""], [text], boxes=[nothing], **boxes) == [None]


def test_looks_are_asked_about_one_image_alone() -> None:
    plan = training_prompts(LOOKS, 0)
    one = asked_about(80, 80)
    drawn = {plan.choose(replace(one, id=str(n)), 1)[0] for n in range(60)}
    assert drawn == {"look", "reason"}
    others = [with_detail(one), replace(one, images=()), replace(one, answer_type="boxes")]
    for other in others:
        assert {plan.choose(replace(other, id=str(n)), 1)[0] for n in range(60)} == {"reason"}
        assert looking_prompts(LOOKS).choose(other, None) == ("reason", 0)
    only = training_prompts(PromptsConfig(train={"look": 1}), 0)
    assert only.choose(with_detail(one), 1)[0] == "plain"
    assert looking_prompts(LOOKS).choose(one, None) == ("look", 0)
    assert trains_looks(LOOKS) and not trains_looks(PromptsConfig(train={"look": 0, "plain": 1}))


def test_where_to_look_is_no_answer_and_is_not_imitated() -> None:
    with pytest.raises(UserError, match=r"look asks where to look, and for no answer; .*--look"):
        evaluation_prompts(PromptsConfig(eval="look"))
    with pytest.raises(UserError, match="which is learnt by method=grpo alone"):
        imitation_prompts(LOOKS, 0)


def test_the_detail_is_the_files_own_pixels_and_the_whole_is_as_before(
    processor: Any, model_path: str
) -> None:
    example = asked_about(448, 448)
    first = first_look(processor, example)
    assert first.prompt.frame == Frame("qwen2_vl", 448, 448, 112, 112)
    assert first.original == example.images[0] and STYLES["qwen2_vl"].asked in first.prompt.text
    ours = looker(model_path)
    text = "<look>lesion(500,250),(518,268)</look>"
    detail = ours.following(first, text)
    assert detail is not None and detail.corners == (200, 88, 256, 144)
    said = len(processor.tokenizer(text).input_ids) + 1
    assert detail.look_tokens == len(first.prompt_token_ids) + said
    again = ours.again(first, detail)
    assert np.array_equal(again.pixels[0], first.pixels[0])
    assert np.array_equal(again.pixels[1], enlarged(example, (200, 88, 256, 144), 2))
    large = ours.following(first, "<look>lesion(250,250),(500,500)</look>")
    assert large is not None and large.corners == (56, 56, 280, 280)
    shown = ours.again(first, large).pixels[1]
    assert np.array_equal(shown, enlarged(example, large.corners, 0.5))
    assert "Whole image: " in again.prompt.text and "Detail: " in again.prompt.text
    assert again.prompt.wording == "reason/0" and again.example == first.example
    assert again.prompt_token_ids.tolist().count(processor.image_token_id) == 2 * 16
    assert again.original is None


def enlarged(example: Example, part: tuple[int, int, int, int], times: float) -> np.ndarray:
    """A part of the file, `times` as large."""
    cut = decode_image(example.images[0]).crop(part)
    size = (round(times * cut.width), round(times * cut.height))
    return np.asarray(cut.resize(size, Image.Resampling.BICUBIC))


def test_a_look_that_names_no_place_leaves_the_question_as_it_was(
    processor: Any, model_path: str
) -> None:
    example, ours = asked_about(448, 448), looker(model_path)
    first = first_look(processor, example)
    for text in ("<look>none</look>", "<look>left</look>", "", "<look>a(2000,0),(2100,9)</look>"):
        assert ours.following(first, text) is None, text
    again = ours.again(first, None)
    plain = prepare_example(example, processor, evaluation_prompts(LOOKS))
    assert again.prompt_token_ids.tolist() == plain.prompt_token_ids.tolist()
    assert again.prompt.text == plain.prompt.text and again.detail is None


def test_of_several_boxes_the_first_counts(processor: Any) -> None:
    frame = Frame("qwen2_vl", 448, 448, 112, 112)
    one, other = "a(100,100),(110,110)", "b(900,900),(910,910)"
    least = least_side(processor.image_processor)
    assert least == 56
    both, first = (
        named_detail(f"<look>{boxes}</look>", frame, least) for boxes in (one + other, one)
    )
    assert both == first is not None


def test_an_image_with_its_detail_is_counted_before_training(
    processor: Any, model_path: str
) -> None:
    """What a step would ask has room in what was counted."""
    recipe = REPOSITORY / "configs/recipes/tiny/rarl.yaml"
    config = load_config(recipe, ["prompts.train={look: 1, reason: 1}"])
    example = asked_about(448, 448)
    first = first_look(processor, example)
    longest = looker(model_path).following(first, "<look>lesion(0,0),(1000,1000)</look>")
    again = looker(model_path).again(first, longest)
    for rule in (
        training_lengths(config, model_path),
        measured_lengths(config, model_path, ["reason", "look"]),
    ):
        counted = rule.lengths(example, [(448, 448)], processor)
        assert counted.prompt >= len(again.prompt_token_ids)
    usual = measured_lengths(config, model_path, ["reason"])
    assert usual.lengths(example, [(448, 448)], processor).prompt < len(again.prompt_token_ids)
    with pytest.raises(UserError, match="do not fit"):
        replace(looker(model_path), max_model_length=64).again(first, longest)


def test_each_kind_of_second_look_has_its_words() -> None:
    words = {Way(control=kind).words()[0] for kind in get_args(Look)}
    assert set(AIMS) == set(get_args(Look))
    assert words == {
        "second look",
        "second look at a random part",
        "second look at the other half",
    }
    assert Way(control="blank").aim is None and Way().aim is None
