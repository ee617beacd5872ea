"""The Ray Data streams: prepared examples in the order of the steps, or in the order of the rows."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import Dataset, TaskPoolStrategy

from rarl.data.check import READ_CPUS
from rarl.data.controls import blank_image
from rarl.data.order import StepOrder
from rarl.data.parquet import ParquetRows
from rarl.data.prepare import PreparedExample, RenderPrompt, prepare_example

# Of all processes that prepare examples or train.
WORKER_ENVIRONMENT = {"env_vars": {"TOKENIZERS_PARALLELISM": "false"}}


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
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(model_path)


@functools.lru_cache(maxsize=2)
def open_rows(data_path: str) -> ParquetRows:
    """Kept with the row groups that it has read, since the steps of a stream come back to them. A process serves one
    Ray job, in which data do not change."""
    return ParquetRows(data_path)


def prepare_block(block: pa.Table, settings: PreparerSettings) -> pa.Table:
    """A Ray Data task: row numbers in, prepared examples out."""
    rows, processor = open_rows(settings.data_path), load_processor(settings.model_path)
    examples = rows.read(block["row"].to_pylist())
    if "image_row" in block.column_names:
        others = rows.read(block["image_row"].to_pylist())
        examples = [replace(e, image=other.image) for e, other in zip(examples, others, strict=True)]
    if settings.blank:
        examples = [replace(e, image=blank_image(e.image)) for e in examples]
    steps = block["step"].to_pylist() if "step" in block.column_names else [None] * len(examples)
    prepared = [
        prepare_example(e, processor, settings.render, settings.max_pixels, step)
        for e, step in zip(examples, steps, strict=True)
    ]
    # One opaque column: the pieces are ragged arrays, which Arrow would copy and pad.
    return block.append_column("prepared", pa.array([pickle.dumps(p) for p in prepared], pa.large_binary()))


def prepared_stream(settings: PreparerSettings, blocks: list[pa.Table]) -> Dataset:
    """Streams the rows named in `blocks` (column `row`; `image_row`, where another row's image is to be shown) through
    preparers, keeping their order."""
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    return ray.data.from_arrow(blocks).map_batches(
        prepare_block,
        fn_kwargs={"settings": settings},
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=READ_CPUS,
        compute=TaskPoolStrategy(size=max(1, int(ray.cluster_resources()["CPU"]) // 4)),
        # Tasks, not actors, and all in this environment: the next stream finds their processes with all imported.
        runtime_env=WORKER_ENVIRONMENT,
    )


def training_stream(settings: PreparerSettings, order: StepOrder, start: int, stop: int) -> Dataset:
    """Steps `start` to `stop` - 1, a block each, with the columns `step`, `row` and `prepared`."""
    blocks = []
    for step in range(start, stop):
        rows = order.rows_of(step)
        blocks.append(pa.table({"step": np.full(len(rows), step), "row": rows}))
    return prepared_stream(settings, blocks)


def ordered_stream(
    settings: PreparerSettings, rows: np.ndarray, image_rows: np.ndarray | None = None, block_rows: int = 32
) -> Dataset:
    """The given rows in the given order, for evaluation; with the images of `image_rows` where these are given."""
    columns = {"row": rows} if image_rows is None else {"row": rows, "image_row": image_rows}
    whole = pa.table(columns)
    return prepared_stream(settings, [whole.slice(i, block_rows) for i in range(0, len(rows), block_rows)])


def unpack(batch: dict[str, Any] | pa.Table) -> list[PreparedExample]:
    """The `prepared` column of a batch."""
    column: Iterable[bytes] = batch["prepared"].to_pylist() if isinstance(batch, pa.Table) else batch["prepared"]
    return [pickle.loads(value) for value in column]
