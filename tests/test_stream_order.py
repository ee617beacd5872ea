"""The order of examples: the same with any number of read tasks, after a restart at any step, and a
mixture that gives every data set its share."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from rarl.config import load_config
from rarl.data.check import check_rows
from rarl.data.order import CYCLE, MixtureOrder, StepOrder, exact_shares, step_order
from rarl.data.parquet import ParquetRows, write_examples
from rarl.data.prepared import PreparedExample
from rarl.data.stream import (
    STREAM_BYTES,
    PreparerSettings,
    step_batches,
    step_blocks,
    training_stream,
    unpack,
)
from rarl.errors import UserError
from rarl.prompts import plain_prompt
from rarl.schema import Example
from tests.runs import REPOSITORY

STEPS, PER_STEP = 10, 4


def streamed(
    settings: PreparerSettings, order: StepOrder, start: int = 0, **asked: int
) -> list[list[str]]:
    """Ids by step, as a train worker takes them."""
    stream = training_stream(settings, order, start, STEPS, **asked)
    batches = stream.iter_batches(batch_size=PER_STEP, batch_format="pyarrow")
    return [[prepared.example.id for prepared in unpack(batch)] for batch in batches]


@pytest.fixture
def in_shards(tmp_path: Path, examples: list[Example]) -> Path:
    """24 examples in three files."""
    for number in range(3):
        write_examples(
            tmp_path / "shards" / f"{number}.parquet", examples[8 * number : 8 * number + 8]
        )
    return tmp_path / "shards"


@pytest.mark.slow
def test_the_order_is_the_same_with_any_number_of_read_tasks_and_after_a_restart(
    ray_cluster: None, in_shards: Path, examples: list[Example], model_path: str
) -> None:
    settings, order = (
        PreparerSettings(str(in_shards), model_path, plain_prompt()),
        StepOrder(np.arange(24), PER_STEP, 5),
    )
    expected = [[examples[row].id for row in order.rows_of(step)] for step in range(STEPS)]
    for tasks in (1, 2, 4):
        assert streamed(settings, order, tasks=tasks) == expected, tasks
    for start, tasks in ((1, 2), (7, 1)):
        assert (
            streamed(settings, StepOrder(np.arange(24), PER_STEP, seed=5), start=start, tasks=tasks)
            == expected[start:]
        )
    assert len({i for step in expected[:6] for i in step}) == 24  # an epoch is every example once


def ids(prompts: list[PreparedExample]) -> list[str]:
    return [prepared.example.id for prepared in prompts]


@pytest.mark.slow
@pytest.mark.parametrize("per_step", [5, 6])
def test_the_shares_of_equal_workers_interleave_to_the_same_rows(
    ray_cluster: None, in_shards: Path, examples: list[Example], model_path: str, per_step: int
) -> None:
    """With five prompts a step the workers have unequal shares."""
    settings = PreparerSettings(str(in_shards), model_path, plain_prompt())
    order = StepOrder(np.arange(24), per_step, seed=5)
    expected = [[examples[row].id for row in order.rows_of(step)] for step in range(STEPS)]
    for workers in (1, 2, 3):
        found = [[""] * per_step for _ in range(STEPS)]
        for rank in range(workers):
            stream = training_stream(settings, order, 0, STEPS, rank=rank, workers=workers)
            limits = stream.context.execution_options.resource_limits
            assert limits.object_store_memory == STREAM_BYTES // workers
            batches = list(step_batches(stream, -(-per_step // workers), first=0))
            assert [number for number, _ in batches] == list(range(1, STEPS + 1))
            for number, prompts in batches:
                found[number - 1][rank::workers] = ids(prompts)
        assert found == expected, workers
    stream = training_stream(settings, order, 4, STEPS, rank=1, workers=2)
    numbers = [(number, ids(prompts)) for number, prompts in step_batches(stream, 3, first=6)]
    assert numbers == [(step + 1, expected[step][1::2]) for step in range(6, STEPS)]


class Shard:
    """Pickled numbers in place of examples: what a stream of this share hands out."""

    def __init__(self, start: int, rank: int, workers: int, per_step: int) -> None:
        order = StepOrder(np.arange(24), per_step, seed=5)
        rows = pa.concat_tables(step_blocks(order, start, STEPS, rank, workers))
        pickled = [pickle.dumps(row) for row in rows["row"].to_pylist()]
        self.rows = rows.append_column("prepared", pa.array(pickled, pa.large_binary()))

    def iter_batches(self, batch_size: int, **_: Any) -> Iterator[pa.Table]:
        for start in range(0, len(self.rows), batch_size):
            yield self.rows.slice(start, batch_size)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 7, 100])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_steps_are_cut_by_their_column_whatever_the_batches_hold(
    batch_size: int, workers: int
) -> None:
    order = StepOrder(np.arange(24), 5, seed=5)
    for rank in range(workers):
        found = list(step_batches(Shard(2, rank, workers, 5), batch_size, first=3))
        expected = [(s + 1, order.rows_of(s)[rank::workers].tolist()) for s in range(3, STEPS)]
        assert found == expected


def test_a_step_is_handed_out_as_soon_as_its_rows_are_there() -> None:
    """Without waiting for the first row of the next one."""
    shard, taken = Shard(0, 0, 2, 5), 0

    def counted(batch_size: int, **_: Any) -> Iterator[pa.Table]:
        nonlocal taken
        for batch in Shard.iter_batches(shard, batch_size):
            taken += 1
            yield batch

    shard.iter_batches = counted  # type: ignore[method-assign]
    for number, _ in step_batches(shard, 3, first=0):
        assert taken == number


def test_data_that_begin_after_the_newest_checkpoint_are_refused() -> None:
    with pytest.raises(UserError, match=r"begin with step 3, but .* is of step 1; start"):
        next(step_batches(Shard(2, 0, 1, 4), 4, first=1))


@pytest.mark.parametrize("most_blocks", [1000, 3])
def test_what_a_stream_is_made_from_is_the_same_from_any_step_on(
    most_blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every start: the streams above keep the order of these blocks."""
    monkeypatch.setattr("rarl.data.stream.MOST_BLOCKS", most_blocks)
    whole = StepOrder(np.arange(24), PER_STEP, seed=5)
    for start in range(STEPS):
        fresh = StepOrder(np.arange(24), PER_STEP, seed=5)
        for step in range(start, STEPS):
            rows = pa.concat_tables(step_blocks(fresh, start, STEPS))
            assert (
                rows.filter(pc.equal(rows["step"], step))["row"].to_pylist()
                == whole.rows_of(step).tolist()
            )


