"""All sampler actors behind one handle: work is spread over them, an adapter goes to each."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from threading import Condition, Thread
from typing import Any

import ray
from ray.exceptions import (
    ActorDiedError,
    GetTimeoutError,
    NodeDiedError,
    ObjectLostError,
    RayActorError,
    RayError,
)

from rarl.errors import UserError, last_line
from rarl.rollout.sampler import (
    LikelihoodRequest,
    NotPublished,
    Sampler,
    SampleRequest,
    SamplerSettings,
    SamplingSettings,
)
from rarl.schema import Rollout
from rarl.system.placement import SAMPLER_CPUS, SAMPLER_GPUS
from rarl.system.processes import sampler_environment

START_TIMEOUT = 900  # seconds until the engines are up, also from a slow disk
MAX_REVIVALS = 3  # of one engine for one batch
RESTART_TIMEOUT = 300.0  # seconds for a lost engine to come back, before the others do its work
LOGS = "see sampler-*.log in the run's logs"
CONTINUES = "The same command continues from the last finished step"

OnGroup = Callable[[int, list[Rollout]], Any]
# An engine that is gone, with its process or its node: it can be started again.
LOST = (RayActorError, NodeDiedError, ObjectLostError, NotPublished)


class PendingRollouts:
    """Work in flight: actor i has every n-th of the requests, from i on. One thread per actor takes
    in the groups as they are completed, and tells `on_group` (from that thread) each one's position
    among the requests, once.

    An engine that is lost meanwhile is given its whole share again when it is back, so that it
    samples under the same conditions, to the bit; or else another engine does its share."""

    def __init__(
        self,
        pool: SamplerPool,
        requests: list[SampleRequest],
        sampling: SamplingSettings,
        use_adapter: bool,
        on_group: OnGroup | None,
    ) -> None:
        self.pool, self.requests, self.on_group = pool, requests, on_group
        self.sampling, self.use_adapter = sampling, use_adapter
        self.groups: list[list[Rollout]] = [[] for _ in requests]
        self.error: Exception | None = None
        # What has been taken in, and how many threads are at it; told to who waits for a part.
        self.taken_in: set[int] = set()
        self.changed = Condition()
        actors = pool.actors[: len(requests)]
        self.stride = len(actors)
        # Asked for in this thread: what is loaded into an engine afterwards cannot come before it.
        streams = [self.ask(actor, place) for place, actor in enumerate(actors)]
        self.threads = [
            Thread(target=self.take_share, args=(place, actor, stream), daemon=True)
            for place, (actor, stream) in enumerate(zip(actors, streams, strict=True))
        ]
        self.running = len(self.threads)
        for thread in self.threads:
            thread.start()

    def ask(self, actor: Any, place: int) -> Any:
        """Returns the stream of the groups of every n-th request, from `place` on."""
        generate = actor.generate.options(num_returns="streaming")
        return generate.remote(self.requests[place :: self.stride], self.sampling, self.use_adapter)

    def take_share(self, place: int, actor: Any, stream: Any) -> None:
        """Takes in an engine's share, from another one if it is lost; keeps what goes wrong."""
        try:
            for revivals in itertools.count():
                try:
                    return self.take_in(place, actor, stream)
                except LOST:
                    if revivals == MAX_REVIVALS:
                        raise
                    actor = self.pool.revive(actor)
                    stream = self.ask(actor, place)
        except Exception as error:
            self.error = error
        finally:
            with self.changed:
                self.running -= 1
                self.changed.notify_all()

    def take_in(self, place: int, actor: Any, stream: Any) -> None:
        """Raises what Ray raises. An engine that completes no group in time is ended, and counts as
        lost; before the first, it may have to sample as many for each worker that shares it."""
        queued = (self.pool.sharing - 1) * len(self.requests[place :: self.stride])
        timeout = self.pool.timeout * (1 + queued)
        while True:
            ready, _ = ray.wait([stream], timeout=timeout, fetch_local=False)
            if not ready:
                ray.kill(actor, no_restart=False)
                raise ActorDiedError()
            timeout = self.pool.timeout
            reference = next(stream, None)
            if reference is None:
                return
            position, group = ray.get(reference)
            index = place + position * self.stride
            # It was already there before the engine was lost.
            if self.groups[index]:
                continue
            self.groups[index] = group
            if self.on_group is not None:
                self.on_group(index, group)
            with self.changed:
                self.taken_in.add(index)
                self.changed.notify_all()

    def wait(self) -> None:
        for thread in self.threads:
            thread.join()

    def part(self, start: int, stop: int) -> PendingRollouts:
        """Waits for these groups alone, and returns them as a batch of its own, which is done."""
        wanted = set(range(start, stop))
        with self.changed:
            self.changed.wait_for(lambda: wanted <= self.taken_in or self.running == 0)
        part = copy(self)
        part.groups, part.threads = self.groups[start:stop], []
        part.error = None if wanted <= self.taken_in else self.error
        return part

    def result(self) -> list[list[Rollout]]:
        """Waits; returns a group per request, in their order. An error inside an engine is final,
        since it may hold half-finished requests and would fail again: it is a UserError."""
        self.wait()
        if isinstance(self.error, RayError):
            raise engine_failed(self.error)
        if self.error is not None:
            raise self.error
        return self.groups


