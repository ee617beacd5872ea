"""What sharing the prompt saves by arithmetic, for Qwen2-VL-2B and many shapes: needs no GPU and no
weights.

python bench/cost.py
"""

from __future__ import annotations

from typing import Any

from cases import Case, model_config
from rich.console import Console
from rich.table import Table

from rarl.planning.sizes import GroupShape, head_flops, per_row, tower_flops, update_flops

SHAPES = [(400, 200), (800, 200), (1200, 128), (400, 1000), (400, 4000), (60, 40)]
SIDES = {60: 8, 400: 36, 800: 52, 1200: 64}  # patches a side: most of the prompt is image


def plain_flops(shape: GroupShape, config: Any) -> float:
    """Returns the operations of an update with every completion as a sequence of its own, and the
    vision tower once for each."""
    text = config.text_config
    length = shape.prompt + shape.completion
    attention = 12 * text.hidden_size * text.num_hidden_layers * length * (length + 1) / 2
    products = length * text.num_hidden_layers * per_row(text)
    sequence = products + attention + tower_flops(shape.patches, config)
    return shape.group * sequence + head_flops(shape, text)


def main() -> None:
    config = model_config("2b", None)
    table = Table(title="TFLOP of one update of a group, Qwen2-VL-2B, β = 0")
    for column in ("prompt", "completion", "group", "plain", "shared", "plain / shared"):
        table.add_column(column, justify="right")
    for group in (4, 8, 16):
        for prompt, completion in SHAPES:
            case = Case("", "2b", prompt, completion, group, SIDES[prompt])
            plain, shared = (
                plain_flops(case.shape, config) / 1e12,
                update_flops(case.shape, config) / 1e12,
            )
            table.add_row(
                str(prompt),
                str(completion),
                str(group),
                f"{plain:.1f}",
                f"{shared:.1f}",
                f"{plain / shared:.1f}",
            )
    Console().print(table)


if __name__ == "__main__":
    main()
