"""Everything private of Ray's that RARL uses, so that an upgrade of Ray has one place to look at.

Imports are inside: Ray Train, Ray Serve and Ray LLM take seconds each, and no process needs all.
"""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
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


# Of what opens ports by itself, beside Ray: PyTorch's process groups, and vLLM.
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo", "VLLM_HOST_IP": "127.0.0.1"}


def listen_here_alone() -> None:
    """Has the Ray that this process starts next listen on the loopback address, with all that runs
    in it. Ray does so by itself on macOS and Windows only: elsewhere it takes the machine's own
    address even where `_node_ip_address` says 127.0.0.1, and some parts take every address."""
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ.update(LOOPBACK)


def replicas_listen_here_alone() -> None:
    """Has the replicas of the Ray that this process starts next listen on the loopback address:
    each has a gRPC server for the others, which Ray Serve opens on every address."""
    from ray._private import ray_constants

    hook = f"{bind_here_alone.__module__}.{bind_here_alone.__name__}"
    os.environ[ray_constants.WORKER_PROCESS_SETUP_HOOK_ENV_VAR] = hook
    # Ray LLM would put one of its own in this place, which does nothing.
    os.environ["RAYLLM_ENABLE_WORKER_PROCESS_SETUP_HOOK"] = "0"


def bind_here_alone() -> None:
    """What every process of such a Ray does first, before it imports Ray Serve."""
    from ray._common import tls_utils

    bind = tls_utils.add_port_to_grpc_server
    tls_utils.add_port_to_grpc_server = lambda server, address: bind(
        server, address.replace("[::]", "127.0.0.1")
    )


def torch_config_here_alone() -> Any:
    """Returns how Ray Train is to join the train workers of one machine: they meet in a file. Ray's
    own way has the first worker listen on every address of the machine."""
    from ray.train.torch import TorchConfig
    from ray.train.torch import config as module

    class FileBackend(module._TorchBackend):
        def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
            import ray

            size = len(worker_group)
            place = f"file://{tempfile.gettempdir()}/rarl-workers-{uuid.uuid4().hex}"
            worker_group.execute(module._set_torch_distributed_env_vars)
            has_gpu = bool(worker_group.get_resources_per_worker().get("GPU", 0))
            joining = [
                worker_group.execute_single_async(
                    rank,
                    module._setup_torch_process_group,
                    backend="nccl" if has_gpu else "gloo",
                    world_rank=rank,
                    world_size=size,
                    init_method=place,
                    timeout_s=backend_config.timeout_s,
                )
                for rank in range(size)
            ]
            ray.get(joining)

    class MeetInFile(TorchConfig):
        @property
        def backend_cls(self) -> type:
            return FileBackend

    return MeetInFile()


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


def end_agents() -> None:
    """Ends the two agents beside the node manager of the Ray that this process started, if it did.
    They outlive a process that ends on the spot by a minute, in which they try to report to a
    cluster that is gone that their node manager is gone."""
    import psutil

    managers = [child for child in psutil.Process().children() if child.name() == "raylet"]
    for agent in (child for manager in managers for child in manager.children()):
        if "agent" in "".join(agent.cmdline()).lower():
            agent.kill()


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


def engine_in_one_process() -> type:
    """Returns Ray LLM's engine, with vLLM's worker in its scheduler's process where it computes on
    a CPU with one thread. Ray and vLLM put it into one of its own there, for the sake of several
    threads; between two tokens each of the two then spins for up to a second until the other has
    written, on cores that the service needs."""
    from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine

    class OneProcessEngine(VLLMEngine):
        def _start_async_llm_engine(
            self, vllm_engine_args: Any, vllm_engine_config: Any, placement_group: Any
        ) -> Any:
            from vllm.platforms import current_platform

            parallel = vllm_engine_config.parallel_config
            one_thread = os.environ.get("OMP_NUM_THREADS") == "1"
            if current_platform.is_cpu() and one_thread and parallel.world_size == 1:
                parallel.distributed_executor_backend = "uni"
            return super()._start_async_llm_engine(
                vllm_engine_args, vllm_engine_config, placement_group
            )

    return OneProcessEngine


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


def session_logs() -> Path:
    """Returns the folder of logs of the Ray that this process has started."""
    from ray._private import worker

    return Path(worker._global_node.get_logs_dir_path())


def deploy_file(schema: Any) -> None:
    """Starts Serve and has it deploy a whole file (a ServeDeploySchema), as `serve run FILE` does.
    Returns before the applications run."""
    from ray import serve
    from ray.serve.context import _get_global_client

    serve.start(schema.proxy_location, schema.http_options.model_dump())
    _get_global_client().deploy_apps(schema)


def served_host() -> str | None:
    """Returns the address that Serve listens on here; None where it is not running. Nothing public
    tells it, and without it an open address could be served without a key."""
    import ray
    from ray.serve.context import _get_global_client

    if not ray.is_initialized():  # the call below would start a cluster
        return None
    client = _get_global_client(raise_if_no_controller_running=False)
    return str(client.http_config.host) if client is not None else None
