"""Batches of prompts with their sampled answers, in the order of the data; the next one in flight
if that is wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import ray.train

from rarl.config import Config
from rarl.data.order import sampling_seed
from rarl.data.prepared import PreparedExample, require_room
from rarl.data.stream import unpack
from rarl.errors import UserError
from rarl.rollout.pool import PendingRollouts, SamplerPool
from rarl.rollout.sampler import SampleRequest, SamplingSettings
from rarl.schema import Rollout, Verdict
from rarl.training.log import Stopwatch


@dataclass(frozen=True)
class SampledBatch:
    """Prompts, a group of rollouts for each, and the verdicts that were asked for each group, where
    any were."""

    prompts: list[PreparedExample]
    groups: list[list[Rollout]]
    verdicts: list[list[Future[Verdict]] | None]


# Starts the judging of a group; None where nothing judges.
AskJudge = Callable[[PreparedExample, Sequence[Rollout]], list[Future[Verdict]] | None]


@dataclass(frozen=True)
class Flying:
    """A batch that is being sampled."""

    prompts: list[PreparedExample]
    pending: PendingRollouts
    verdicts: list[list[Future[Verdict]] | None]


class RolloutStream:
    """Reads this worker's shard of the data and samples from it, one batch at a time.

    `taken` counts the batches handed out since the beginning of the run: all that a checkpoint
    needs to know of the data. A batch's seeds depend on its number alone. `on_group` is told of
    each group as soon as it is sampled, from another thread.
    """

    def __init__(self, config: Config, pool: SamplerPool, taken: int, on_group: AskJudge) -> None:
        self.config, self.pool, self.taken, self.on_group = config, pool, taken, on_group
        self.batches = data_batches(config.train.prompts_per_step, first=taken)
        self.flying: Flying | None = None

    def take(self, clock: Stopwatch) -> SampledBatch:
        """The next batch: the one in flight, or one that is sampled now."""
        flying = self.flying or self.start(clock)
        with clock.phase("rollout"):
            groups = flying.pending.result()
        self.flying = None
        self.taken += 1
        require_equal_prompts(flying.prompts, groups)
        return SampledBatch(flying.prompts, groups, flying.verdicts)

    def prefetch(self, clock: Stopwatch) -> None:
        """Starts the next batch with the adapter that is loaded now."""
        if self.flying is None:
            self.flying = self.start(clock)

    def settle(self, clock: Stopwatch) -> None:
        """Waits for the batch in flight, so that the adapter can be swapped."""
        if self.flying is not None:
            with clock.phase("rollout"):
                self.flying.pending.wait()

    def start(self, clock: Stopwatch) -> Flying:
        with clock.phase("data"):
            number, prompts = next(self.batches)
        with clock.phase("rollout"):
            rollout = self.config.rollout
            for prepared in prompts:
                require_room(prepared, rollout.max_completion_tokens, rollout.max_model_length)
            seeds = [
                sampling_seed(self.config.seed, number, i, rollout.group_size)
                for i in range(len(prompts))
            ]
            verdicts: list[list[Future[Verdict]] | None] = [None] * len(prompts)

            def asked(index: int, group: list[Rollout]) -> None:
                verdicts[index] = self.on_group(prompts[index], group)

            requests = [
                SampleRequest(p.example.id, p.prompt.text, p.pixels, s)
                for p, s in zip(prompts, seeds, strict=True)
            ]
            settings = SamplingSettings(
                rollout.group_size, rollout.temperature, rollout.max_completion_tokens
            )
            return Flying(prompts, self.pool.submit(requests, settings, on_group=asked), verdicts)


def data_batches(prompts_per_step: int, first: int) -> Iterator[tuple[int, list[PreparedExample]]]:
    """(number, prompts) of whole steps, for the leader, after the first `first`; numbers count from
    1. The stream begins where the driver found the run; a worker that was started again skips what
    was made since.

    Raises UserError where the stream begins later, since a checkpoint was damaged meanwhile.
    """
    shard = ray.train.get_dataset_shard("train")
    for batch in shard.iter_batches(
        batch_size=prompts_per_step, batch_format="pyarrow", prefetch_batches=1
    ):
        number = int(batch["step"][0].as_py()) + 1
        if number > first + 1:
            raise UserError(
                f"the data begin with step {number}, but the newest whole checkpoint is of step {first}; start the "
                "same command again"
            )
        if number == first + 1:
            yield number, unpack(batch)
            first = number


def require_equal_prompts(prompts: list[PreparedExample], groups: list[list[Rollout]]) -> None:
    """Raises UserError when sampler and trainer tokenise a prompt differently."""
    for prepared, group in zip(prompts, groups, strict=True):
        if group[0].prompt_token_ids != prepared.prompt_token_ids.tolist():
            raise UserError(
                f"example '{prepared.example.id}': sampler and trainer disagree on the prompt's tokens "
                f"({len(group[0].prompt_token_ids)} and {len(prepared.prompt_token_ids)}); the model and its processor "
                "do not fit together"
            )
