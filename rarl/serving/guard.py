"""The door: key, content type, size, number and time of requests, before any of our code reads what
they say; and the figures that are counted there.

Pure ASGI, since it must act before a body is read. Health and readiness are open; all else needs
the key, and without a configured key comes from this machine.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from urllib.parse import urlsplit

import httpx
from prometheus_client import Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rarl.serving.requests import Refusal
from rarl.serving.settings import ApiKey, ServiceConfig, is_loopback

LOG = logging.getLogger("ray.serve")
OPEN = ("/health", "/ready")
ROUTES = ("/chat/completions", "/answer", "/preview", "/models", "/about", "/metrics", *OPEN)
BUCKETS = [0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120]  # seconds
SHOWN = ("ray_rarl_", "ray_serve_", "ray_vllm_")


class Guard:
    """Passes only whole, small, permitted requests on to `app`."""

    def __init__(
        self, app: ASGIApp, config: ServiceConfig, key: ApiKey | None, metrics: Metrics
    ) -> None:
        self.app, self.config, self.key, self.metrics = app, config, key, metrics
        self.at_work = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # a WebSocket: there is none here
            return await send({"type": "websocket.close", "code": 1008})
        route = str(scope["path"]).removeprefix(str(scope.get("root_path", ""))) or "/"
        answer = Answer(send)
        started = time.monotonic()
        try:
            await self.admit(route, scope, receive, answer)
        except Refusal as refusal:
            await answer.refuse(refusal, scope, receive)
        except asyncio.CancelledError:  # the client has gone
            answer.status = answer.status or 499
            raise
        except Exception as error:  # by its kind alone: its words may be a patient's
            LOG.error("a request to %s failed: %s", route[:40], type(error).__name__)
            await answer.refuse(Refusal("internal_error"), scope, receive)
        finally:
            self.metrics.answered(route, answer.status, time.monotonic() - started)

    async def admit(self, route: str, scope: Scope, receive: Receive, answer: Answer) -> None:
        """Raises Refusal."""
        if route in OPEN:
            return await self.app(scope, receive, answer)
        headers = Headers(scope=scope)
        self.check_caller(scope, headers)
        if scope["method"] not in ("GET", "HEAD", "POST"):
            raise Refusal("method_not_allowed", method=scope["method"][:16])
        if scope["method"] != "POST":
            return await self.app(scope, receive, answer)
        check_content(headers, self.config.limits.body_bytes)
        if self.at_work >= self.config.limits.concurrent:
            raise Refusal("overloaded", at_work=self.at_work)
        self.count(1)
        try:
            await self.work(scope, receive, answer)
        except ClientDisconnect:  # before its body was complete
            return
        finally:
            self.count(-1)

    def count(self, change: int) -> None:
        self.at_work += change
        self.metrics.at_work.set(self.at_work)

    async def work(self, scope: Scope, receive: Receive, answer: Answer) -> None:
        """Reads the body and has it answered, each within its time. Raises Refusal, and
        ClientDisconnect."""
        limits = self.config.limits
        try:
            async with asyncio.timeout(limits.body_seconds):
                body = await read_body(scope, receive, limits.body_bytes)
        except TimeoutError:
            raise Refusal("body_timeout", seconds=limits.body_seconds) from None
        try:
            async with asyncio.timeout(limits.request_seconds):
                await self.app(scope, replaying(body, receive), answer)
        except TimeoutError:
            raise Refusal("request_timeout", seconds=limits.request_seconds) from None

    def check_caller(self, scope: Scope, headers: Headers) -> None:
        """Raises Refusal unless the key is right; or, without a key, unless the caller is on this
        machine and a browser was not led here under another name (DNS rebinding)."""
        if self.key is not None:
            if not self.key.matches(headers.get("authorization")):
                raise Refusal("invalid_api_key")
            return
        if self.config.open_without_key:
            return
        if not is_from_here(scope, headers):
            raise Refusal("local_only")


class Answer:
    """`send`, remembering what was sent, so that a reply that fails half-way ends in the way that
    is left."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0
        self.streaming = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            self.streaming = "event-stream" in headers.get("content-type", "")
            headers.update({"x-content-type-options": "nosniff", "cache-control": "no-store"})
        await self._send(message)

    async def refuse(self, refusal: Refusal, scope: Scope, receive: Receive) -> None:
        if not self.status:
            await refusal.response()(scope, receive, self)
        elif self.streaming:
            last = {"type": "http.response.body", "body": refusal.event(), "more_body": False}
            await self._send(last)


