"""Parquet, images, checks and the order of training."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rarl.data.check import check_rows
from rarl.data.columns import ONE_IMAGE, SCHEMA
from rarl.data.images import BadImage, decode_image, fit_image
from rarl.data.order import StepOrder, sampling_seed
from rarl.data.parquet import ParquetRows, write_examples
from rarl.data.prepared import prepare_example
from rarl.data.stream import PreparerSettings, ordered_stream, training_stream, unpack
from rarl.errors import UserError
from rarl.prompts import plain_prompt
from rarl.schema import Example
from tests.pictures import write_folder
from tests.runs import REPOSITORY, environment


def encode(array: Any, kind: str = "PNG", mode: str | None = None) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array, mode).save(out, format=kind)
    return out.getvalue()


def test_examples_survive_parquet_in_any_order(tmp_path: Path, examples: list[Example]) -> None:
    many = [replace(example, id=f"{i}-{example.id}") for i in range(5) for example in examples]
    write_examples(tmp_path / "a" / "part-0.parquet", many[:70])
    write_examples(tmp_path / "a" / "part-1.parquet", many[70:])
    rows = ParquetRows(tmp_path / "a")
    assert len(rows) == len(many)
    order = np.random.default_rng(0).permutation(len(many))
    assert rows.read(order.tolist()) == [many[i] for i in order]


NEW_FIELDS = """
import dataclasses, json, sys
from pathlib import Path
import rarl.schema

@dataclasses.dataclass(frozen=True)
class Wider(rarl.schema.Example):
    site: str | None = None
    scanner: str = ""

rarl.schema.Example = Wider
from rarl.data.parquet import ParquetRows
from rarl.prepare.convert import prepare_dataset
from rarl.data.prepared import prepare_example

