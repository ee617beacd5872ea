"""What an update asks of the other train workers: sums of gradients and of figures. Alone, they are
its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch


class Workers(Protocol):
    """All train workers together; each calls the same methods in the same order."""

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Replaces every gradient by the sum over the workers; a missing one counts as zero."""

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value summed over the workers, in float64."""

    def max(self, value: float) -> float:
        """The largest of the workers' values."""


class Alone:
    """The only worker."""

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        pass

    def sum(self, values: Sequence[float]) -> list[float]:
        return list(values)

    def max(self, value: float) -> float:
        return value


ALONE = Alone()
