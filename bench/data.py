"""How fast examples stream through decode and preprocess, and in how much memory: Ray Data as
training uses it, beside a plain PyTorch DataLoader over the same files, in the same order, with the
same function per example.

    python bench/data.py [--examples 100000] [--cores 2] [--json rows.json]

Exits with 1 where a process of the Ray Data stream needed more than BOUND_MB, or an example is
missing or out of order.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from measure import write_rows
from PIL import Image

from rarl.data.order import StepOrder
from rarl.data.parquet import ParquetRows, write_examples
from rarl.data.prepared import prepare_example
from rarl.data.stream import PreparerSettings, training_stream, unpack
from rarl.prompts import plain_prompt
from rarl.schema import Example
from rarl.tiny.dataset import base_model

BOUND_MB = 1536
SHARD_ROWS = 5_000
SIDE = 256  # pixels of the generated pictures
PER_STEP = 32
POLL_SECONDS = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--examples", type=int, default=100_000)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rarl-bench-data-") as folder:
        started = time.perf_counter()
        generate(Path(folder), asked.examples, asked.cores)
        megabytes = sum(p.stat().st_size for p in Path(folder).iterdir()) / 1e6
        seconds = time.perf_counter() - started
        print(f"{asked.examples:,} examples, {megabytes:,.0f} MB, generated in {seconds:.0f} s")
        order = StepOrder(np.arange(asked.examples), PER_STEP, seed=0)
        steps = asked.examples // PER_STEP
        held: list[int] = []
        rows = [
            measure(
                "Ray Data",
                lambda: ray_stream(folder, order, steps, asked.cores, held),
                order,
                steps,
            ),
            measure(
                "DataLoader", lambda: plain_loader(folder, order, steps, asked.cores), order, steps
            ),
        ]
    for row in rows:
        print(
            f"{row['system']:11} {row['rate']:7.1f} examples/s   "
            f"largest process {row['peak_mb']:6.0f} MB, "
            f"of which its own {row['own_mb']:6.0f} MB ({row['largest']})"
        )
    rows[0]["store_bytes"] = sum(held) / rows[0]["examples"]
    print(f"an example takes {rows[0]['store_bytes'] / 1000:,.0f} kB of the object store")
    write_rows(asked.json, rows)
    if rows[0]["peak_mb"] > BOUND_MB or not all(row["in_order"] for row in rows):
        sys.exit(
            f"a process needed more than {BOUND_MB} MB, or the examples are not those that were "
            "asked for"
        )


def generate(folder: Path, count: int, cores: int) -> None:
    with ProcessPoolExecutor(cores) as pool:
        list(pool.map(write_shard, [(folder, first, min(SHARD_ROWS, count - first)) for first in
                                    range(0, count, SHARD_ROWS)]))  # fmt: skip


def write_shard(asked: tuple[Path, int, int]) -> None:
    folder, first, count = asked
    write_examples(folder / f"{first:08d}.parquet", (make_example(first + i) for i in range(count)))


def make_example(number: int) -> Example:
    """A cloud with grain, no two alike, as JPEG."""
    rng = np.random.default_rng(number)
    cloud = Image.fromarray(rng.integers(0, 255, (8, 8), dtype=np.uint8)).resize(
        (SIDE, SIDE), Image.Resampling.BICUBIC
    )
    grain = rng.integers(0, 24, (SIDE, SIDE), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(np.asarray(cloud) // 8 * 7 + grain).save(out, format="JPEG", quality=85)
    return Example(
        str(number),
        (out.getvalue(),),
        str(number),
        f"Is there a lesion in {number}?",
        "no",
        "closed",
    )


def ray_stream(
    folder: str, order: StepOrder, steps: int, cores: int, held: list[int]
) -> Iterator[list[str]]:
    """Ids of each step; `held` gets the bytes of its examples in the object store."""
    import ray

    ray.init("local", num_cpus=cores, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    settings = PreparerSettings(folder, str(base_model()), plain_prompt())
    stream = training_stream(settings, order, 0, steps, tasks=cores)
    for batch in stream.iter_batches(
        batch_size=PER_STEP, batch_format="pyarrow", prefetch_batches=1
    ):
        held.append(batch["prepared"].nbytes)
        yield [prepared.example.id for prepared in unpack(batch)]
    ray.shutdown()


class Prepared(torch.utils.data.Dataset[Any]):
    """What one would write without Ray: random access, decode and preprocess in the loader's
    workers."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.opened: tuple[ParquetRows, Any] | None = None

    def __getitem__(self, row: int) -> Any:
        if self.opened is None:  # in the worker: Parquet files do not survive a fork
            from transformers import AutoProcessor

            self.opened = ParquetRows(self.folder), AutoProcessor.from_pretrained(str(base_model()))
        rows, processor = self.opened
        return prepare_example(rows.read([row])[0], processor, plain_prompt())


def plain_loader(folder: str, order: StepOrder, steps: int, cores: int) -> Iterator[list[str]]:
    batches = [order.rows_of(step).tolist() for step in range(steps)]
    loader = torch.utils.data.DataLoader(
        Prepared(folder),
        batch_sampler=batches,
        num_workers=cores,
        collate_fn=list,
        multiprocessing_context="spawn",
    )
    for batch in loader:
        yield [prepared.example.id for prepared in batch]


@dataclass
class Memory:
    """The most that any process of ours held: pid → (resident, of which not shared) in MB, and its
    name."""

    peaks: dict[int, tuple[float, float, str]] = field(default_factory=dict)
    done: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        me = psutil.Process()
        while not self.done.wait(POLL_SECONDS):
            for process in [me, *me.children(recursive=True)]:
                try:
                    held, name = process.memory_info(), " ".join(process.cmdline()[:1])[-40:]
                except psutil.Error:
                    continue
                before = self.peaks.get(process.pid, (0.0, 0.0, name))
                own = (held.rss - held.shared) / 2**20
                self.peaks[process.pid] = (
                    max(held.rss / 2**20, before[0]),
                    max(own, before[1]),
                    name,
                )


def measure(
    name: str, stream: Callable[[], Iterator[list[str]]], order: StepOrder, steps: int
) -> dict[str, Any]:
    """Rate from the first step's arrival on: starting the workers is not part of it."""
    memory = Memory()
    watcher = threading.Thread(target=memory.watch, daemon=True)
    watcher.start()
    in_order, started, step = True, 0.0, -1
    for step, ids in enumerate(stream()):
        started = started or time.perf_counter()
        in_order = in_order and ids == [str(row) for row in order.rows_of(step)]
        elapsed = time.perf_counter() - started
        if step and step % max(1, steps // 10) == 0:
            print(
                f"  {name}: {step * PER_STEP:,} examples, {step * PER_STEP / elapsed:.1f}/s",
                flush=True,
            )
    memory.done.set()
    watcher.join()
    peak, own, largest = max(memory.peaks.values())
    return {
        "system": name,
        "examples": (step + 1) * PER_STEP,
        "rate": step * PER_STEP / elapsed,
        "peak_mb": peak,
        "own_mb": own,
        "largest": largest,
        "in_order": in_order and step + 1 == steps,
        "cores": os.cpu_count(),
    }


if __name__ == "__main__":
    main()
