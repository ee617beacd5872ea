"""`rarl serve RUN`: the applications of serve_config.yaml, made for one finished run and its
neighbours."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rarl.commands.resolve import find_adapter
from rarl.config import Config, apply_override, load_config
from rarl.errors import UserError, last_line
from rarl.serving.adapters import NAME
from rarl.serving.key import read_api_key, require_key_for
from rarl.serving.settings import DRAIN_SECONDS, ServiceConfig, read_settings
from rarl.system.cluster import start_cluster
from rarl.system.device import Device, resolve_device, resolve_dtype

RANKS = (16, 32, 64, 128, 256)  # maxima that vLLM accepts and that are worth their memory
# A CPU: what the tiny model needs, on two cores.
CPU_ENGINE: dict[str, Any] = {
    "placement_group_config": {"bundles": [{"CPU": 0.3}]},
    "deployment_config": {"num_replicas": 1, "ray_actor_options": {"num_cpus": 0.2}},
    "log_engine_metrics": False,
    "engine_kwargs": {
        "max_model_len": 2048,
        "max_num_seqs": 64,
        "max_loras": 2,
        "max_cpu_loras": 8,
        "enforce_eager": True,
        "kv_cache_memory_bytes": 128 << 20,
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
    },
    "runtime_env": {
        "env_vars": {
            "TORCHDYNAMO_DISABLE": "1",
            "OMP_NUM_THREADS": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
    },
}
GPU_ENGINE: dict[str, Any] = {
    "placement_group_config": {"bundles": [{"GPU": 1, "CPU": 1}]},
    "deployment_config": {"num_replicas": 1, "ray_actor_options": {"num_cpus": 0.5}},
    "engine_kwargs": {
        "gpu_memory_utilization": 0.85,
        "max_model_len": 4096,
        "max_num_seqs": 64,
        "max_loras": 4,
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
    },
    "runtime_env": {"env_vars": {"VLLM_NO_USAGE_STATS": "1"}},
}


@dataclass(frozen=True)
class Address:
    host: str
    port: int

    @property
    def url(self) -> str:
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"


def serving_of(run: Path, overrides: list[str]) -> ServiceConfig:
    """The settings for a run directory with an adapter; the others beside it are served by their
    names too. Raises UserError."""
    if not (run / "config.yaml").is_file():
        raise UserError(
            f"{run}: not a run directory, since it holds no config.yaml; `rarl train` makes one"
        )
    config = load_config(run / "config.yaml")
    find_finished(run)
    device = resolve_device(config)
    name = run.resolve().name
    if not NAME.fullmatch(name):
        raise UserError(
            f"{run}: an adapter's name may hold letters, digits, '.', '_' and '-' only; rename the folder"
        )
    tree: dict[str, Any] = {
        "model": config.model.path,
        "name": "base",
        "adapters": str(run.resolve().parent),
        "default": name,
        "prompt": config.prompts.eval,
        "max_pixels": config.data.max_pixels,
        "llm": engine_of(config, device),
    }
    for override in overrides:
        apply_override(tree, override)
    return read_settings(tree)


def find_finished(run: Path) -> None:
    """Raises UserError for a run without an adapter."""
    try:
        find_adapter(str(run))
    except UserError:
        raise UserError(f"{run}: the run has no adapter yet; let `rarl train` finish it") from None


def engine_of(config: Config, device: Device) -> dict[str, Any]:
    engine = CPU_ENGINE if device == "cpu" else GPU_ENGINE
    rank = next((one for one in RANKS if one >= config.model.lora.rank), config.model.lora.rank)
    own = {"dtype": resolve_dtype(config, device), "max_lora_rank": rank}
    return {**engine, "engine_kwargs": {**engine["engine_kwargs"], **own}}


def serve_until_stopped(
    config: ServiceConfig, address: Address, say: Callable[[str], None]
) -> None:
    """Starts Ray, engine, judge and page here, and returns after Ctrl-C or SIGTERM, when the
    requests in flight are answered. Raises UserError."""
    require_key_for(address.host, read_api_key(config), config)
    require_free(address)
    with local_ray():
        from ray import serve

        from rarl.judge.app import build as build_judge
        from rarl.serving.app import build_inference
        from rarl.serving.page.app import build_page

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(
            proxy_location="HeadOnly", http_options={"host": address.host, "port": address.port}
        )
        inference = build_inference(config.model_dump())
        say(f"starting the engine for {config.model}; this takes a minute or more")
        try:
            serve.run(
                build_judge({"backend": "rules", "num_cpus": 0.05}), name="judge", route_prefix=None
            )
            serve.run(build_page({"num_cpus": 0.05}), name="page", route_prefix="/")
            serve.run(inference, name="inference", route_prefix="/v1")
        except RuntimeError as error:  # "Deploying application inference failed: …"
            raise UserError(
                f"the service did not start: {last_line(error) or 'no reason was given'}; see /tmp/ray/session_latest"
            ) from None
        with stopping() as stop:  # only now, since Ray has handlers of its own until it is up
            say(f"page {address.url}")
            say(f"OpenAI-compatible {address.url}/v1, adapter {config.default}; Ctrl-C ends it")
            stop.wait()
            say("answering what is in flight, then stopping")
            drain("inference")
            serve.shutdown()


def drain(application: str) -> None:
    """Takes it away while the HTTP server still stands, so that its replicas finish what they
    have."""
    from ray import serve

    deadline = time.monotonic() + DRAIN_SECONDS
    while time.monotonic() < deadline:
        with suppress(TimeoutError):  # Ray waits a minute of its own
            serve.delete(application)
            return


def require_free(address: Address) -> None:
    """Raises UserError where something else listens, which Serve would say in a log only."""
    import socket

    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
        except OSError as error:
            raise UserError(
                f"--host {address.host} --port {address.port}: {error.strerror}; choose another with --port"
            ) from None


@contextmanager
def stopping() -> Iterator[threading.Event]:
    """Set by Ctrl-C and SIGTERM."""
    stop = threading.Event()
    before = {
        one: signal.signal(one, lambda *_: stop.set()) for one in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stop
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


@contextmanager
def local_ray() -> Iterator[None]:
    """A cluster of this process's own."""
    import ray

    start_cluster()
    try:
        yield
    finally:
        ray.shutdown()
