"""All sampler actors behind one handle: work is spread over them, an adapter goes to each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import ray

from rarl.errors import UserError, last_line
from rarl.rollout.environment import sampler_environment
from rarl.rollout.sampler import Sampler, SampleRequest, SamplerSettings, SamplingSettings, ScoreRequest
from rarl.schema import Rollout

SAMPLER_CPUS = 0.2  # a share to place actors by; an engine uses what it needs
START_TIMEOUT = 900  # seconds: loading several GB from a slow disk included


OnGroup = Callable[[int, list[Rollout]], Any]


class PendingRollouts:
    """Work in flight: actor i has every n-th of the requests, from i on. One thread per actor takes in the groups as
    they are completed, and tells `on_group` (from that thread) each one's position among the requests."""

    def __init__(self, streams: list[Any], requests: int, on_group: OnGroup | None) -> None:
        self.groups: list[list[Rollout]] = [[] for _ in range(requests)]
        self.on_group, self.stride = on_group, len(streams)
        self.error: Exception | None = None
        self.threads = [Thread(target=self.take_in, args=(i, s), daemon=True) for i, s in enumerate(streams)]
        for thread in self.threads:
            thread.start()

    def take_in(self, actor: int, stream: Any) -> None:
        try:
            for reference in stream:
                position, group = ray.get(reference)
                index = actor + position * self.stride
                self.groups[index] = group
                if self.on_group is not None:
                    self.on_group(index, group)
        except Exception as error:
            self.error = error

    def wait(self) -> None:
        """Returns when all is done, well or not."""
        for thread in self.threads:
            thread.join()

    def result(self) -> list[list[Rollout]]:
        """A group per request, in the order of the requests. A failed engine may hold half-finished requests, so its
        error is final: UserError."""
        self.wait()
        if isinstance(self.error, ray.exceptions.RayError):
            raise engine_failed(self.error)
        if self.error is not None:
            raise self.error
        return self.groups


class SamplerPool:
    """Cheap to copy between processes: it holds actor handles only."""

    def __init__(self, actors: list[Any]) -> None:
        self.actors = actors

    @classmethod
    def launch(cls, settings: SamplerSettings, num_actors: int, log_folder: Path) -> SamplerPool:
        """Starts the actors without waiting for them; see `wait_until_ready`."""
        actors = []
        for index in range(num_actors):
            own = replace(settings, log_path=str(log_folder / f"sampler-{index}.log"))
            gpus = settings.gpu_memory_share if settings.device == "cuda" else 0
            environment = {"env_vars": sampler_environment(settings.device, index)}
            remote = ray.remote(num_cpus=SAMPLER_CPUS, num_gpus=gpus, runtime_env=environment, max_restarts=0)(Sampler)
            actors.append(remote.remote(own))
        return cls(actors)

    def wait_until_ready(self) -> None:
        """Returns when every engine is up. Raises UserError when one does not come up."""
        try:
            ray.get([actor.ready.remote() for actor in self.actors], timeout=START_TIMEOUT)
        except ray.exceptions.GetTimeoutError:
            raise UserError(f"the vLLM engines were not up after {START_TIMEOUT} s; see sampler-*.log") from None
        except ray.exceptions.RayError as error:
            raise UserError(f"a vLLM engine did not start: {last_line(error)}; see sampler-*.log") from None

    def banned_token_ids(self) -> list[int]:
        """Tokens that are never sampled. Raises UserError."""
        try:
            banned: list[int] = ray.get(self.actors[0].banned_token_ids.remote())
        except ray.exceptions.RayError as error:
            raise engine_failed(error) from None
        return banned

    def publish(self, version: int, tensors: dict[str, Any], peft_config: dict[str, Any]) -> int:
        """Sends the adapter once to the object store and loads it in every actor; returns the bytes loaded by one."""
        shared = ray.put(tensors)
        sizes = get_or_explain([actor.load_adapter.remote(version, shared, peft_config) for actor in self.actors])
        return int(sizes[0])

    def generate(
        self, requests: list[SampleRequest], sampling: SamplingSettings, use_adapter: bool = True
    ) -> list[list[Rollout]]:
        """A group of rollouts per request, in the order of the requests, whichever actor made them."""
        return self.submit(requests, sampling, use_adapter).result()

    def submit(
        self,
        requests: list[SampleRequest],
        sampling: SamplingSettings,
        use_adapter: bool = True,
        on_group: OnGroup | None = None,
    ) -> PendingRollouts:
        """As `generate`, without waiting. The adapter that is loaded now is the one that samples."""
        count = min(len(self.actors), len(requests))
        streams = [
            actor.generate.options(num_returns="streaming").remote(requests[index::count], sampling, use_adapter)
            for index, actor in enumerate(self.actors[:count])
        ]
        return PendingRollouts(streams, len(requests), on_group)

    def score(self, requests: list[ScoreRequest], use_adapter: bool = True) -> list[list[float]]:
        """Log-likelihoods (nats) of each request's replies, in the order of the requests. Raises UserError."""
        count = min(len(self.actors), len(requests))
        pending = [a.score.remote(requests[i::count], use_adapter) for i, a in enumerate(self.actors[:count])]
        results: list[list[float]] = [[] for _ in requests]
        for index, own in enumerate(get_or_explain(pending)):
            results[index::count] = own
        return results

    def stop(self) -> None:
        for actor in self.actors:
            ray.kill(actor)


def get_or_explain(pending: list[Any]) -> list[Any]:
    """The actors' results, or a UserError."""
    try:
        results: list[Any] = ray.get(pending)
    except ray.exceptions.RayError as error:
        raise engine_failed(error) from None
    return results


def engine_failed(error: Exception) -> UserError:
    return UserError(f"a vLLM engine failed: {last_line(error)}; see sampler-*.log in the run's logs")
