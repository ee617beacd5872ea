"""`rarl serve RUN`: the applications of serve_config.yaml, made for one finished run and its
neighbours. `rarl serve FILE`: those of a file of Ray Serve's. Both in a Ray of their own, which
other machines do not reach."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rarl.config import Config, load_config
from rarl.errors import UserError, last_line
from rarl.keys import read_yaml
from rarl.serving import settings
from rarl.serving.adapters import NAME
from rarl.serving.settings import ServiceConfig, read_api_key, read_settings, require_key_for
from rarl.system.cluster import start_cluster
from rarl.system.device import Device, resolve_device, resolve_dtype
from rarl.system.models import find_adapter
from rarl.system.processes import output_in
from rarl.system.ray_internals import deploy_file, replicas_listen_here_alone, session_logs
from rarl.training.run_dir import RunDir

LOOPBACK, PORT = "127.0.0.1", 8000  # where nothing else is said
POLL_SECONDS = 0.5
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
    templates = RunDir(run).templates
    tree: dict[str, Any] = {
        "model": config.model.path,
        "name": "base",
        "adapters": str(run.resolve().parent),
        "default": name,
        "prompt": config.prompts.eval,
        "templates": str(templates.resolve()) if templates.is_file() else None,
        "max_pixels": config.data.max_pixels,
        "limits": {"images": config.data.max_images},
        "llm": engine_of(config, resolve_device(config)),
    }
    return read_settings(tree, overrides)


def engine_of(config: Config, device: Device) -> dict[str, Any]:
    """Returns the keys of LLMConfig for a run's own precision and rank."""
    engine: dict[str, Any] = read_yaml(ENGINES)[device]
    rank = min([one for one in RANKS if one >= config.model.lora.rank] or [config.model.lora.rank])
    engine["engine_kwargs"] |= {"dtype": resolve_dtype(config, device), "max_lora_rank": rank}
    return engine


def serve_run(config: ServiceConfig, host: str | None, port: int | None, say: Say) -> None:
    """Serves engine, judge and page until it is stopped. Raises UserError."""
    host, port = host or LOOPBACK, port or PORT
    require_key_for(host, read_api_key(config), config)

    def start() -> str:
        say(f"starting the engine for {config.model}; this takes a minute or more")
        start_applications(config, {"host": host, "port": port})
        url = url_of(host, port)
        return f"page {url}\nOpenAI-compatible {url}/v1, adapter {config.default}"

    serve_until_stopped(start, host, port, say)


def serve_file(path: Path, host: str | None, port: int | None, say: Say) -> None:
    """Serves the applications of a file that `serve run` takes too, until it is stopped. `host` and
    `port` stand above the file's own; where neither says a host, it is this machine's own, and not
    every address as with `serve run`. Raises UserError."""
    from ray.serve.schema import ServeDeploySchema

    try:
        schema = ServeDeploySchema.model_validate(read_yaml(path))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        told = f"{path}: not a file of Ray Serve's: '{key}': {first['msg']}"
        raise UserError(f"{told}; to serve a run, name its directory") from None
    http = schema.http_options
    own = http.host if "host" in http.model_fields_set else LOOPBACK
    http.host, http.port = host or own, port or http.port

    def start() -> str:
        named = ", ".join(app.name for app in schema.applications)
        say(f"starting {named}; an engine takes a minute or more")
        deploy_file(schema)
        wait_until_running([app.name for app in schema.applications])
        url = url_of(http.host, http.port)
        routed = [app for app in schema.applications if app.route_prefix]
        return "\n".join(f"{app.name} {url}{app.route_prefix}" for app in routed)

    serve_until_stopped(start, http.host, http.port, say)


def url_of(host: str, port: int) -> str:
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}"


def serve_until_stopped(start: Callable[[], str], host: str, port: int, say: Say) -> None:
    """Starts Ray, and what `start` starts and tells of, and returns after Ctrl-C or SIGTERM, when
    the requests in flight are answered. Raises UserError."""
    require_free(host, port)
    # Within Ray's C++ an exception becomes another one, with a stack trace.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    replicas_listen_here_alone()
    start_cluster()
    import ray
    from ray import serve

    # Only now, since its import sets the level.
    logging.getLogger(serve.__name__).setLevel(logging.WARNING)
    try:
        try:
            with output_in(session_logs() / "rarl-serve.log"):  # that of vLLM and Triton
                told = start()
        # "Deploying application inference failed: …", or no HTTP server within Ray's 60 s
        except (RuntimeError, TimeoutError) as error:
            reason = f"the service did not start: {last_line(error) or 'no reason was given'}"
            raise UserError(f"{reason}; see /tmp/ray/session_latest") from None
        stop = threading.Event()
        # Only now, since Ray has handlers of its own until it is up.
        for one in (signal.SIGINT, signal.SIGTERM):
            signal.signal(one, lambda *_: stop.set())
        say(f"{told}; Ctrl-C ends it")
        stop.wait()
        say("answering what is in flight, then stopping")
        finish()
    finally:
        ray.shutdown()


def start_applications(config: ServiceConfig, http: dict[str, Any]) -> None:
    """Returns when all three run. Raises RuntimeError and TimeoutError."""
    from ray import serve

    from rarl.judge.app import build as build_judge
    from rarl.serving.app import build_inference
    from rarl.serving.page.app import build_page

    judge = build_judge({"backend": "rules", "num_cpus": 0.05})
    targets = [
        serve.RunTarget(build_inference(config.model_dump()), "inference", "/v1"),
        serve.RunTarget(judge, "judge", None),
        serve.RunTarget(build_page({"num_cpus": 0.05}), "page", "/"),
    ]
    serve.start(proxy_location="HeadOnly", http_options=http)
    serve.run_many(targets)


def wait_until_running(names: list[str]) -> None:
    """Raises RuntimeError where one of the applications fails to start."""
    from ray import serve

    while True:
        found = serve.status().applications
        for name in names:
            if name in found and found[name].status == "DEPLOY_FAILED":
                raise RuntimeError(f"{name}: {found[name].message.strip()}")
        if all(name in found and found[name].status == "RUNNING" for name in names):
            return
        time.sleep(POLL_SECONDS)


def finish() -> None:
    """Takes the applications away, whose replicas then finish what they have; `inference` first,
    since it asks the others. Serve itself ends with Ray: its own shutdown ends a task of Ray's by
    force, of which Ray complains on the terminal."""
    from ray import serve

    deadline = time.monotonic() + settings.DRAIN_SECONDS
    names = sorted(serve.status().applications, key=lambda name: name != "inference")
    while names and time.monotonic() < deadline:
        with suppress(TimeoutError):  # Ray waits a minute of its own
            serve.delete(names[0])
            names.pop(0)


def require_free(host: str, port: int) -> None:
    """Raises UserError where something else listens, which Serve would say in a log only."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            message = f"--host {host} --port {port}: {error.strerror}; choose another with --port"
            raise UserError(message) from None
