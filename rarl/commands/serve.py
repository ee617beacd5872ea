"""`rarl serve RUN`: the applications of serve_config.yaml, made for one finished run and its
neighbours."""

from __future__ import annotations

import logging
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from rarl.config import Config, apply_override, load_config, read_yaml
from rarl.errors import UserError, last_line
from rarl.serving import settings
from rarl.serving.adapters import NAME
from rarl.serving.settings import ServiceConfig, read_api_key, read_settings, require_key_for
from rarl.system.cluster import start_cluster
from rarl.system.device import Device, resolve_device, resolve_dtype
from rarl.system.models import find_adapter

Say = Callable[[str], None]
ENGINES = Path(settings.__file__).with_name("engines.yaml")
RANKS = (16, 32, 64, 128, 256)  # maxima that vLLM accepts and that are worth their memory


def serving_of(run: Path, overrides: list[str]) -> ServiceConfig:
    """Returns the settings for a run directory with an adapter; the runs beside it are served by
    their names, too. Raises UserError."""
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run}: not a run directory: no config.yaml; `rarl train` makes one")
    config = load_config(run / "config.yaml")
    try:
        find_adapter(str(run))
    except UserError:
        raise UserError(f"{run}: the run has no adapter yet; let `rarl train` finish it") from None
    name = run.resolve().name
    if not NAME.fullmatch(name):
        allowed = "an adapter's name may hold letters, digits, '.', '_' and '-' only"
        raise UserError(f"{run}: {allowed}; rename the folder")
    tree: dict[str, Any] = {
        "model": config.model.path,
        "name": "base",
        "adapters": str(run.resolve().parent),
        "default": name,
        "prompt": config.prompts.eval,
        "max_pixels": config.data.max_pixels,
        "llm": engine_of(config, resolve_device(config)),
    }
    for override in overrides:
        apply_override(tree, override)
    return read_settings(tree)


def engine_of(config: Config, device: Device) -> dict[str, Any]:
    """Returns the keys of LLMConfig for a run's own precision and rank."""
    engine: dict[str, Any] = read_yaml(ENGINES)[device]
    rank = min([one for one in RANKS if one >= config.model.lora.rank] or [config.model.lora.rank])
    engine["engine_kwargs"] |= {"dtype": resolve_dtype(config, device), "max_lora_rank": rank}
    return engine


def serve_until_stopped(config: ServiceConfig, host: str, port: int, say: Say) -> None:
    """Starts Ray, engine, judge and page here, and returns after Ctrl-C or SIGTERM, when the
    requests in flight are answered. Raises UserError."""
    require_key_for(host, read_api_key(config), config)
    require_free(host, port)
    start_cluster()
    import ray

    try:
        start_applications(config, {"host": host, "port": port}, say)
        stop = threading.Event()
        # Only now, since Ray has handlers of its own until it is up.
        for one in (signal.SIGINT, signal.SIGTERM):
            signal.signal(one, lambda *_: stop.set())
        shown = "127.0.0.1" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{port}"
        say(f"page {url}")
        say(f"OpenAI-compatible {url}/v1, adapter {config.default}; Ctrl-C ends it")
        stop.wait()
        say("answering what is in flight, then stopping")
        finish_and_stop()
    finally:
        ray.shutdown()


def start_applications(config: ServiceConfig, http: dict[str, Any], say: Say) -> None:
    """Returns when all three run. Raises UserError."""
    from ray import serve

    from rarl.judge.app import build as build_judge
    from rarl.serving.app import build_inference
    from rarl.serving.page.app import build_page

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    judge = build_judge({"backend": "rules", "num_cpus": 0.05})
    targets = [
        serve.RunTarget(build_inference(config.model_dump()), "inference", "/v1"),
        serve.RunTarget(judge, "judge", None),
        serve.RunTarget(build_page({"num_cpus": 0.05}), "page", "/"),
    ]
    say(f"starting the engine for {config.model}; this takes a minute or more")
    try:
        serve.start(proxy_location="HeadOnly", http_options=http)
        serve.run_many(targets)
    # "Deploying application inference failed: …", or no HTTP server within Ray's 60 s
    except (RuntimeError, TimeoutError) as error:
        reason = f"the service did not start: {last_line(error) or 'no reason was given'}"
        raise UserError(f"{reason}; see /tmp/ray/session_latest") from None


def finish_and_stop() -> None:
    """Takes the inference application away first, so that its replicas finish what they have."""
    from ray import serve

    deadline = time.monotonic() + settings.DRAIN_SECONDS
    while time.monotonic() < deadline:
        with suppress(TimeoutError):  # Ray waits a minute of its own
            serve.delete("inference")
            break
    serve.shutdown()


def require_free(host: str, port: int) -> None:
    """Raises UserError where something else listens, which Serve would say in a log only."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            message = f"--host {host} --port {port}: {error.strerror}; choose another with --port"
            raise UserError(message) from None
