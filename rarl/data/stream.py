"""The Ray Data streams: prepared examples in the order of the steps, or of the rows."""

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

from rarl.data.images import blank_image
from rarl.data.order import StepOrder
from rarl.data.parquet import ParquetRows
from rarl.data.prepared import PreparedExample, RenderPrompt, prepare_example
from rarl.errors import UserError
from rarl.system.imports import quick_imports
from rarl.system.placement import READ_CPUS
from rarl.system.processes import ONE_THREAD

STREAM_BYTES = 512 << 20  # of prepared examples that wait in Ray's object store
ROWS_AT_ONCE = 32  # that a preparer holds
MOST_BLOCKS = 1000  # of a stream; above it a block holds several steps

# The environment of every process that prepares examples or trains, with what Ray Train adds for
# its workers' tasks: Ray reuses a warm process only if every variable is the same.
OF_RAY_TRAIN = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how late the end of a run is noticed
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # an actor that nobody listens to
}
SILENT = {"TOKENIZERS_PARALLELISM": "false", "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0"}
# On a GPU: every micro-batch has other shapes, and blocks of fixed sizes would not be used again.
GROWING = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
WORKER_ENVIRONMENT = {"env_vars": SILENT | GROWING | ONE_THREAD | OF_RAY_TRAIN}


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
    """Returns the model's processor, loaded once per process: the import takes 5 s of a core."""
    with quick_imports():
        from transformers import AutoProcessor

        return AutoProcessor.from_pretrained(model_path)


def warm_up(model_path: str) -> ray.ObjectRef:
    """Has a process load the processor before the first stream needs it. The process is kept while
    the reference is held."""

    # Returns nothing: a processor is not worth a copy in the object store.
    def load() -> None:
        load_processor(model_path)

    return ray.remote(num_cpus=READ_CPUS, runtime_env=WORKER_ENVIRONMENT)(load).remote()


@functools.lru_cache(maxsize=2)
def open_rows(data_path: str) -> ParquetRows:
    """Returns the open files, which keep the row groups that were read for later steps."""
    return ParquetRows(data_path)


def prepare_block(block: pa.Table, settings: PreparerSettings) -> Iterator[pa.Table]:
    """A Ray Data task: row numbers in, prepared examples out, a few rows at a time."""
    for start in range(0, len(block), ROWS_AT_ONCE):
        yield prepare_rows(block.slice(start, ROWS_AT_ONCE), settings)


def prepare_rows(block: pa.Table, settings: PreparerSettings) -> pa.Table:
    rows, processor = open_rows(settings.data_path), load_processor(settings.model_path)
    examples = rows.read(block["row"].to_pylist())
    if "image_row" in block.column_names:
        pairs = zip(examples, rows.read(block["image_row"].to_pylist()), strict=True)
        examples = [replace(example, images=other.images) for example, other in pairs]
    if settings.blank:
        examples = [
            replace(example, images=tuple(map(blank_image, example.images))) for example in examples
        ]
    steps = block["step"].to_pylist() if "step" in block.column_names else [None] * len(examples)
    prepared = [
        prepare_example(example, processor, settings.render, settings.max_pixels, step)
        for example, step in zip(examples, steps, strict=True)
    ]
    # One opaque column: the pieces are ragged arrays, which Arrow would copy and pad.
    pickled = pa.array([pickle.dumps(one) for one in prepared], pa.large_binary())
    return block.append_column("prepared", pickled)


def prepared_stream(
    settings: PreparerSettings, blocks: list[pa.Table], tasks: int | None = None, workers: int = 1
) -> Dataset:
    """Streams the rows named in `blocks` (column `row`; `image_row` if another row's image is to be
    shown) in their order. `tasks` blocks are prepared at once, by default as many as half of the
    cores for all `workers`."""
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    return ray.data.from_arrow(blocks).map_batches(
        prepare_block,
        fn_kwargs={"settings": settings},
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=READ_CPUS,
        # Tasks, not actors, and all in this environment: the next stream finds their processes
        # with all imported.
        compute=TaskPoolStrategy(size=tasks or tasks_at_once(workers)),
        runtime_env=WORKER_ENVIRONMENT,
    )


