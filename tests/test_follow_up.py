"""The tiny world of two pictures: answers are in the pixels and labels, and nowhere else."""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
from PIL import Image
from transformers import AutoProcessor

from rarl.config import load_config
from rarl.data.check import images_fault, text_fault
from rarl.prompts import evaluation_prompts
from rarl.replies.tags import parse_reply
from rarl.schema import Example
from rarl.tiny.dataset import base_model
from rarl.tiny.follow_up import (
    LABELS,
    PLACES,
    draw_follow_up_lessons,
    draw_follow_ups,
    draw_in_words,
    mixed,
)
from rarl.tiny.training import encode
from tests.runs import REPOSITORY

BRIGHT = 100  # of what a lesion adds to a dark background; noise alone adds far less


def pixels(image: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image)).convert("L"), dtype=float)


def read_off(example: Example) -> tuple[str, str]:
    """The two answers as the pictures and the labels give them: the prior and the new one differ in
    the lesion alone, and where the new one is brighter it is larger."""
    assert example.image_labels is not None
    new = example.image_labels.index("New")
    shown = [pixels(image) for image in example.images]
    difference = shown[new] - shown[1 - new]
    more, less = (int((sign * difference > BRIGHT).sum()) for sign in (1, -1))
    return ("yes" if more > less else "no"), PLACES[new]


def test_answers_follow_from_the_pictures_and_their_labels() -> None:
    examples = draw_follow_ups(80, 3, "test")
    for example in examples:
        larger, place = read_off(example)
        assert example.answer == (larger if example.answer_type == "closed" else place)
        assert text_fault(example) is None and images_fault(example.images) is None
    asked = Counter((one.answer_type, one.answer) for one in examples)
    assert set(asked.values()) == {20}
    # Neither the order nor the place tells whether it grew.
    crossed = Counter(
        (one.answer, one.image_labels) for one in examples if one.answer_type == "closed"
    )
    assert set(crossed.values()) == {10}
    # Swapped with their labels nothing changes; swapped without, the other answer is right.
    one = examples[0]
    labels = one.image_labels or LABELS
    both = Example(**vars(one) | {"images": one.images[::-1], "image_labels": labels[::-1]})
    assert read_off(both)[0] == read_off(one)[0]
    wrong = Example(**vars(one) | {"images": one.images[::-1]})
    assert read_off(wrong)[0] != read_off(one)[0]


def test_swapped_pairs_are_the_same_in_the_other_order() -> None:
    """Which picture is the new one is answered otherwise then, and whether the lesion is larger is
    not."""
    pairs = zip(
        draw_follow_ups(40, 3, "test"), draw_follow_ups(40, 3, "test", swapped=True), strict=True
    )
    for one, other in pairs:
        assert one.images == other.images[::-1]
        assert one.image_labels == (other.image_labels or ())[::-1]
        assert (one.answer == other.answer) is (one.answer_type == "closed")
        assert one.image_id != other.image_id and one.id != other.id


def test_draws_are_functions_of_seed_and_split() -> None:
    for draw in (draw_follow_ups, draw_in_words, mixed):
        assert draw(30, 1, "train") == draw(30, 1, "train")
        for other in (draw(30, 2, "train"), draw(30, 1, "test")):
            assert not {one.question + str(one.images) for one in other if one.images} & {
                one.question + str(one.images) for one in draw(30, 1, "train")
            }


def test_the_mixture_has_a_third_of_each() -> None:
    examples = mixed(90, 0, "train")
    assert Counter(len(one.images) for one in examples) == {0: 30, 1: 30, 2: 30}
    assert {len(one.images) for one in examples[:3]} == {0, 1, 2}
    assert len({one.id for one in examples}) == 90
    in_words = draw_in_words(40, 0, "train")
    assert all(str(one.rationale) in one.question for one in in_words)
    assert len({one.image_id for one in in_words}) == 40


def test_the_recipes_name_what_is_drawn() -> None:
    for name in ("follow_up", "in_words", "mixed"):
        config = load_config(REPOSITORY / "configs/recipes/tiny" / f"{name}.yaml")
        assert str(config.data.train).startswith("rarl.tiny.follow_up:write_")
        assert all(path.startswith("rarl.tiny.") for path in config.data.eval.values())
        assert ("follow-up" in config.data.eval) is (
            config.model.path == "rarl.tiny.follow_up:base_model"
        )


def test_lessons_ask_as_the_recipe_does_and_answer_rightly() -> None:
    processor = AutoProcessor.from_pretrained(str(base_model()))
    config = load_config(REPOSITORY / "configs/recipes/tiny/follow_up.yaml")
    lessons = draw_follow_up_lessons(0, 1, 0.0)
    drawn = [next(lessons) for _ in range(60)]
    compared = [one for one in drawn if len(one.pictures) == 2]
    assert 20 <= len(compared) <= 58
    plan = evaluation_prompts(config.prompts)
    asked = [plan(processor, one).text for one in draw_follow_ups(8, 0, "test")]
    assert any(one.prompt in text for one in compared for text in asked)
    room = config.rollout.max_completion_tokens
    for one in compared:
        new = one.labels.index("New")
        shown = [np.asarray(picture.convert("L"), dtype=float) for picture in one.pictures]
        grew = bool((shown[new] - shown[1 - new] > BRIGHT).sum() > 20)
        answer = parse_reply(one.reply).answer
        expected = PLACES[new] if "Which of the two" in one.prompt else ("no", "yes")[grew]
        assert answer == expected
        assert len(processor.tokenizer(one.reply).input_ids) < room
    batch = encode(drawn, processor)
    placeholders = int((batch["input_ids"] == processor.image_token_id).sum())
    assert placeholders == 16 * sum(len(one.pictures) for one in drawn)
