"""Several train workers that act as one: the leader samples and scores, and all learn.

The leader (rank 0) runs the whole loop; the samplers are thus asked for just what they would be
asked for by a single worker. For the update it deals the step's groups out, every worker computes
the gradient of its share, and the sum of the gradients moves all copies of the adapter alike. Only
the leader publishes and writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray.train
import torch
import torch.distributed as dist

WAIT = timedelta(hours=2)  # for the leader's next step: its rollouts have bounds of their own


@dataclass(frozen=True)
class Share:
    """What a worker is to learn from in a step: its groups, and what holds for all. `shared_prefix`
    names the forward pass that the leader chose."""

    groups: list[Any]
    shared_prefix: bool
    on_policy: bool
    learning_rate: float


class Team:
    """This worker among `size`. Messages travel between CPUs (gloo), gradients where they are."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.messages = dist.new_group(backend="gloo", timeout=WAIT) if size > 1 else None
        self.together = False  # within an update, in which a failure is everybody's

    @classmethod
    def join(cls) -> Team:
        context = ray.train.get_context()
        return cls(context.get_world_rank(), context.get_world_size())

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def threads(self) -> int:
        """Of the CPUs of this machine, for each worker on it."""
        return max(1, (os.cpu_count() or 1) // ray.train.get_context().get_local_world_size())

    def deal(self, share: Share) -> Share:
        """The leader's: sends each worker every n-th group; returns its own."""
        if self.size == 1:
            return share
        parts = [
            Share(
                share.groups[rank :: self.size],
                share.shared_prefix,
                share.on_policy,
                share.learning_rate,
            )
            for rank in range(self.size)
        ]
        self.scatter(parts)
        return parts[0]

    def receive(self) -> Share | None:
        """The others': their part of the next update; None when there is no more."""
        return self.scatter(None)

    @contextmanager
    def joint(self) -> Iterator[None]:
        """Around what all workers do together: what fails in it fails in all of them."""
        self.together = True
        yield
        self.together = False

    def dismiss(self) -> None:
        """The leader's: lets the others end, unless they failed with it."""
        if self.size > 1 and not self.together:
            self.scatter([None] * self.size)

    def scatter(self, parts: Sequence[Share | None] | None) -> Share | None:
        received: list[Share | None] = [None]
        dist.scatter_object_list(
            received, list(parts) if parts else None, src=0, group=self.messages
        )
        return received[0]

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        if self.size == 1:
            return
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        pieces = flat.split([gradient.numel() for gradient in gradients])
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter)

    def sum(self, values: Sequence[float]) -> list[float]:
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, group=self.messages)
        summed: list[float] = tensor.tolist()
        return summed

    def max(self, value: float) -> float:
        if self.size == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.messages)
        return float(tensor.item())
