"""The Ray Data streams: prepared examples in the order of the steps, or in the order of the
rows."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import Dataset, ExecutionResources, TaskPoolStrategy

from rarl.data.controls import blank_image
from rarl.data.order import StepOrder
from rarl.data.parquet import ParquetRows
from rarl.data.prepared import PreparedExample, RenderPrompt, prepare_example
from rarl.system.imports import quick_imports
from rarl.system.placement import READ_CPUS

STREAM_BYTES = 512 << 20  # of prepared examples that wait in Ray's object store
ROWS_AT_ONCE = 32  # that a preparer holds
MOST_BLOCKS = 1000  # of a stream; above it a block holds several steps

# Of all processes that prepare examples or train. Ray gives a task a process that is up, with all
# that it has imported, only where every variable is the same, so this has those too that Ray Train
# adds for its workers' tasks.
OF_RAY_TRAIN = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # by default 2 s: how late the end is noticed
    # an actor that would tell the workers, who have no use for it
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
WORKER_ENVIRONMENT = {
    "env_vars": {
        "TOKENIZERS_PARALLELISM": "false",
        "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",
        **OF_RAY_TRAIN,
    }
}


@dataclass(frozen=True)
class PreparerSettings:
    """What a Ray Data worker needs to prepare rows: picklable, no models."""

    data_path: str
    model_path: str
    render: RenderPrompt
    max_pixels: int | None = None
    blank: bool = False  # grey pictures in place of the data's


@functools.cache
def load_processor(model_path: str) -> Any:
    """Once per process: the import alone takes 5 s of a core."""
    with quick_imports():
        from transformers import AutoProcessor

        return AutoProcessor.from_pretrained(model_path)


def warm_up(model_path: str) -> ray.ObjectRef:
    """Has a process for the first stream load the processor meanwhile. Lasts while the reference is
    held."""
    return ray.remote(num_cpus=READ_CPUS, runtime_env=WORKER_ENVIRONMENT)(load_and_keep).remote(
        model_path
    )


def load_and_keep(model_path: str) -> None:
    load_processor(model_path)


@functools.lru_cache(maxsize=2)
def open_rows(data_path: str) -> ParquetRows:
    """Kept with the row groups that it has read, since the steps of a stream come back to them. A
    process serves one Ray job, in which data do not change."""
    return ParquetRows(data_path)


def prepare_block(block: pa.Table, settings: PreparerSettings) -> Iterator[pa.Table]:
    """A Ray Data task: row numbers in, prepared examples out. A few rows at a time, so that a block
    of large images is never in memory as a whole."""
    for start in range(0, len(block), ROWS_AT_ONCE):
        yield prepare_rows(block.slice(start, ROWS_AT_ONCE), settings)


def prepare_rows(block: pa.Table, settings: PreparerSettings) -> pa.Table:
    rows, processor = open_rows(settings.data_path), load_processor(settings.model_path)
    examples = rows.read(block["row"].to_pylist())
    if "image_row" in block.column_names:
        others = rows.read(block["image_row"].to_pylist())
        examples = [
            replace(e, image=other.image) for e, other in zip(examples, others, strict=True)
        ]
    if settings.blank:
        examples = [replace(e, image=blank_image(e.image)) for e in examples]
    steps = block["step"].to_pylist() if "step" in block.column_names else [None] * len(examples)
    prepared = [
        prepare_example(e, processor, settings.render, settings.max_pixels, step)
        for e, step in zip(examples, steps, strict=True)
    ]
    # One opaque column: the pieces are ragged arrays, which Arrow would copy and pad.
    return block.append_column(
        "prepared", pa.array([pickle.dumps(p) for p in prepared], pa.large_binary())
    )


def prepared_stream(
    settings: PreparerSettings, blocks: list[pa.Table], tasks: int | None = None
) -> Dataset:
    """Streams the rows named in `blocks` (column `row`; `image_row`, where another row's image is
    to be shown) through preparers, keeping their order. `tasks` read and prepare that many blocks
    at once; by default as many as the machine has work for, up to half of its cores."""
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    most = max(1, int(ray.cluster_resources()["CPU"]) // 2)
    return ray.data.from_arrow(blocks).map_batches(
        prepare_block,
        fn_kwargs={"settings": settings},
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=READ_CPUS,
        compute=TaskPoolStrategy(size=tasks or most),
        # Tasks, not actors, and all in this environment: the next stream finds their processes with
        # all imported.
        runtime_env=WORKER_ENVIRONMENT,
    )


def training_stream(
    settings: PreparerSettings,
    order: StepOrder,
    start: int,
    stop: int,
    rank: int = 0,
    workers: int = 1,
    tasks: int | None = None,
) -> Dataset:
    """Steps `start` to `stop` - 1 with the columns `step`, `row` and `prepared`. What is prepared
    and not yet taken is bounded by STREAM_BYTES, however much data there is."""
    stream = prepared_stream(settings, step_blocks(order, start, stop, rank, workers), tasks)
    stream.context.execution_options.resource_limits = ExecutionResources(
        object_store_memory=STREAM_BYTES
    )
    return stream


def step_blocks(
    order: StepOrder, start: int, stop: int, rank: int = 0, workers: int = 1
) -> list[pa.Table]:
    """What the stream is made from: `step` and `row`, a block a step, or several where there are
    many."""
    per_block = max(1, -(-(stop - start) // MOST_BLOCKS))
    blocks = []
    for first in range(start, stop, per_block):
        steps = [
            (step, order.rows_of(step)[rank::workers])
            for step in range(first, min(first + per_block, stop))
        ]
        rows = np.concatenate([rows for _, rows in steps])
        blocks.append(
            pa.table({"step": np.concatenate([np.full(len(r), s) for s, r in steps]), "row": rows})
        )
    return blocks


def ordered_stream(
    settings: PreparerSettings,
    rows: np.ndarray,
    image_rows: np.ndarray | None = None,
    block_rows: int = 32,
) -> Dataset:
    """The given rows in the given order, for evaluation; with the images of `image_rows` where
    these are given."""
    columns = {"row": rows} if image_rows is None else {"row": rows, "image_row": image_rows}
    whole = pa.table(columns)
    return prepared_stream(
        settings, [whole.slice(i, block_rows) for i in range(0, len(rows), block_rows)]
    )


def unpack(batch: dict[str, Any] | pa.Table) -> list[PreparedExample]:
    """The `prepared` column of a batch."""
    column = batch["prepared"]
    values: Iterable[Any] = (
        (v.as_buffer() for v in column) if isinstance(batch, pa.Table) else column
    )
    return [pickle.loads(value) for value in values]


def step_batches(shard: Any, first: int) -> Iterator[tuple[int, list[PreparedExample]]]:
    """temporary"""
    number, held = None, []
    for batch in shard.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
        for step, one in zip(batch["step"].to_pylist(), unpack(batch), strict=True):
            if number is not None and step + 1 != number:
                if number > first:
                    yield number, held
                held = []
            number = step + 1
            held.append(one)
    if held and number > first:
        yield number, held
