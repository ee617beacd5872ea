"""Questions of several images, and of none, from their file to their prompt: columns, faults, the
pixels that they share, labels, what splits may not share."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rarl.commands.held_out import fingerprint
from rarl.config import PromptsConfig
from rarl.data.check import RowCheck
from rarl.data.columns import ONE_IMAGE, SCHEMA
from rarl.data.images import (
    BadImage,
    decode_image,
    fitted_size,
    pixels_of_each,
    rows_with_other_images,
)
from rarl.data.lengths import LengthRule
from rarl.data.parquet import ParquetRows, write_examples, write_split
from rarl.data.prepared import prepare_example
from rarl.errors import UserError
from rarl.prepare.fingerprint import (
    ImagePrint,
    Side,
    find_leak,
    groups_of_rows,
    image_print,
)
from rarl.prepare.leaks import check_datasets
from rarl.prompts import IMAGE_PLACEHOLDER, plain_prompt, training_prompts, without_images
from rarl.schema import Example
from tests.pictures import picture, read

LABELS = ("frontal", "lateral", "prior")


def question(number: int, images: tuple[bytes, ...], **changes: Any) -> Example:
    known = Example(
        f"q{number}",
        images,
        f"i{number}",
        f"What is it, {number}?",
        "a mass",
        "open",
        split="train",
    )
    return replace(known, **changes)


def pictures(*numbers: int) -> tuple[bytes, ...]:
    return tuple(picture(number) for number in numbers)


several = st.lists(st.integers(0, 5), max_size=4, unique=True).map(lambda each: pictures(*each))


@given(rows=st.lists(several, min_size=1, max_size=80), labelled=st.booleans())
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[bytes, ...]], labelled: bool
) -> None:
    examples = [
        question(
            place, its, image_labels=LABELS[: len(its)] if labelled and len(its) == 3 else None
        )
        for place, its in enumerate(rows)
    ]
    folder = tmp_path_factory.mktemp("written")
    assert write_examples(folder / "one.parquet", examples) == len(examples)
    assert read(folder / "one.parquet") == examples
    plain = all(len(one.images) == 1 and one.image_labels is None for one in examples)
    schema = pq.read_schema(folder / "one.parquet").remove_metadata()
    assert schema == (ONE_IMAGE if plain else SCHEMA)
    assert ParquetRows(folder / "one.parquet").most_images == max(map(len, rows))
    assert [path.name for path in folder.iterdir()] == ["one.parquet"]


def test_a_file_of_one_image_each_is_as_before_and_grows_where_it_must(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rarl.data.parquet.ROW_GROUP_ROWS", 4)
    examples = [question(number, pictures(number % 7)) for number in range(10)]
    write_examples(tmp_path / "one.parquet", examples)
    by_hand = [
        {name: getattr(one, name, None) for name in ONE_IMAGE.names} | {"image": one.images[0]}
        for one in examples
    ]
    with pq.ParquetWriter(tmp_path / "hand.parquet", ONE_IMAGE) as writer:
        for start in range(0, 10, 4):
            part = by_hand[start : start + 4]
            writer.write_table(pa.Table.from_pylist(part, schema=ONE_IMAGE))
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "hand.parquet").read_bytes()
    # The last row has two: the rows before it are written again.
    late = [*examples, question(10, pictures(1, 2)), question(11, ())]
    write_examples(tmp_path / "late.parquet", late)
    assert read(tmp_path / "late.parquet") == late
    # Only the shard that needs them has the other columns; both are one data set.
    monkeypatch.setattr(
        "rarl.data.parquet.SHARD_BYTES", sum(len(one.images[0]) for one in examples)
    )
    write_split(tmp_path / "split.parquet", [*examples, *late])
    files = sorted((tmp_path / "split.parquet").iterdir())
    assert "image" in pq.read_schema(files[0]).names
    assert "images" in pq.read_schema(files[-1]).names
    assert read(tmp_path / "split.parquet") == [*examples, *late]
    assert ParquetRows(tmp_path / "split.parquet").most_images == 2


def faults_of(tmp_path: Path, *examples: Example, **check: Any) -> list[str | None]:
    write_examples(tmp_path / "rows.parquet", examples)
    rows = list(range(len(examples)))
    found = RowCheck(**check).facts_in(str(tmp_path / "rows.parquet"), rows)
    return [facts["reason"] for facts in found]


def test_each_fault_of_several_images_names_image_and_reason(tmp_path: Path) -> None:
    three = pictures(0, 1, 2)
    many = pictures(*range(40))
    told = faults_of(
        tmp_path,
        question(0, three, image_labels=LABELS),
        question(1, (three[0], b"no picture", three[2])),
        question(2, three, image_labels=LABELS[:2]),
        question(3, many[:16]),
        question(4, many),
        question(5, (three[0], three[1], three[0])),
        question(6, ()),
        question(7, three, image_labels=("frontal", " ", "prior")),
        question(8, three, image_labels=("frontal", "<|image_pad|>", "prior")),
        question(9, ()),
    )
    sound = [place for place, reason in enumerate(told) if reason is None]
    assert sound == [0, 3, 6, 9]
    for place, part in {
        1: "example 'q1': image 2 of 3 cannot be decoded",
        2: "example 'q2': 3 images but 2 image_labels",
        4: "example 'q4': 40 images are more than 16 (data.max_images)",
        5: "example 'q5': image 3 is the same as image 1",
        7: "example 'q7': a label is empty among ['frontal', ' ', 'prior']",
        8: "example 'q8': an image label has '<|image_pad|>'",
    }.items():
        assert part in str(told[place])
    assert faults_of(tmp_path, question(0, many), most_images=40) == [None]
    report, is_sound = check_datasets([tmp_path / "rows.parquet"])
    assert not is_sound and "40 images are more than 16" in report


def test_an_empty_cell_is_no_question_of_text(tmp_path: Path) -> None:
    """What lost its image must not be asked without one in silence."""
    write_examples(tmp_path / "rows.parquet", [question(0, (b"",)), question(1, pictures(1))])
    (lost, sound) = RowCheck().facts_in(str(tmp_path / "rows.parquet"), [0, 1])
    assert "image cannot be decoded" in lost["reason"] and sound["reason"] is None


sizes = st.lists(st.tuples(st.integers(20, 900), st.integers(20, 900)), min_size=1, max_size=6)


@given(sizes=sizes, budget=st.integers(3136, 600_000))
def test_images_share_their_pixels(
    processor: Any, sizes: list[tuple[int, int]], budget: int
) -> None:
    rule = processor.image_processor
    bound = pixels_of_each(sizes, rule, budget)
    areas = [math.prod(fitted_size(*size, rule, bound)) for size in sizes]
    alone = [math.prod(fitted_size(*size, rule, budget)) for size in sizes]
    floor = rule.size["shortest_edge"]
    assert sum(areas) <= max(budget, floor * len(sizes))
    assert all(floor <= area <= own for area, own in zip(areas, alone, strict=True))
    if sum(alone) <= budget:
        assert areas == alone
    # One image has all of it, to the pixel, as before there were several.
    assert pixels_of_each(sizes[:1], rule, budget) == budget
    # No order is better than another.
    assert pixels_of_each(sizes[::-1], rule, budget) == bound


def test_lengths_are_those_of_the_prepared_prompts(processor: Any, model_path: str) -> None:
    plan = training_prompts(PromptsConfig(train={"plain": 1.0}), seed=0)
    for budget in (None, 20_000):
        rule = LengthRule(model_path, budget, plan.longest, 64)
        for count, labels in ((0, None), (1, ("now",)), (2, None), (3, LABELS)):
            images = tuple(picture(n, size=(60 + 90 * n, 200)) for n in range(count))
            example = question(count, images, image_labels=labels)
            shown = [decode_image(image) for image in images]
            found = rule.lengths(example, [(i.height, i.width) for i in shown], processor)
            prepared = prepare_example(example, processor, plan, budget)
            ids = prepared.prompt_token_ids
            image_tokens = int((ids == processor.image_token_id).sum())
            assert found == (len(ids), image_tokens, len(ids) + 64)
            assert len(prepared.pixels) == count
    spoilt = question(9, (), question="What is <|image_pad|>?")
    with pytest.raises(BadImage, match="placeholders are 1 in the prompt, for 0 images"):
        prepare_example(spoilt, processor, plan)


def test_labels_stand_before_their_images_in_order(processor: Any) -> None:
    images = pictures(0, 1, 2)
    text = plain_prompt()(processor, question(0, images, image_labels=LABELS)).text
    parts = text.split(IMAGE_PLACEHOLDER)
    assert len(parts) == 4
    assert [part.split("\n")[-1] for part in parts[:3]] == [f"{label}: " for label in LABELS]
    assert "What is it, 0?" in parts[3]
    alone = plain_prompt()(processor, question(0, images[:1])).text
    bare = plain_prompt()(processor, question(0, images)).text
    assert bare == alone.replace(IMAGE_PLACEHOLDER, IMAGE_PLACEHOLDER * 3)
    assert plain_prompt()(processor, question(0, ())).text == without_images(alone)


def printed(*numbers: int) -> list[ImagePrint]:
    return [image_print(one, decode_image(one)) for one in pictures(*numbers)]


def test_one_shared_image_of_several_is_a_leak() -> None:
    left, right = Side("left"), Side("right")
    known: list[tuple[int, ...]] = [(0, 1), (2,), ()]
    for numbers in known:
        left.add(printed(*numbers), "What?", "a mass")
    rows: list[tuple[tuple[int, ...], str, str]] = [
        ((1, 3), "What?", "a mass"),
        ((4, 5), "What?", "a mass"),
        ((), "What?", "a mass"),
    ]
    rows += [((), "Where?", "left"), ((6, 2), "What?", "a cyst")]
    for shown, asked, answer in rows:
        right.add(printed(*shown), asked, answer)
    leak = find_leak(left, right)
    assert leak.questions == [0, 4]
    assert leak.twins == [0, 2]
    assert leak.same_text == [1]
    assert len(leak.same_images) == 2
    both = Side("both")
    for numbers in ((0, 1), (1, 0), (0, 1), (0,)):
        both.add(printed(*numbers), "What?", "a mass")
    assert both.repeats() == {2: 0}  # another order is another question
    both.add(printed(1, 0), "What?", "a cyst")
    assert both.contradictions() == [[1, 4]]


def test_rows_of_common_images_stay_together() -> None:
    side = Side("all")
    for place, numbers in enumerate([(0, 1), (2,), (1, 3), (4, 5), (3,), (5, 6), (), (), ()]):
        side.add(printed(*numbers), "What?" if place < 8 else "Where?", "a mass")
    groups = groups_of_rows(side).tolist()
    assert groups[0] == groups[2] == groups[4]
    assert groups[3] == groups[5]
    assert groups[6] == groups[7]
    assert len(set(groups)) == 5


def test_shuffled_questions_get_as_many_images() -> None:
    ids, counts = ["a", "b", "c", "d", "e", "f"], [2, 1, 2, 0, 1, 0]
    others = rows_with_other_images(ids, counts, seed=3)
    assert [counts[other] for other in others] == counts
    assert all(ids[other] != ids[row] for row, other in enumerate(others))
    with pytest.raises(UserError, match="needs at least two questions of 2 images"):
        rows_with_other_images(["a", "b", "c"], [2, 1, 1])
    assert rows_with_other_images(["a", "b", "c"], [0, 1, 1]).tolist() == [0, 2, 1]


def test_facts_of_a_row_are_of_all_its_images(tmp_path: Path) -> None:
    examples = [question(0, pictures(0, 1)), question(1, ()), question(2, pictures(1))]
    write_examples(tmp_path / "rows.parquet", examples)
    check = RowCheck(fingerprint)
    found = list(check.facts_in(str(tmp_path / "rows.parquet"), [0, 1, 2]))
    assert [one["images"] for one in found] == [2, 0, 1]
    assert found[0]["contents"][1:] == found[2]["contents"]
    assert [np.frombuffer(look, np.uint64).shape for look in found[0]["looks"]] == [(4,), (4,)]
