"""Some questions of a data set, prepared in this process: for commands that ask a few."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rarl.commands.resolve import Setup
from rarl.data.parquet import ParquetRows
from rarl.data.prepared import RenderPrompt, prepare_example
from rarl.data.stream import load_processor
from rarl.schema import PreparedExample

STEP = 0  # whose prompts are drawn, where prompts differ by step; training begins with 1


def draw_rows(rows: NDArray[np.int64], most: int, seed: int) -> list[int]:
    """Returns up to `most` of the rows, drawn evenly, in their order."""
    return sorted(np.random.default_rng(seed).permutation(rows)[:most].tolist())


def prepare_questions(
    setup: Setup, data: str, rows: Sequence[int], prompts: RenderPrompt
) -> list[PreparedExample]:
    """Returns the examples of these rows with their prompts, in their order."""
    processor, most = load_processor(setup.model_path), setup.config.data.max_pixels
    return [
        prepare_example(one, processor, prompts, most, STEP) for one in ParquetRows(data).read(rows)
    ]