def tasks_at_once(workers: int = 1) -> int:
    """Returns how many blocks each of `workers` prepares at once: half of the cores for all."""
    return max(1, int(ray.cluster_resources()["CPU"]) // 2 // workers)


def training_stream(
    settings: PreparerSettings,
    order: StepOrder,
    start: int,
    stop: int,
    tasks: int | None = None,
    *,
    rank: int = 0,
    workers: int = 1,
) -> Dataset:
    """Streams steps `start` to `stop` - 1 with the columns `step`, `row`, `share` and `prepared`.
    The train worker of this rank gets the rows rank, rank + workers, … of each step; `share` is
    their number. What is prepared and not yet taken is bounded by STREAM_BYTES for all workers."""
    blocks = step_blocks(order, start, stop, rank, workers)
    return bounded(prepared_stream(settings, blocks, tasks, workers), STREAM_BYTES // workers)


def bounded(stream: Dataset, most: int) -> Dataset:
    """Returns the stream; it is held up while `most` bytes are prepared and not yet taken."""
    limits = ExecutionResources(object_store_memory=most)
    stream.context.execution_options.resource_limits = limits
    return stream


def step_blocks(
    order: StepOrder, start: int, stop: int, rank: int = 0, workers: int = 1
) -> list[pa.Table]:
    """Returns what the stream is made from: `step`, `row` and `share`, a block for each step, or
    for several if there are many."""
    per_block = max(1, -(-(stop - start) // MOST_BLOCKS))
    blocks = []
    for first in range(start, stop, per_block):
        tables = []
        for step in range(first, min(first + per_block, stop)):
            rows = order.rows_of(step)[rank::workers]
            steps, shares = np.full(len(rows), step), np.full(len(rows), len(rows))
            tables.append(pa.table({"step": steps, "row": rows, "share": shares}))
        blocks.append(pa.concat_tables(tables))
    return blocks


def step_batches(
    shard: Any, batch_size: int, first: int
) -> Iterator[tuple[int, list[PreparedExample]]]:
    """Yields (number, prompts) of whole steps after the first `first`; numbers count from 1.

    `shard` is this worker's part of a `training_stream`, which is read `batch_size` rows at a time,
    best as many as it has of a step. A worker that was started again skips what was made since.
    Raises UserError if the stream begins later, since a checkpoint was damaged meanwhile."""
    prompts: list[PreparedExample] = []
    how = {"batch_size": batch_size, "batch_format": "pyarrow", "prefetch_batches": 1}
    for batch in shard.iter_batches(**how):
        for row in range(len(batch)):
            number = batch["step"][row].as_py() + 1
            if number > first + 1:
                newest = f"the newest whole checkpoint is of step {first}"
                advice = "start the same command again"
                raise UserError(f"the data begin with step {number}, but {newest}; {advice}")
            if number <= first:
                continue
            prompts += unpack(batch.slice(row, 1))
            if len(prompts) == batch["share"][row].as_py():
                yield number, prompts
                prompts, first = [], number


def ordered_stream(
    settings: PreparerSettings,
    rows: np.ndarray,
    image_rows: np.ndarray | None = None,
    block_rows: int = 32,
) -> Dataset:
    """Streams the given rows in their order, for evaluation, or with the images of `image_rows`.
    What is prepared and not yet taken is bounded by STREAM_BYTES."""
    columns = {"row": rows} if image_rows is None else {"row": rows, "image_row": image_rows}
    whole, starts = pa.table(columns), range(0, len(rows), block_rows)
    blocks = [whole.slice(start, block_rows) for start in starts]
    return bounded(prepared_stream(settings, blocks), STREAM_BYTES)


def unpack(batch: dict[str, Any] | pa.Table) -> list[PreparedExample]:
    """Returns the examples of a batch's column `prepared`."""
    column: Iterable[Any] = batch["prepared"]
    if isinstance(batch, pa.Table):
        column = (value.as_buffer() for value in column)
    return [pickle.loads(value) for value in column]
