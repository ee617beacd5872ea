"""The service's door in this process, without an engine behind it."""

from __future__ import annotations

import json
from typing import Any

import httpx

from rarl.serving.app import build_api
from rarl.serving.asking import Engines
from rarl.serving.guard import Metrics
from rarl.serving.settings import ApiKey, Limits, ServiceConfig
from tests.serving.service import KEY

LIMITS = Limits(body_seconds=0.3, completion_tokens=200, image_pixels=4_000_000)


class NoEngine:
    """In place of an engine's handle: whoever uses it has passed everything that should have
    stopped them."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError("the engine was reached")


def api(model_path: str, key: str | None = KEY, **keys: Any) -> Any:
    config = ServiceConfig(
        **{"model": model_path, "name": "base", "prompt": "plain", "limits": LIMITS, **keys}
    )
    metrics = Metrics()
    engines = Engines(config, model_path, 16, NoEngine(), metrics)
    return build_api(engines, ApiKey(key) if key else None, metrics)


def client(
    app: Any, host: str = "http://127.0.0.1:8000", caller: str = "127.0.0.1"
) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app, client=(caller, 5000)), base_url=host, timeout=60
    )


async def post(app: Any, path: str, body: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with client(app) as http:
        return await http.post(path, content=content, headers=headers)
