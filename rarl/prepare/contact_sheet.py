"""A picture of random examples: each image with its question and answer below it."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np

from rarl.data.images import BadImage, decode_image
from rarl.data.parquet import ParquetRows
from rarl.files import replacing
from rarl.schema import Example

COLUMNS, ROWS = 4, 3
CELL = (3.2, 3.9)  # inches
LINE = 38  # characters of a caption's line
LINES = 4


def sheet_path(data: Path) -> Path:
    """Where the sheet of a prepared folder goes, or of one of its splits."""
    folder = data if data.is_dir() and data.suffix != ".parquet" else data.parent
    return folder / f"{data.stem}-examples.png"


def draw_contact_sheet(rows: ParquetRows, path: Path, seed: int = 0) -> int:
    """Writes a PNG; returns how many examples it shows. The same seed shows the same examples."""
    from matplotlib.figure import Figure  # takes a second to import

    count = min(COLUMNS * ROWS, len(rows))
    chosen = np.random.default_rng(seed).permutation(len(rows))[:count]
    columns = min(COLUMNS, count)
    lines = -(-count // columns)
    figure = Figure(figsize=(CELL[0] * columns, CELL[1] * lines), layout="constrained")
    for place, example in enumerate(rows.read(sorted(chosen.tolist())), start=1):
        axes = figure.add_subplot(lines, columns, place)
        axes.set_axis_off()
        try:
            picture = decode_image(example.image)
            picture.thumbnail((512, 512))
            axes.imshow(np.asarray(picture))
        except BadImage as error:
            axes.text(
                0.5,
                0.5,
                f"image {error}",
                ha="center",
                va="center",
                wrap=True,
                transform=axes.transAxes,
            )
        axes.set_title(
            caption(example), fontsize=8, loc="left", y=-0.05, va="top", parse_math=False
        )
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
    return count


def caption(example: Example) -> str:
    text = textwrap.wrap(example.question, LINE)
    if example.options:
        text += textwrap.wrap(" | ".join(example.options), LINE)
    shown = text[:LINES] + (["…"] if len(text) > LINES else [])
    return "\n".join(
        [*shown, *textwrap.wrap(f"→ {example.answer} ({example.answer_type})", LINE)[:2]]
    )
