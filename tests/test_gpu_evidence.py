"""What is known of a GPU without one: the update at the true shapes of the 2B model, vLLM's own
configuration for a card, and that the packages of the GPU build go together."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from meta_update import count_update

from rarl.config import load_config
from tests.runs import REPOSITORY, environment

RECIPE = REPOSITORY / "configs/recipes/qwen2vl_2b/rl.yaml"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "checkpointing"), [((800, 250, 8), False), ((612, 512, 8), True)]
)
def test_the_2b_update_takes_the_memory_that_is_planned(
    shape: tuple[int, int, int], checkpointing: bool
) -> None:
    """In bfloat16, forward and backward, with the kernels of a GPU, on tensors without values."""
    found = count_update(*shape, checkpointing)
    assert found.planned == pytest.approx(found.peak, rel=0.2)
    assert len(found.gradients) == 2 * 7 * 28, "A and B of seven layers in each of 28"
    assert {gradient.dtype for gradient in found.gradients} == {torch.float32}