@dataclass(frozen=True)
class PendingScores:
    """Likelihoods in flight: actor i has every n-th of the `count` requests, from i on."""

    pool: SamplerPool
    count: int
    asked: list[tuple[Any, ...]]

    def result(self) -> list[list[Any]]:
        """Waits; returns what was asked for, by request. Raises UserError."""
        results: list[list[Any]] = [[] for _ in range(self.count)]
        for index, one in enumerate(self.asked):
            found = self.pool.result_of(*one, parts=len(one[3]))
            results[index :: len(self.asked)] = found
        return results


@dataclass(frozen=True)
class AdapterWeights:
    """What was published last: float32 arrays under PEFT's own names, and PEFT's configuration."""

    version: int
    tensors: Mapping[str, Any]
    peft_config: Mapping[str, Any]

    @cached_property
    def arguments(self) -> tuple[int, Any, Mapping[str, Any]]:
        """What an engine loads; the tensors go to Ray's object store once, when one first does."""
        return self.version, ray.put(dict(self.tensors)), self.peft_config


class SamplerPool:
    """The samplers, or a train worker's share of them. launched: all actors. own: those that are
    asked. loading: those that `publish` loads. sharing: how many workers ask the same ones."""

    def __init__(
        self, actors: list[Any], timeout: float, restart_timeout: float = RESTART_TIMEOUT
    ) -> None:
        self.launched, self.timeout, self.restart_timeout = actors, timeout, restart_timeout
        self.own, self.loading, self.sharing = actors, actors, 1
        self.lost: list[Any] = []
        self.published: AdapterWeights | None = None

    @property
    def actors(self) -> list[Any]:
        """The actors to ask: its own that live; when none is left, any others that do."""
        living = [actor for actor in self.launched if actor not in self.lost]
        return [actor for actor in living if actor in self.own] or living

    def share(self, rank: int, size: int) -> SamplerPool:
        """Returns the view of one of `size` train workers that ask and publish side by side. With
        fewer samplers than workers, some ask the same one, and the first of these publishes to it;
        the others remember what was published, for an engine that is started anew. Workers must
        wait for each other before they publish and after: another's batch must not be in flight,
        nor come too early."""
        if size == 1:
            return self
        view = SamplerPool(self.launched, self.timeout, self.restart_timeout)
        count = len(self.launched)
        view.own = self.launched[rank::size] if count >= size else [self.launched[rank % count]]
        view.loading = view.own if rank < count else []
        view.sharing = max(1, len(range(rank % count, size, count)))
        return view

    @classmethod
    def launch(
        cls, settings: SamplerSettings, num_actors: int, log_folder: Path, timeout: float
    ) -> SamplerPool:
        """Does not wait for the actors. `timeout` (seconds) is how long an engine may take from one
        completed group to the next before it counts as hung and is started anew."""
        actors, gpus = [], SAMPLER_GPUS if settings.device == "cuda" else 0
        for index in range(num_actors):
            cache_file = log_folder / f"sampler-{index}.cache"
            cache_file.unlink(missing_ok=True)  # of an earlier start, beside other processes
            log = log_folder / f"sampler-{index}.log"
            own = replace(settings, log_path=str(log), cache_file=str(cache_file))
            environment = {"env_vars": sampler_environment(settings.device, index)}
            placed = {"num_cpus": SAMPLER_CPUS, "num_gpus": gpus, "scheduling_strategy": "SPREAD"}
            remote = ray.remote(**placed, runtime_env=environment, max_restarts=-1)(Sampler)
            actors.append(remote.remote(own))
        return cls(actors, timeout)

    def wait_until_ready(self) -> None:
        """Returns when every engine is up. Raises UserError when one does not come up."""
        wait_for_engines(self.actors, "a vLLM engine", LOGS)

    def banned_token_ids(self) -> list[int]:
        """Returns the tokens that are never sampled. Raises UserError."""
        actor = self.actors[0]
        return list(self.result_of(actor, actor.banned_token_ids.remote(), "banned_token_ids"))

    def result_of(
        self, actor: Any, reference: Any, method: str, *arguments: Any, parts: int = 1
    ) -> Any:
        """Returns what an engine was asked for by this call, which may take `timeout` seconds for
        each of its parts. An engine that is lost, or hangs, is started anew and asked again. Raises
        UserError."""
        for _ in range(MAX_REVIVALS):
            try:
                return ray.get(reference, timeout=self.timeout * parts * self.sharing)
            except GetTimeoutError:
                ray.kill(actor, no_restart=False)
            except LOST:
                pass
            except RayError as error:
                raise engine_failed(error) from None
            actor = self.revive(actor)
            reference = getattr(actor, method).remote(*arguments)
        raise UserError(
            f"a vLLM engine was lost or silent for rollout.timeout_seconds={self.timeout:g}, "
            f"{MAX_REVIVALS} times in a row; {LOGS}. {CONTINUES}"
        )

    def publish(
        self, version: int, tensors: Mapping[str, Any], peft_config: Mapping[str, Any]
    ) -> int:
        """Loads the adapter into the engines that are this worker's to load; returns the bytes that
        one engine loads. Raises UserError."""
        self.published = adapter = AdapterWeights(version, tensors, peft_config)
        actors = [actor for actor in self.loading if actor not in self.lost]
        pending = [(actor, actor.load_adapter.remote(*adapter.arguments)) for actor in actors]
        for actor, reference in pending:
            self.result_of(actor, reference, "load_adapter", *adapter.arguments)
        return sum(array.nbytes for array in tensors.values())

    def revive(self, actor: Any) -> Any:
        """Waits until Ray has restarted a lost actor, gives it the adapter and returns it, or
        another one if it does not come back. Raises UserError when none is left."""
        try:
            wait_for_restart(actor, self.restart_timeout)
            if self.published is not None:
                loading = actor.load_adapter.remote(*self.published.arguments)
                ray.get(loading, timeout=self.restart_timeout)
            return actor
        except (*LOST, GetTimeoutError):
            self.lost.append(actor)
            if not self.actors:
                gone = "the last vLLM engine was lost and did not come back in"
                message = f"{gone} {self.restart_timeout:.0f} s; {LOGS}. {CONTINUES}"
                raise UserError(message) from None
            print(f"a sampler was lost and did not come back; {len(self.actors)} left", flush=True)
            return self.actors[0]

    def generate(
        self, requests: list[SampleRequest], sampling: SamplingSettings, use_adapter: bool = True
    ) -> list[list[Rollout]]:
        """Returns a group per request, in their order. Raises UserError."""
        return self.submit(requests, sampling, use_adapter).result()

    def submit(
        self,
        requests: list[SampleRequest],
        sampling: SamplingSettings,
        use_adapter: bool = True,
        on_group: OnGroup | None = None,
    ) -> PendingRollouts:
        """Does not wait; the adapter that is loaded now samples."""
        return PendingRollouts(self, requests, sampling, use_adapter, on_group)

    def score(self, requests: list[LikelihoodRequest], use_adapter: bool = True) -> PendingScores:
        """Asks for the log-probs (nats) of the tokens of each request's replies."""
        return self.start("score", requests, use_adapter)

    def weigh(self, requests: list[LikelihoodRequest], use_adapter: bool = True) -> PendingScores:
        """Asks for the share of each request's replies among them."""
        return self.start("weigh", requests, use_adapter)

    def start(
        self, method: str, requests: list[LikelihoodRequest], use_adapter: bool
    ) -> PendingScores:
        """Does not wait; the adapter that is loaded now is used, or the base model."""
        actors = self.actors[: len(requests)]
        asked: list[tuple[Any, ...]] = []
        for index, actor in enumerate(actors):
            part = requests[index :: len(actors)]
            reference = getattr(actor, method).remote(part, use_adapter)
            asked.append((actor, reference, method, part, use_adapter))
        return PendingScores(self, len(requests), asked)

    def stop(self) -> None:
        for actor in self.launched:
            ray.kill(actor)


def wait_for_engines(actors: Sequence[Any], what: str, logs: str) -> None:
    """Returns when all are up. Raises UserError, which names `what` did not come up and where its
    `logs` are."""
    try:
        ray.get([actor.ready.remote() for actor in actors], timeout=START_TIMEOUT)
    except GetTimeoutError:
        raise UserError(f"{what} was not up after {START_TIMEOUT} s; {logs}") from None
    except RayError as error:
        raise UserError(f"{what} did not start: {last_line(error)}; {logs}") from None


def wait_for_restart(actor: Any, patience: float) -> None:
    """Raises what the last attempt raised when the actor is not up in time (seconds)."""
    deadline = time.monotonic() + patience
    while True:
        try:
            ray.get(actor.ready.remote(), timeout=max(1.0, deadline - time.monotonic()))
            return
        # Ray refuses calls while it restarts the actor.
        except RayActorError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def engine_failed(error: Exception) -> UserError:
    reason = f"a vLLM engine failed: {last_line(error)}"
    if "out of memory" in reason:
        reason += "; raise rollout.gpu_memory_share, or lower rollout.max_model_length"
    return UserError(f"{reason}; {LOGS}")
