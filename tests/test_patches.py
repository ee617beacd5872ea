"""Pixels become patches on the training device: the same as the model's own image processor makes,
bit for bit, with the same prompt tokens."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2VLImageProcessor

from rarl.data.images import png_bytes
from rarl.data.prepared import prepare_example
from rarl.grpo.forward import make_patches
from rarl.grpo.group import TokenGroup
from rarl.prompts import plain_prompt
from rarl.schema import Example

# What the published models' processors have; they are all of this class.
PUBLISHED: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"size": {"shortest_edge": 3136, "longest_edge": 12845056}},
    "qwen2_5_vl": {"size": {"shortest_edge": 3136, "longest_edge": 200704}},
    "qwen3_vl": {
        "size": {"shortest_edge": 65536, "longest_edge": 16777216},
        "patch_size": 16,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    },
}


@pytest.mark.parametrize("family", PUBLISHED)
@pytest.mark.parametrize(
    "sizes",
    [
        [(112, 112)],
        [(300, 90)],
        [(61, 700)],
        [(517, 389)],
        [],
        [(300, 90), (112, 112)],
        [(112, 112), (300, 90)],
        [(61, 70), (517, 389), (61, 70), (40, 40), (120, 64)],
    ],
)
def test_patches_and_tokens_are_the_processors_own(
    family: str, sizes: list[tuple[int, int]], processor: Any, examples: list[Example]
) -> None:
    own = copy.copy(processor)
    own.image_processor = Qwen2VLImageProcessor(**PUBLISHED[family])
    total = sum(map(sum, sizes))
    rng = np.random.default_rng(total)
    shades = [rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8) for size in sizes]
    images = tuple(png_bytes(Image.fromarray(one)) for one in shades)
    example = replace(examples[total % 12], images=images)
    prepared = prepare_example(example, own, plain_prompt())
    group = TokenGroup(prepared.prompt_token_ids, prepared.pixels, prepared.patch_rule, [[1]], 0)
    shown = list(prepared.pixels) or None
    expected = own(text=[prepared.prompt.text], images=shown, return_tensors="pt")
    assert prepared.prompt_token_ids.tolist() == expected["input_ids"][0].tolist()
    if shown:
        assert torch.equal(make_patches(group, "cpu"), expected["pixel_values"])
        assert group.grid.tolist() == expected["image_grid_thw"].tolist()
    # What waits in the object store is the pictures, and little more.
    assert len(pickle.dumps(prepared)) < sum(one.nbytes for one in prepared.pixels) + 8192
