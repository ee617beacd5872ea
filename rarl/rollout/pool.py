"""All sampler actors behind one handle: work is spread over them, an adapter goes to each."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread
from typing import Any

import ray

from rarl.errors import UserError, last_line
from rarl.rollout.sampler import (
    NotPublished,
    Sampler,
    SampleRequest,
    SamplerSettings,
    SamplingSettings,
    ScoreRequest,
)
from rarl.schema import Rollout
from rarl.system.placement import SAMPLER_CPUS, SAMPLER_GPUS
from rarl.system.processes import sampler_environment

START_TIMEOUT = 900  # seconds: loading several GB from a slow disk included


OnGroup = Callable[[int, list[Rollout]], Any]
# An engine that is gone, with its process or its node: it can be started again.
LOST = (
    ray.exceptions.RayActorError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.ObjectLostError,
    NotPublished,
)
MAX_REVIVALS = 3  # of one engine for one batch
RESTART_TIMEOUT = 300.0  # seconds for a lost engine to come back, before the others do its work


class PendingRollouts:
    """Work in flight: actor i has every n-th of the requests, from i on. One thread per actor takes
    in the groups as they are completed, and tells `on_group` (from that thread) each one's position
    among the requests, once.

    An engine that is lost meanwhile is given its whole share again when it is back, so that it
    samples under the same conditions, to the bit; where it does not come back, another engine does
    its share.
    """

    def __init__(self, pool: SamplerPool, work: Work, on_group: OnGroup | None) -> None:
        self.groups: list[list[Rollout]] = [[] for _ in work.requests]
        self.pool, self.work, self.on_group = pool, work, on_group
        self.error: Exception | None = None
        actors = pool.actors[: len(work.requests)]
        self.stride = len(actors)
        # Asked for in this thread: what is loaded into an engine afterwards cannot come before it.
        streams = [self.ask(actor, place) for place, actor in enumerate(actors)]
        self.threads = [
            Thread(target=self.take_share, args=(place, actor, stream), daemon=True)
            for place, (actor, stream) in enumerate(zip(actors, streams, strict=True))
        ]
        for thread in self.threads:
            thread.start()

    def ask(self, actor: Any, place: int) -> Any:
        share = self.work.requests[place :: self.stride]
        return actor.generate.options(num_returns="streaming").remote(
            share, self.work.sampling, self.work.use_adapter
        )

    def take_share(self, place: int, actor: Any, stream: Any) -> None:
        try:
            for _ in range(MAX_REVIVALS):
                try:
                    return self.take_in(place, actor, stream)
                except LOST:
                    actor = self.pool.revive(actor)
                    stream = self.ask(actor, place)
            self.take_in(place, actor, stream)
        except Exception as error:
            self.error = error

    def take_in(self, place: int, actor: Any, stream: Any) -> None:
        """Raises what Ray raises. An engine that completes no group in time is ended, and counts as
        lost."""
        while True:
            ready, _ = ray.wait([stream], timeout=self.work.timeout, fetch_local=False)
            if not ready:
                ray.kill(actor, no_restart=False)
                raise ray.exceptions.ActorDiedError()
            reference = next(stream, None)
            if reference is None:
                return
            position, group = ray.get(reference)
            index = place + position * self.stride
            if self.groups[index]:
                continue  # of the time before the engine was lost
            self.groups[index] = group
            if self.on_group is not None:
                self.on_group(index, group)

    def wait(self) -> None:
        """Returns when all is done, well or not."""
        for thread in self.threads:
            thread.join()

    def result(self) -> list[list[Rollout]]:
        """A group per request, in the order of the requests. An error inside an engine is final,
        since it may hold half-finished requests and would fail again: UserError."""
        self.wait()
        if isinstance(self.error, ray.exceptions.RayError):
            raise engine_failed(self.error)
        if self.error is not None:
            raise self.error
        return self.groups


@dataclass(frozen=True)
class Work:
    """What the engines are asked for. `timeout` is in seconds, from one completed group to the
    next."""

    requests: list[SampleRequest]
    sampling: SamplingSettings
    use_adapter: bool
    timeout: float


class SamplerPool:
    """Cheap to copy between processes: it holds actor handles, and a reference to the adapter that
    they hold."""

    def __init__(
        self, actors: list[Any], timeout: float, restart_timeout: float = RESTART_TIMEOUT
    ) -> None:
        self.launched, self.timeout, self.restart_timeout = actors, timeout, restart_timeout
        self.lost: list[Any] = []
        self.published: tuple[int, Any, dict[str, Any]] | None = None

    @property
    def actors(self) -> list[Any]:
        """Those that are not given up."""
        return [actor for actor in self.launched if actor not in self.lost]

    @classmethod
    def launch(
        cls, settings: SamplerSettings, num_actors: int, log_folder: Path, timeout: float
    ) -> SamplerPool:
        """Starts the actors without waiting for them; see `wait_until_ready`. `timeout` (seconds)
        is how long an engine may take from one completed group to the next before it counts as hung
        and is started anew."""
        actors = []
        for index in range(num_actors):
            own = replace(settings, log_path=str(log_folder / f"sampler-{index}.log"))
            gpus = SAMPLER_GPUS if settings.device == "cuda" else 0
            environment = {"env_vars": sampler_environment(settings.device, index)}
            placed = {"num_cpus": SAMPLER_CPUS, "num_gpus": gpus, "scheduling_strategy": "SPREAD"}
            remote = ray.remote(**placed, runtime_env=environment, max_restarts=-1)(Sampler)
            actors.append(remote.remote(own))
        return cls(actors, timeout)

    def wait_until_ready(self) -> None:
        """Returns when every engine is up. Raises UserError when one does not come up."""
        try:
            ray.get([actor.ready.remote() for actor in self.actors], timeout=START_TIMEOUT)
        except ray.exceptions.GetTimeoutError:
            raise UserError(
                f"the vLLM engines were not up after {START_TIMEOUT} s; see sampler-*.log"
            ) from None
        except ray.exceptions.RayError as error:
            raise UserError(
                f"a vLLM engine did not start: {last_line(error)}; see sampler-*.log"
            ) from None

    def banned_token_ids(self) -> list[int]:
        """Tokens that are never sampled. Raises UserError."""
        actor = self.actors[0]
        banned: list[int] = self.result_of(
            actor, actor.banned_token_ids.remote(), "banned_token_ids"
        )
        return banned

    def result_of(
        self, actor: Any, reference: Any, method: str, *arguments: Any, parts: int = 1
    ) -> Any:
        """What an engine was asked for by this call, which may take `timeout` seconds for each of
        its parts. An engine that is lost, or hangs, is started anew and asked again. Raises
        UserError."""
        for _ in range(MAX_REVIVALS):
            try:
                return ray.get(reference, timeout=self.timeout * parts)
            except ray.exceptions.GetTimeoutError:
                ray.kill(actor, no_restart=False)
            except LOST:
                pass
            except ray.exceptions.RayError as error:
                raise engine_failed(error) from None
            actor = self.revive(actor)
            reference = getattr(actor, method).remote(*arguments)
        raise UserError(
            f"a vLLM engine was lost or silent for rollout.timeout_seconds={self.timeout:g}, {MAX_REVIVALS} times in a "
            "row; see sampler-*.log in the run's logs. The same command continues from the last finished step"
        )

    def publish(self, version: int, tensors: dict[str, Any], peft_config: dict[str, Any]) -> int:
        """Sends the adapter once to the object store and loads it in every actor; returns the bytes
        loaded by one."""
        self.published = (version, ray.put(tensors), peft_config)
        pending = [(actor, actor.load_adapter.remote(*self.published)) for actor in self.actors]
        sizes = [
            self.result_of(actor, loading, "load_adapter", *self.published)
            for actor, loading in pending
        ]
        return int(sizes[0])

    def revive(self, actor: Any) -> Any:
        """Waits until Ray has restarted a lost actor and gives it the adapter that all hold;
        another actor, where it does not come back. Raises UserError when none is left."""
        try:
            wait_for_restart(actor, self.restart_timeout)
            if self.published is not None:
                ray.get(actor.load_adapter.remote(*self.published), timeout=self.restart_timeout)
            return actor
        except (*LOST, ray.exceptions.GetTimeoutError):
            self.lost.append(actor)
            if not self.actors:
                raise UserError(
                    f"the last vLLM engine was lost and did not come back in {self.restart_timeout:.0f} s; see "
                    "sampler-*.log in the run's logs. The same command continues from the last finished step"
                ) from None
            print(f"a sampler was lost and did not come back; {len(self.actors)} left", flush=True)
            return self.actors[0]

    def generate(
        self, requests: list[SampleRequest], sampling: SamplingSettings, use_adapter: bool = True
    ) -> list[list[Rollout]]:
        """A group of rollouts per request, in the order of the requests, whichever actor made
        them."""
        return self.submit(requests, sampling, use_adapter).result()

    def submit(
        self,
        requests: list[SampleRequest],
        sampling: SamplingSettings,
        use_adapter: bool = True,
        on_group: OnGroup | None = None,
    ) -> PendingRollouts:
        """As `generate`, without waiting. The adapter that is loaded now is the one that
        samples."""
        return PendingRollouts(self, Work(requests, sampling, use_adapter, self.timeout), on_group)

    def score(self, requests: list[ScoreRequest], use_adapter: bool = True) -> list[list[float]]:
        """Log-likelihoods (nats) of each request's replies, in the order of the requests. Raises
        UserError."""
        actors = self.actors[: len(requests)]
        count = len(actors)
        pending = [a.score.remote(requests[i::count], use_adapter) for i, a in enumerate(actors)]
        results: list[list[float]] = [[] for _ in requests]
        for index, (actor, scoring) in enumerate(zip(actors, pending, strict=True)):
            share = requests[index::count]
            results[index::count] = self.result_of(
                actor, scoring, "score", share, use_adapter, parts=len(share)
            )
        return results

    def stop(self) -> None:
        for actor in self.launched:
            ray.kill(actor)


def wait_for_restart(actor: Any, patience: float) -> None:
    """Raises what the last attempt raised when it is not up in time."""
    deadline = time.monotonic() + patience
    while True:
        try:
            ray.get(actor.ready.remote(), timeout=max(1.0, deadline - time.monotonic()))
            return
        except ray.exceptions.RayActorError:  # Ray refuses calls while it restarts the actor
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def engine_failed(error: Exception) -> UserError:
    return UserError(
        f"a vLLM engine failed: {last_line(error)}; see sampler-*.log in the run's logs"
    )
