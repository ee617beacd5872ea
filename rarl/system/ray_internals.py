"""Everything private of Ray's that RARL uses, so that an upgrade of Ray has one place to look at.

Imports are inside: Ray Train, Ray Serve and Ray LLM take seconds each, and no process needs all.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# For `ray.init`. Idle processes stay: each data stream finds those of the last one, which have
# transformers imported, and would otherwise wait 5 s for new ones. Ray compares the environments of
# processes as text, and writes that of a job without one otherwise than that of actors' tasks.
REUSED_PROCESSES: dict[str, Any] = {
    "_system_config": {
        "num_workers_soft_limit": max(16, os.cpu_count() or 1),
        "prestart_worker_first_driver": False,  # they would not have this environment
    },
    "runtime_env": {"env_vars": {"TOKENIZERS_PARALLELISM": "false"}},
}


@contextmanager
def own_sigterm() -> Iterator[None]:
    """Inside, `ray.init` leaves this process's handler of SIGTERM in place. Ray's own ones, of
    which it sets two in Python and then one in C++, end the process as failed."""
    from ray._private import utils

    own, original = signal.getsignal(signal.SIGTERM), utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = original
        signal.signal(signal.SIGTERM, own)  # in place of the one in C++


class WithoutPlacementGroupCleaner:
    """A base beside Ray's trainer that leaves out one of its callbacks. The cleaner asks the
    dashboard whether the controller lives; without a dashboard its end takes 12 s, after each run.
    It is there for controllers that outlive their driver, which ours does not."""

    def _create_default_callbacks(self) -> list[Any]:
        from ray.train.v2._internal.callbacks import placement_group_callback as module

        cleaner = module.PlacementGroupCleanerCallback
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]
        return [callback for callback in callbacks if not isinstance(callback, cleaner)]


def is_startup_timeout(error: BaseException) -> bool:
    """True for the error of a Ray Train run whose workers found no place in time. Without it the
    user would be told that a worker died, not that there is no room."""
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    return isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError)


class OneAdapterAtATime:
    """A base beside Ray LLM's server that loads adapters one after the other. Without it, of two
    requests that bring a new adapter together, the second fails with "already been loaded"."""

    async def __init__(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[misc]
        self._resolving = asyncio.Lock()
        # Ray awaits the constructors of such servers
        await super().__init__(*args, **kwargs)  # type: ignore[misc]

    async def _maybe_resolve_lora_from_multiplex(self) -> None:
        async with self._resolving:
            await super()._maybe_resolve_lora_from_multiplex()  # type: ignore[misc]


def loaded_adapter(model_id: str, folder: str) -> Any:
    """Returns what a loader of adapters gives Ray LLM's server: the adapter's name, folder and a
    number. Without Ray's own counter two adapters could have the same number in vLLM."""
    from ray.llm._internal.common.models import global_id_manager
    from ray.llm._internal.serve.core.configs.llm_config import DiskMultiplexConfig

    return DiskMultiplexConfig(
        model_id=model_id,
        max_total_tokens=None,
        local_path=folder,
        lora_assigned_int_id=global_id_manager.next(),
    )


def served_host() -> str | None:
    """Returns the address that Serve listens on here; None where it is not running. Nothing public
    tells it, and without it an open address could be served without a key."""
    import ray
    from ray.serve.context import _get_global_client

    if not ray.is_initialized():  # the call below would start a cluster
        return None
    client = _get_global_client(raise_if_no_controller_running=False)
    return str(client.http_config.host) if client is not None else None
