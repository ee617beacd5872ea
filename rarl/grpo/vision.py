"""Image features of a frozen vision tower, computed once per image and update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rarl.grpo.group import Group


@dataclass(frozen=True)
class ImageFeatures:
    """Without gradient, in the model's dtype.

    tokens: (image tokens, D), what stands in for the placeholders. deepstack: the same shape each,
    what is added to the output of the first layers (Qwen3-VL only).
    """

    tokens: Tensor
    deepstack: list[Tensor]


class VisionCache:
    """Keeps the features of every group it was asked for: the reference pass and further epochs
    over the same batch find them here. Lives for one update: 512 image tokens of the 2B model are
    1.5 MiB in bfloat16."""

    def __init__(self) -> None:
        self.stored: dict[int, ImageFeatures] = {}

    def features(self, model: Any, group: Group) -> ImageFeatures:
        if group.key not in self.stored:
            self.stored[group.key] = image_features(model, group)
        return self.stored[group.key]


@torch.no_grad()
def image_features(model: Any, group: Group) -> ImageFeatures:
    """Runs the vision tower on the picture of one group."""
    patches = torch.from_numpy(group.patches).to(model.device)
    grid = torch.from_numpy(group.grid)[None].to(model.device)
    out = model.model.get_image_features(patches, grid)
    deepstack = getattr(out, "deepstack_features", None) or []
    return ImageFeatures(out.pooler_output[0], [part[0] for part in deepstack])


def use_patch_projection(model: Any) -> None:
    """Replaces the convolution of a model's patch embedding, in place."""
    embedding = model.model.visual.patch_embed
    embedding.proj = PatchProjection(embedding.proj)


class PatchProjection(nn.Module):
    """The patch embedding as a matrix product: a convolution whose kernel and stride are the whole
    patch, 4 times faster this way on a CPU."""

    def __init__(self, convolution: nn.Conv3d) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias

    def forward(self, patches: Tensor) -> Tensor:
        """(patches, channels, frames, height, width) → (patches, D, 1, 1, 1), as the convolution
        gives it."""
        projected = functional.linear(patches.flatten(1), self.weight.flatten(1), self.bias)
        return projected[:, :, None, None, None]
