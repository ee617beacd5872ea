"""How pixels become the patches that a model is shown. It imports nothing, so that an update can be
measured where little is installed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PatchRule:
    """How a model's image processor makes patches of pixels: squares of `size` pixels, repeated for
    `frames` frames, ordered in blocks of `merge` x `merge`. `mean` and `std` are those of red,
    green and blue by which pixels (0 to 255) are normalised."""

    size: int
    frames: int
    merge: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