@pytest.mark.slow
def test_blocks_of_several_steps_give_the_same_order(
    ray_cluster: None, in_shards: Path, model_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, order = (
        PreparerSettings(str(in_shards), model_path, plain_prompt()),
        StepOrder(np.arange(24), PER_STEP, 5),
    )
    one = streamed(settings, order)
    monkeypatch.setattr("rarl.data.stream.MOST_BLOCKS", 3)
    assert streamed(settings, order, tasks=2) == one


def test_the_order_of_the_demo_is_what_it_always_was() -> None:
    """Figures in the documentation depend on it."""
    config = load_config(REPOSITORY / "configs" / "demo.yaml")
    order = StepOrder(np.arange(960), config.train.prompts_per_step, config.seed)
    per_step = config.train.prompts_per_step
    assert (
        order.rows_of(0).tolist()
        == np.random.default_rng([0, 0]).permutation(960)[:per_step].tolist()
    )
    step = 960 // per_step + 1
    second = np.random.default_rng([0, 1]).permutation(960)[per_step : 2 * per_step]
    assert order.rows_of(step).tolist() == second.tolist()


def test_a_mixture_gives_each_data_set_its_share_and_its_own_epochs() -> None:
    small, large = np.arange(0, 30), np.arange(30, 1030)
    order = MixtureOrder([(small, 1.0), (large, 3.0)], prompts_per_step=8, seed=2)
    drawn = np.concatenate([order.rows_of(step) for step in range(500)])  # four cycles
    counts = Counter(int(row) for row in drawn)
    assert sum(counts[int(row)] for row in small) == 1000
    assert sum(counts[int(row)] for row in large) == 3000
    assert {counts[int(row)] for row in small} == {33, 34}  # 1000 draws of 30 rows, epoch by epoch
    assert {counts[int(row)] for row in large} == {3}
    shares = [np.isin(order.rows_of(step), small).mean() for step in range(125)]
    assert 0 < np.std(shares) < 0.25  # mixed within steps, not one after the other
    again = MixtureOrder([(small, 1.0), (large, 3.0)], prompts_per_step=8, seed=2)
    assert (again.rows_of(321) == order.rows_of(321)).all()  # without the steps before it
    assert (MixtureOrder([(small, 1.0), (large, 3.0)], 8, 3).rows_of(0) != order.rows_of(0)).any()


def test_shares_are_whole_and_exact() -> None:
    assert exact_shares(np.array([1.0, 3.0]), CYCLE).tolist() == [250, 750]
    assert exact_shares(np.array([1.0, 1.0, 1.0]), CYCLE).sum() == CYCLE
    assert exact_shares(np.array([1e-9, 1.0, 1e-9]), CYCLE).tolist() == [1, 998, 1]


def write_mixture(tmp_path: Path, examples: list[Example], lines: str) -> Path:
    write_examples(tmp_path / "a.parquet", examples[:8])
    write_examples(
        tmp_path / "b.parquet",
        [replace(e, images=(b"broken",)) for e in examples[8:10]] + examples[10:24],
    )
    (tmp_path / "mixture.yaml").write_text(lines)
    return tmp_path / "mixture.yaml"


@pytest.mark.slow
def test_a_mixture_file_streams_like_a_data_set(
    ray_cluster: None, tmp_path: Path, examples: list[Example], model_path: str
) -> None:
    path = write_mixture(tmp_path, examples, "a.parquet: 3\nb.parquet: 1\n")
    rows = ParquetRows(path)
    assert len(rows) == 24
    checked = check_rows(str(path), "skip")
    assert [bad.row for bad in checked.bad] == [8, 9]
    order = step_order(rows.parts, checked.good, PER_STEP, 0)
    found = streamed(PreparerSettings(str(path), model_path, plain_prompt()), order)
    assert found == [
        [e.id for e in rows.read(order.rows_of(step).tolist())] for step in range(STEPS)
    ]
    first = [order.rows_of(step) for step in range(CYCLE // PER_STEP)]
    assert np.mean(np.concatenate(first) < 8) == 0.75
    assert not np.isin(np.concatenate(first), [8, 9]).any()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("a.parquet: 0\n", "the weight of 'a.parquet' is 0, not a number above 0"),
        ("a.parquet: much\n", "the weight of 'a.parquet' is 'much'"),
        ("a.parquet: .inf\n", "not a number above 0"),
        ("- a.parquet\n", "a mixture is a list of data sets with weights"),
        ("a.parquet: [\n", "not valid YAML"),
        ("none.parquet: 1\n", "none.parquet: no such Parquet file"),
        ("mixture.yaml: 1\n", "'mixture.yaml' is a mixture itself"),
    ],
)
def test_mistakes_in_a_mixture_are_named(
    tmp_path: Path, examples: list[Example], lines: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        ParquetRows(write_mixture(tmp_path, examples, lines))


def test_a_mixture_cannot_draw_from_a_data_set_without_a_usable_row(
    tmp_path: Path, examples: list[Example]
) -> None:
    rows = ParquetRows(write_mixture(tmp_path, examples, "a.parquet: 3\nb.parquet: 1\n"))
    with pytest.raises(UserError, match=r"a\.parquet: not one of its rows can be used"):
        step_order(rows.parts, np.arange(8, 24), PER_STEP, 0)