def is_from_here(scope: Scope, headers: Headers) -> bool:
    """Says whether the caller is on this machine, and a browser was not led here under another name
    (DNS rebinding)."""
    client = scope.get("client")
    try:
        name = urlsplit("//" + headers.get("host", "")).hostname or ""
    except ValueError:  # no host at all
        return False
    return client is not None and is_loopback(str(client[0])) and is_loopback(name)


def check_content(headers: Headers, most: int) -> None:
    """Raises Refusal for a body that need not be read to be refused."""
    content_type = headers.get("content-type", "").split(";")[0].strip().lower()
    if content_type != "application/json":
        raise Refusal("body_type")
    if headers.get("content-encoding") not in (None, "identity"):
        raise Refusal("unsupported_encoding")
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        raise Refusal("invalid_length")
    if len(length) > 15 or int(length) > most:
        raise Refusal("request_too_large", most=most)


async def read_body(scope: Scope, receive: Receive, most: int) -> bytes:
    """Raises Refusal for more than `most` bytes, and ClientDisconnect when the client leaves before
    the body is complete."""
    body = bytearray()
    async for part in Request(scope, receive).stream():
        body += part
        if len(body) > most:
            raise Refusal("request_too_large", most=most)
    return bytes(body)


def replaying(body: bytes, receive: Receive) -> Receive:
    """Returns a `receive` that gives the body in one piece, then whatever comes."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return first.pop() if first else await receive()

    return replay


class Metrics:
    """Figures for Prometheus: rarl_requests_total by route and status, rarl_request_seconds by
    route, rarl_requests_at_work, rarl_completion_tokens_total by adapter. No label holds anything
    that a client made up. Every ingress replica counts through Ray."""

    def __init__(self) -> None:
        from ray.serve.metrics import Counter, Gauge, Histogram

        told = "Requests by route and status."
        self._requests = Counter("rarl_requests", told, ("route", "status"))
        told = "Until the reply's end."
        self._seconds = Histogram("rarl_request_seconds", told, BUCKETS, ("route",))
        self.at_work = Gauge("rarl_requests_at_work", "Requests at work in a replica.")
        told = "Tokens of replies by adapter."
        self._tokens = Counter("rarl_completion_tokens", told, ("adapter",))

    def answered(self, route: str, status: int, seconds: float) -> None:
        if route not in ROUTES:
            route = "/models/NAME" if route.startswith("/models/") else "other"
        self._requests.inc(tags={"route": route, "status": str(status)})
        self._seconds.observe(seconds, tags={"route": route})

    def tokens(self, adapter: str, number: int) -> None:
        if number > 0:
            self._tokens.inc(number, tags={"adapter": adapter})


async def read_cluster_metrics() -> str:
    """Returns Prometheus' text of what the agents of all nodes have collected, so that one scrape
    sees all replicas: ours, Ray Serve's, and vLLM's where `log_engine_metrics` is on."""
    import ray

    nodes = [node for node in await asyncio.to_thread(ray.nodes) if node["Alive"]]
    hosts = [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in nodes]
    async with httpx.AsyncClient(timeout=5) as client:
        asked = [client.get(f"http://{host}/metrics") for host in hosts]
        replies = await asyncio.gather(*asked, return_exceptions=True)
    given = [reply for reply in replies if isinstance(reply, httpx.Response)]
    return merge(reply.text for reply in given if reply.is_success)


class Families(Collector):
    """The families of several texts, as far as they are SHOWN, each with the samples of all."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.found: dict[tuple[str, str], Metric] = {}
        for text in texts:
            for family in text_string_to_metric_families(text):
                if family.name.startswith(SHOWN):
                    # Ray has a counter and a gauge of the same name.
                    first = self.found.setdefault((family.name, family.type), family)
                    first.samples += family.samples if first is not family else []

    def collect(self) -> Iterable[Metric]:
        return self.found.values()


def merge(texts: Iterable[str]) -> str:
    """Puts the samples of one family together below its description, as the format wants it."""
    return generate_latest(Families(texts)).decode()