src, out, old = map(Path, sys.argv[1:])
report = prepare_dataset("folder", src, out)
read = lambda path: [[e.id, e.organ, e.site, e.scanner] for e in ParquetRows(path).read([0, 1])]
print(json.dumps([read(out / "train.parquet"), read(old), report]))
"""


def test_a_new_text_field_of_an_example_is_read_and_written_with_no_further_edit(
    tmp_path: Path, examples: list[Example]
) -> None:
    """A column of that name in a table of one's own travels too; files that were written before
    are read all the same."""
    rows: list[dict[str, Any]] = [
        {"image": "0.png", "question": "What?", "answer": "x", "Site": " left ", "scanner": 7.0},
        {"image": "1.png", "question": "What?", "answer": "x", "organ": "lung", "ward": "B"},
    ]
    write_folder(tmp_path / "src", rows)
    write_examples(tmp_path / "old.parquet", examples[:2])
    places = [str(tmp_path / name) for name in ("src", "out", "old.parquet")]
    program = [sys.executable, "-c", NEW_FIELDS, *places]
    done = subprocess.run(
        program, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, check=True
    )
    new, old, report = json.loads(done.stdout)
    assert new == [["row-1", None, "left", "7"], ["row-2", "lung", None, ""]]
    assert old == [[example.id, example.organ, None, ""] for example in examples[:2]]
    assert "further columns that go along: ward;" in report
    # What such a data set has more is no obstacle to a program that does not know it.
    prepared = ParquetRows(tmp_path / "out" / "train.parquet")
    assert [example.organ for example in prepared.read([0, 1])] == [None, "lung"]


def test_the_columns_are_what_they_always_were() -> None:
    columns = {"id", "image", "image_id", "question", "answer", "answer_type"}
    assert {field.name for field in ONE_IMAGE if not field.nullable} == columns
    optional = {"options", "rationale", "modality", "organ", "dataset", "split", "extra"}
    optional |= {"facts", "other_facts", "patient", "study", "site"}
    optional |= {"rationale_source", "rationale_status", "also_right", "boxes"}
    assert {field.name for field in ONE_IMAGE if field.nullable} == optional
    assert ONE_IMAGE.field("image").type == pa.binary()
    more = {"images", "image_labels"}
    assert {*SCHEMA.names} == {*ONE_IMAGE.names} - {"image"} | more
    assert SCHEMA.field("options").type == pa.list_(pa.string())
    assert {str(f.type) for f in SCHEMA if f.name in ("id", "organ", "split")} == {"string"}
    assert SCHEMA.field("extra").type == pa.map_(pa.string(), pa.string())


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, examples: list[Example]) -> None:
    def failing() -> Any:
        yield examples[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_examples(tmp_path / "out.parquet", failing())
    assert list(tmp_path.iterdir()) == []


def test_missing_file_missing_column_and_empty_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such Parquet file"):
        ParquetRows(tmp_path / "none.parquet")
    pq.write_table(
        pa.table({"id": ["1"], "image": [b""], "image_id": ["1"]}), tmp_path / "columns.parquet"
    )
    with pytest.raises(UserError, match="column 'question' is missing"):
        ParquetRows(tmp_path / "columns.parquet")
    (tmp_path / "text.parquet").write_text("not parquet")
    with pytest.raises(UserError, match="not a readable Parquet file"):
        ParquetRows(tmp_path / "text.parquet")
    write_examples(tmp_path / "empty.parquet", [])
    with pytest.raises(UserError, match="holds no rows"):
        ParquetRows(tmp_path / "empty.parquet")


def test_images_of_every_kind_become_rgb() -> None:
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 255, (30, 40), dtype=np.uint8)
    for encoded in (
        encode(grey),
        encode(grey, "JPEG"),
        encode(rng.integers(0, 255, (30, 40, 4), dtype=np.uint8)),
        encode(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8), "BMP"),
    ):
        image = decode_image(encoded)
        assert (image.mode, image.size) == ("RGB", (40, 30))


def test_sixteen_bit_greys_use_their_own_range() -> None:
    ramp = np.linspace(1000, 3000, 100).astype(np.uint16).reshape(10, 10)
    pixels = np.asarray(decode_image(encode(ramp)))
    assert pixels.min() == 0
    assert pixels.max() == 255
    assert (np.diff(pixels[..., 0].ravel().astype(int)) >= 0).all()


@pytest.mark.parametrize("damage", ["empty", "text", "truncated"])
def test_damaged_images_are_refused(damage: str) -> None:
    whole = encode(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8), "JPEG")
    encoded = {"empty": b"", "text": b"hello", "truncated": whole[: len(whole) // 2]}[damage]
    with pytest.raises(BadImage, match="cannot be decoded"):
        decode_image(encoded)


@pytest.mark.parametrize(
    "size", [(112, 112), (512, 512), (1310, 1024), (30, 1000), (3000, 30), (8, 8), (57, 111)]
)
@pytest.mark.parametrize("max_pixels", [None, 6000])
def test_fitted_images_are_left_alone_by_the_processor(
    processor: Any, size: tuple[int, int], max_pixels: int | None
) -> None:
    image = Image.effect_noise(size, 50).convert("RGB")
    pixels = fit_image(image, processor.image_processor, max_pixels)
    height, width = pixels.shape[:2]
    assert height % 28 == 0
    assert width % 28 == 0
    assert height * width <= (max_pixels or 112 * 112)
    grid = processor.image_processor(images=[pixels], return_tensors="np")["image_grid_thw"][0]
    assert grid.tolist() == [1, height // 14, width // 14]


def test_extreme_shapes_and_impossible_bounds_are_named(processor: Any) -> None:
    with pytest.raises(BadImage, match="aspect ratio"):
        fit_image(Image.new("RGB", (3000, 10)), processor.image_processor, None)
    with pytest.raises(UserError, match=r"data\.max_pixels=100 is below"):
        fit_image(Image.new("RGB", (50, 50)), processor.image_processor, 100)


def test_order_visits_every_row_once_an_epoch_and_depends_on_seed_and_step_alone() -> None:
    rows = np.array([3, 5, 8, 13, 21, 34, 55])
    order = StepOrder(rows, prompts_per_step=3, seed=1)
    visited = np.concatenate([order.rows_of(step) for step in range(7)])
    for epoch in visited.reshape(3, 7):
        assert sorted(epoch) == rows.tolist()
    assert (visited[:7] != visited[7:14]).any()
    again = StepOrder(rows, 3, 1)
    assert (again.rows_of(5) == order.rows_of(5)).all()
    assert (StepOrder(rows, 3, 2).rows_of(0) != order.rows_of(0)).any()
    # more prompts than rows: several epochs in a step
    assert len(StepOrder(rows[:2], 5, 0).rows_of(0)) == 5


def test_sampling_seeds_do_not_repeat() -> None:
    seeds = {
        sampling_seed(s, t, p, 8) + g
        for s in range(3)
        for t in range(20)
        for p in range(16)
        for g in range(8)
    }
    assert len(seeds) == 3 * 20 * 16 * 8
    assert max(seeds) < 2**63


def test_the_stream_gives_each_step_its_rows_and_can_start_anywhere(
    ray_cluster: None, dataset: Path, model_path: str, processor: Any
) -> None:
    settings = PreparerSettings(str(dataset), model_path, plain_prompt())
    order = StepOrder(np.arange(24), prompts_per_step=5, seed=3)
    whole = list(
        training_stream(settings, order, 0, 9).iter_batches(batch_size=5, batch_format="pyarrow")
    )
    assert [batch["step"][0].as_py() for batch in whole] == list(range(9))
    rows = ParquetRows(dataset)
    for step, batch in enumerate(whole):
        prepared = unpack(batch)
        wanted = rows.read(order.rows_of(step).tolist())
        assert [p.example.id for p in prepared] == [e.id for e in wanted]
        expected = prepare_example(wanted[0], processor, plain_prompt())
        assert prepared[0].prompt == expected.prompt
        assert (prepared[0].prompt_token_ids == expected.prompt_token_ids).all()
        assert prepared[0].patch_rule == expected.patch_rule
        assert all(map(np.array_equal, prepared[0].pixels, expected.pixels))
    tail = list(
        training_stream(settings, order, 6, 9).iter_batches(batch_size=5, batch_format="pyarrow")
    )
    assert [b["row"].to_pylist() for b in tail] == [b["row"].to_pylist() for b in whole[6:]]


def test_the_evaluation_stream_keeps_the_order_of_rows(
    ray_cluster: None, dataset: Path, model_path: str
) -> None:
    stream = ordered_stream(
        PreparerSettings(str(dataset), model_path, plain_prompt()),
        np.arange(24)[::-1].copy(),
        block_rows=4,
    )
    found = [
        p.example.id
        for batch in stream.iter_batches(batch_size=7, batch_format="pyarrow")
        for p in unpack(batch)
    ]
    assert found == [e.id for e in ParquetRows(dataset).read(list(range(24))[::-1])]


FAULTS = {
    "empty question": {"question": "  "},
    "empty answer": {"answer": ""},
    "not among the options": {
        "answer": "spleen",
        "answer_type": "choice",
        "options": ("chest", "brain"),
    },
    "no options": {"answer_type": "choice", "options": None},
    "not one of": {"answer_type": "CLOSED "},
    "cannot be decoded": {"images": (b"\xff\xd8\xff broken",)},
}


def with_faults(tmp_path: Path, examples: list[Example]) -> Path:
    """Rows 2, 4, 6, … are bad, each in its own way."""
    rows = list(examples)
    for index, change in enumerate(FAULTS.values()):
        rows[2 + 2 * index] = replace(rows[2 + 2 * index], **change)  # type: ignore[arg-type]
    path = tmp_path / "faulty.parquet"
    write_examples(path, rows)
    return path


def test_the_first_bad_row_is_named(
    ray_cluster: None, tmp_path: Path, examples: list[Example]
) -> None:
    path = with_faults(tmp_path, examples)
    with pytest.raises(UserError) as caught:
        check_rows(str(path), "fail")
    assert f"{path}: row 2: example '{examples[2].id}': the question is empty" in str(caught.value)
    assert "and 5 more bad rows" in str(caught.value)


def test_bad_rows_can_be_skipped_and_are_listed(
    ray_cluster: None, tmp_path: Path, examples: list[Example]
) -> None:
    checked = check_rows(str(with_faults(tmp_path, examples)), "skip")
    assert [bad.row for bad in checked.bad] == [2, 4, 6, 8, 10, 12]
    reasons = [
        "question is empty",
        "answer is empty",
        "not among the options",
        "no options",
        "not one of",
        "decoded",
    ]
    for bad, reason in zip(checked.bad, reasons, strict=True):
        assert reason in bad.reason
    assert checked.good.tolist() == [i for i in range(24) if i not in (2, 4, 6, 8, 10, 12)]


def test_a_data_set_without_a_single_good_row_is_refused(
    ray_cluster: None, tmp_path: Path, examples: list[Example]
) -> None:
    path = tmp_path / "bad.parquet"
    write_examples(path, [replace(example, images=(b"x",)) for example in examples])
    with pytest.raises(UserError, match="not one of the 24 rows can be used"):
        check_rows(str(path), "skip")
