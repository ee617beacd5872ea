"""GRPO, as each of N equal train workers runs it. One step, top to bottom:

    collect          vLLM samples a group for each prompt; the judge and the rewards score it
    set_advantages   each reply is set against the others of its group
    update           one optimizer step; the gradient is summed over the workers
    publish          the new adapter goes to the samplers
    log and save     the figures of all workers, this worker's samples, a checkpoint

Worker r takes the prompts r, r + N, r + 2N, … of the step's fixed list. Seeds depend on the run's
seed, the step and the prompt's place in that list alone, so the samples are the same for any N.

With `rollout.max_staleness` 0 a step's rollouts come from the adapter that the step before it
published. With 1 the next batch is sampled while this one trains. Either way the sampler's
log-probs are compared in every step with those of the policy that it should hold, and the run stops
when they part.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rarl.collect import Collector, PendingGroups
from rarl.config import Config
from rarl.data.order import sampling_seed
from rarl.grpo.forward import ForwardChoice
from rarl.grpo.group import TokenGroup, set_advantages
from rarl.grpo.loss import resolve_loss
from rarl.grpo.policy import adapter_arrays, adapter_config, other_adapter
from rarl.grpo.update import (
    SamplerMismatch,
    UpdateSettings,
    UpdateStats,
    check_mismatch,
    measure_mismatch,
    update_policy,
)
from rarl.grpo.workers import ALONE, Workers
from rarl.rollout.pool import SamplerPool
from rarl.rollout.sampler import SamplingSettings
from rarl.samples import Group, flatten, write_samples
from rarl.schema import PreparedExample
from rarl.training.collector import training_collector
from rarl.training.inputs import LoopOutcome, Progress, TrainInputs
from rarl.training.interim import Interim, ended_early
from rarl.training.learner import Learner, saving_failures
from rarl.training.log import MetricsLog, Stopwatch
from rarl.training.step_metrics import Mismatch, has_spread, step_metrics, update_metrics

# The batches that a worker trains on: number (from 1) and this worker's prompts.
Batches = Iterator[tuple[int, list[PreparedExample]]]


def train_grpo(
    inputs: TrainInputs, learner: Learner, batches: Batches, workers: Workers = ALONE
) -> LoopOutcome:
    """Makes the steps that are not yet made, from the batch after `learner.progress.batches` on.
    Raises UserError."""
    config, pool = inputs.config, inputs.pool.share(workers.rank, workers.size)
    progress = learner.progress
    published = PublishedAdapter(pool, learner, workers, progress.step)
    with ExitStack() as stack:
        with workers.local():
            if workers.rank == 0:
                inputs.run_dir.drop_samples_from(progress.step + 1)
            collector = stack.enter_context(
                training_collector(
                    config,
                    pool,
                    inputs.model_path,
                    inputs.data_path,
                    inputs.run_dir.judge_cache_of(workers.rank),
                    workers=workers.size,
                    judge_engine=inputs.judge_engine,
                    fluency_floor=inputs.fluency_floor,
                )
            )
            metrics = MetricsLog(inputs.run_dir, config, progress.step + 1, workers.rank == 0)
            log = stack.enter_context(metrics)
            interim = Interim(inputs, pool, workers, progress.step)
        clock = Stopwatch()
        stream = GroupStream(config, collector, batches, workers, clock, taken=progress.batches)
        last = progress.step
        for step in range(progress.step + 1, config.train.steps + 1):
            if interim.track.is_exhausted:
                break
            batch = stream.collect(overlap=step < config.train.steps)
            set_advantages(batch.groups, resolve_loss(config.grpo).scale_advantages)
            with clock.phase("update"):
                stats, mismatch = update(inputs, learner, batch.trained, published, workers, step)
                learning_rate = learner.step_scheduler()
                movement = learner.movement.median()
            stream.settle()
            with clock.phase("publish"):
                published_bytes = published.publish(step)
            with clock.phase("evaluate"):
                measured = interim.measure(step)
            row = {
                "step": step,
                **step_metrics(batch.groups, batch.trained, step - 1, collector, workers),
                **update_metrics(stats, mismatch),
                "shared_prefix": learner.uses_shared_prefix,
                "learning_rate": learning_rate,
                "adapter/movement": movement,
                "published_bytes": published_bytes,
                **measured,
                **clock.lap(),
            }
            with workers.local():
                path = inputs.run_dir.samples_of(step, workers.rank)
                write_samples(path, flatten(batch.groups), {"step": step})
                log.write(row)
            with clock.phase("save"):
                reached, score = Progress(step, stream.taken), log.recent("reward/mean")
                if config.evaluation.validation is not None:
                    score = measured[interim.selecting]
                if learner.save(inputs, reached, score, workers, interim.due(step)):
                    return LoopOutcome(step)
            last = step
        stream.settle()
    track, name = interim.track, config.evaluation.validation
    learner.finish(inputs, workers, track.step if name is not None else None)
    if last == config.train.steps:
        return LoopOutcome(config.train.steps)
    return LoopOutcome(last, ended=ended_early(track, name, last))


@dataclass
class Batch:
    """What a step samples, of one worker: all scored groups, and those of them that it trains
    on."""

    groups: list[Group] = field(default_factory=list)
    trained: list[Group] = field(default_factory=list)


class GroupStream:
    """This worker's share of the data with its scored groups, batch by batch; the next batch is in
    flight while this one trains, if staleness is allowed.

    `taken` counts the batches handed out since the beginning of the run: all that a checkpoint
    needs to know of the data.
    """

    def __init__(
        self,
        config: Config,
        collector: Collector,
        batches: Batches,
        workers: Workers,
        clock: Stopwatch,
        taken: int,
    ) -> None:
        self.config, self.collector, self.batches = config, collector, batches
        self.workers, self.clock, self.taken = workers, clock, taken
        self.in_flight: PendingGroups | None = None

    def collect(self, overlap: bool) -> Batch:
        """Returns the groups of one step: of one batch, or of as many as it takes, within bounds,
        to have `prompts_per_step` groups with spread over all workers (dynamic sampling, DAPO,
        arXiv 2503.14476, section 3.2). With `overlap` the batch after may be started already."""
        wanted, refills = self.config.train.prompts_per_step, self.config.grpo.max_refills
        batch, chosen = Batch(), 0
        for _ in range(1 + refills):
            with self.workers.local():
                groups = self.next_groups(overlap)
            batch.groups += groups
            if refills == 0:
                batch.trained += groups
                break
            # Groups count in the order of the data, whichever worker has them.
            useful = {self.place(i): group for i, group in enumerate(groups) if has_spread(group)}
            everyones = sorted(place for one in self.workers.gather(list(useful)) for place in one)
            places = everyones[: wanted - chosen]
            batch.trained += [group for place, group in useful.items() if place in places]
            chosen += len(places)
            if chosen == wanted:
                break
        return batch

    def next_groups(self, overlap: bool) -> list[Group]:
        """Returns the next batch's scored groups: of the batch in flight, or of one that is asked
        for now."""
        pending = self.in_flight or self.submit()
        with self.clock.phase("rollout"):
            pending.sampled()
        self.in_flight = None
        self.taken += 1
        if overlap and self.config.rollout.max_staleness > 0:
            self.in_flight = self.submit()
        with self.clock.phase("reward"):
            return pending.result()

    def submit(self) -> PendingGroups:
        """Asks for the next batch with the adapter that is loaded now."""
        with self.clock.phase("data"):
            number, prompts = next(self.batches)
        with self.clock.phase("rollout"):
            rollout, seed = self.config.rollout, self.config.seed
            seeds = [
                sampling_seed(seed, number, self.place(index), rollout.group_size)
                for index in range(len(prompts))
            ]
            length = rollout.max_completion_tokens
            sampling = SamplingSettings(rollout.group_size, rollout.temperature, length)
            return self.collector.submit(prompts, seeds, sampling)

    def place(self, index: int) -> int:
        """Returns the place, among the batch's prompts of all workers, of this worker's prompt."""
        return self.workers.rank + index * self.workers.size

    def settle(self) -> None:
        """Waits for the batch in flight, so that the adapter can be replaced."""
        if self.in_flight is not None:
            with self.clock.phase("rollout"):
                self.in_flight.wait()


def update(
    inputs: TrainInputs,
    learner: Learner,
    groups: list[Group],
    published: PublishedAdapter,
    workers: Workers,
    step: int,
) -> tuple[UpdateStats | None, Mismatch | None]:
    """Makes one update on the groups of all workers. Returns its figures, None if no worker has a
    group to learn from and the weights stay as they were; and the mismatch of rollouts that an
    older adapter drew, None if there are none. Raises UserError, with the step's groups saved, if
    the gradient is no number."""
    drop_truncated = resolve_loss(inputs.config.grpo).drop_truncated
    kept = [
        [s for s in group if not (drop_truncated and s.rollout.finish_reason == "length")]
        for group in groups
    ]
    kept = [group for group in kept if group]
    token_groups = [TokenGroup.of(group, key) for key, group in enumerate(kept)]
    if workers.sum([len(token_groups)])[0] == 0:
        return None, None
    with workers.local():
        forward = learner.forward_for(inputs, token_groups)
    mismatch = published.check_stale(inputs, kept, token_groups, forward, workers)
    settings = UpdateSettings.of(
        inputs.config,
        shared_prefix=forward.shared,
        max_drift=inputs.mismatch_bound if mismatch is None else None,
    )
    with saving_failures(inputs.run_dir.failures, step, token_groups, workers.rank):
        stats = update_policy(
            learner.policy,
            learner.optimizer,
            token_groups,
            forward.forward,
            inputs.distribution,
            settings,
            workers,
        )
    return stats, mismatch


class PublishedAdapter:
    """The adapter that the samplers hold, and the one before it, to check rollouts that are one
    update old. All workers hold the same adapter; each gives it to its own samplers."""

    def __init__(self, pool: SamplerPool, learner: Learner, workers: Workers, version: int) -> None:
        self.pool, self.policy, self.workers = pool, learner.policy, workers
        self.versions: dict[int, dict[str, NDArray[np.float32]]] = {}
        self.publish(version)

    def publish(self, version: int) -> int:
        """Loads the current adapter into the samplers; returns the bytes that one of them loads."""
        arrays = adapter_arrays(self.policy)
        previous = {v: kept for v, kept in self.versions.items() if v == version - 1}
        self.versions = previous | {version: arrays}
        # With more workers than samplers, a sampler may still be at work for another worker, and no
        # worker may ask before all samplers hold the new adapter.
        self.workers.barrier()
        with self.workers.local():
            return self.pool.publish(version, arrays, adapter_config(self.policy))

    def check_stale(
        self,
        inputs: TrainInputs,
        groups: list[Group],
        token_groups: list[TokenGroup],
        forward: ForwardChoice,
        workers: Workers,
    ) -> Mismatch | None:
        """Compares rollouts of an older adapter with that very adapter, put back for the moment:
        one group of each worker. Returns mean and largest log-prob difference; None if the rollouts
        are of the current adapter, which the update checks as a whole.

        Raises SamplerMismatch.
        """
        total, tokens, largest = 0.0, 0, 0.0
        with workers.local():
            versions = [group[0].rollout.adapter_version for group in groups]
            current = max(self.versions)
            oldest = min(versions, default=current)
            allowed = inputs.config.rollout.max_staleness
            if current - oldest > allowed:
                raise SamplerMismatch(
                    f"the sampler does not sample from the policy: its adapter is stale, of step "
                    f"{oldest} where the policy is of step {current} and rollout.max_staleness is "
                    f"{allowed}; the weights were not changed"
                )
            if oldest != current:
                group = token_groups[versions.index(oldest)]
                with other_adapter(self.policy, self.versions[oldest]):
                    compared = (self.policy, group, forward.forward, inputs.distribution)
                    total, tokens, largest = measure_mismatch(*compared)
        total, counted = workers.sum([total, tokens])
        largest = workers.max(largest)
        if not counted:
            return None
        check_mismatch(total / counted, largest, inputs.mismatch_bound)
        return Mismatch(total / counted, largest)
