"""The inference application: the ingress with every limit, and the engines that only it can reach.

    serve run serve_config.yaml
    curl localhost:8000/v1/models

`build_inference` is what `import_path` names, with the keys of `ServiceConfig` as arguments. Its
route prefix is /v1.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ray import serve

from rarl.commands.resolve import resolve_model
from rarl.config import IMPORT_PATH
from rarl.errors import UserError
from rarl.prompts import read_families
from rarl.serving.key import read_api_key, require_key_for
from rarl.serving.settings import DRAIN_SECONDS, ServiceConfig, read_settings
from rarl.system.ray_internals import served_host

DEPLOYMENT: dict[str, Any] = {
    "num_replicas": 1,
    # Far above `limits.concurrent`: it is our guard that says 429, in time, and not Serve's queue.
    "max_ongoing_requests": 2000,
    # requests in flight are answered before a replica goes
    "graceful_shutdown_timeout_s": DRAIN_SECONDS,
    "health_check_period_s": 5.0,
    "ray_actor_options": {"num_cpus": 0.1},
}


@serve.deployment(name="Ingress")
@serve.ingress()
class Ingress:
    """One process of HTTP; several may run, each with limits of its own."""

    def __init__(self, config: ServiceConfig, model_path: str, max_rank: int, engine: Any) -> None:
        from rarl.serving.asking import Engines
        from rarl.serving.metrics import Metrics

        logging.getLogger("httpx").setLevel(logging.WARNING)
        self.key = read_api_key(config)
        # again: the key may be in the builder's environment and not in ours
        if (host := served_host()) is not None:
            require_key_for(host, self.key, config)
        self.metrics = Metrics()
        self.engines = Engines(config, model_path, max_rank, engine, self.metrics)
        self.engines.banned  # loads the processor now, not with the first request

    def __serve_build_asgi_app__(self) -> Any:
        from rarl.serving.api import build_api

        return build_api(self.engines, self.key, self.metrics)


def build_inference(args: dict[str, Any]) -> serve.Application:
    """Raises UserError for wrong settings, and for an address that others reach without a key."""
    from rarl.serving.engine import build_engine, max_lora_rank  # imports vLLM, which takes seconds

    config = read_settings(args)
    if config.prompt not in read_families():
        raise UserError(
            f"inference application: prompt={config.prompt}: known are {', '.join(read_families())}"
        )
    key = read_api_key(config)
    if (host := served_host()) is not None:
        require_key_for(host, key, config)
    model_path = find_model(config.model)
    adapters = (
        str(Path(config.adapters).expanduser().resolve()) if config.adapters is not None else None
    )
    config = config.model_copy(update={"adapters": adapters})
    engine = build_engine(config, model_path, adapters)
    ingress: Any = Ingress  # the decorators make a Deployment of it, which their types do not say
    options = {**DEPLOYMENT, **config.deployment}
    return ingress.options(**options).bind(config, model_path, max_lora_rank(config), engine)


def find_model(model: str) -> str:
    """A folder; a Hub id is left for each node to look up. Raises UserError."""
    is_hub_id = (
        model.count("/") == 1
        and not Path(model).expanduser().exists()
        and not IMPORT_PATH.match(model)
    )
    return model if is_hub_id and not model.startswith((".", "/", "~")) else resolve_model(model)
