"""What one group costs by arithmetic: products with weights and attention, and nothing else.

A product of (n, a) and (a, b) counts 2nab operations. Forward, a frozen weight costs 2 per token;
backward through it, which needs the gradient of the input only, another 2; the adapter's weights
about 6 in all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PATCH_VALUES = 3 * 2 * 14 * 14  # of one patch: colours, frames, height, width
PATCHES_PER_TOKEN = 4  # of Qwen2-VL: its merger makes one token of 2 x 2 patches
RANK = 8  # of the adapter: a few percent of the sum, so that other ranks need no other number


@dataclass(frozen=True)
class GroupShape:
    """`prompt` tokens with the image's, `completion` tokens each, `group` completions, `patches` of
    the image."""

    prompt: int
    completion: float
    group: int
    patches: int


def update_flops(shape: GroupShape, config: Any) -> float:
    """Floating-point operations that a shared-prefix update cannot do without: products with
    weights and attention.

    Attention costs 4 per pair of positions and width forward, and 8 backward. The prompt's last
    token counts with each completion; of the last layer the others need keys and values only. The
    vision tower runs forward only.
    """
    text = config.text_config
    p, c = shape.prompt - 1, shape.group * shape.completion
    rows = (p + c) * (text.num_hidden_layers - 1) + c  # rows through whole layers
    keys = (
        2
        * text.hidden_size
        * text.hidden_size
        * text.num_key_value_heads
        // text.num_attention_heads
    )
    own = shape.completion * (shape.completion + 1) / 2
    pairs = text.num_hidden_layers * shape.group * (shape.completion * p + own)
    pairs += (text.num_hidden_layers - 1) * p * (p + 1) / 2
    attention = 12 * text.hidden_size * pairs
    return (
        rows * per_row(text)
        + p * 4 * keys
        + attention
        + head_flops(shape, text)
        + tower_flops(shape, config)
    )


def plain_flops(shape: GroupShape, config: Any) -> float:
    """The same with every completion as a sequence of its own, and the vision tower once for
    each."""
    text = config.text_config
    length = shape.prompt + shape.completion
    attention = 12 * text.hidden_size * text.num_hidden_layers * length * (length + 1) / 2
    sequence = (
        length * text.num_hidden_layers * per_row(text) + attention + tower_flops(shape, config)
    )
    return shape.group * sequence + head_flops(shape, text)


def per_row(text: Any) -> float:
    """Of one token in one layer: products with frozen weights and the adapter, forward and
    backward."""
    d, wide = text.hidden_size, text.intermediate_size
    kv = d * text.num_key_value_heads // text.num_attention_heads
    weights = 2 * d * d + 2 * d * kv + 3 * d * wide
    adapter = RANK * (4 * d + 2 * (d + kv) + 3 * (d + wide))
    return float(4 * weights + 6 * adapter)


def head_flops(shape: GroupShape, text: Any) -> float:
    return 4.0 * shape.group * shape.completion * text.hidden_size * text.vocab_size


def tower_flops(shape: GroupShape, config: Any) -> float:
    """Of one picture, forward."""
    vision, patches = config.vision_config, shape.patches
    block = (4 + 2 * int(vision.mlp_ratio)) * vision.embed_dim**2
    merger = (4 * vision.embed_dim) ** 2 + 4 * vision.embed_dim * vision.hidden_size
    products = (
        patches * (vision.depth * block + PATCH_VALUES * vision.embed_dim) + patches / 4 * merger
    )
    return 2.0 * products + 4.0 * vision.depth * patches**2 * vision.embed_dim
