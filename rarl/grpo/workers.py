"""What equal train workers ask of each other: sums of gradients and of figures, and each other's
values. All workers call the same methods in the same order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from rarl.errors import UserError

# How long a worker waits for the slowest one: sampling and judging have bounds of their own.
WAIT = timedelta(hours=2)


class Workers:
    """All train workers together, seen from the one with this rank. Here it is the only one."""

    rank, size = 0, 1

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Replaces every gradient by the sum over the workers; a missing one counts as zero."""

    def gather(self, value: Any) -> list[Any]:
        """Returns one value from each worker, in rank order, in every worker."""
        return [value]

    def sum(self, values: Sequence[float]) -> list[float]:
        """Returns each value summed over the workers, in rank order, in float64."""
        return [sum(column) for column in zip(*self.gather(list(values)), strict=True)]

    def max(self, value: float) -> float:
        """Returns the largest of the workers' values."""
        return max(self.gather(value))

    def barrier(self) -> None:
        """Returns when every worker has come here."""
        self.gather(None)

    @contextmanager
    def local(self) -> Iterator[None]:
        """Holds what each worker does by itself: what fails inside it in one worker fails in all.

        A worker raises the error that it has itself; the others raise UserError with the message of
        the first worker that has one.
        """
        own: Exception | None = None
        try:
            yield
        except Exception as error:
            own = error
        messages = self.gather(None if own is None else str(own) or type(own).__name__)
        if own is not None:
            raise own
        for message in messages:
            if message is not None:
                raise UserError(message)


ALONE = Workers()


class TorchWorkers(Workers):
    """The workers of torch.distributed, whose default group must be ready if there are several.
    Messages travel between CPUs (gloo), gradients where they are."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.messages = dist.new_group(backend="gloo", timeout=WAIT) if size > 1 else None

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        if self.size == 1:
            return
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        pieces = flat.split([gradient.numel() for gradient in gradients])
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter)

    def gather(self, value: Any) -> list[Any]:
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.messages)
        return values
