"""The door: key, content type, size, number and time of requests, before any of our code reads what
they say.

Pure ASGI, since it must act before a body is read. Health and readiness are open; all else needs
the key, and without a configured key comes from this machine.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from rarl.serving.key import ApiKey, is_loopback
from rarl.serving.metrics import Metrics
from rarl.serving.refusals import Refusal
from rarl.serving.settings import ServiceConfig

LOG = logging.getLogger("ray.serve")
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
OPEN = ("/health", "/ready")
RETRY_AFTER = 2  # seconds: about what one reply takes


class Guard:
    """`app` in it gets whole, small, permitted requests alone."""

    def __init__(
        self, app: App, config: ServiceConfig, key: ApiKey | None, metrics: Metrics
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
            await answer.refuse(refusal, scope)
        except asyncio.CancelledError:  # the client has gone
            answer.status = answer.status or 499
            raise
        except Exception as error:  # by its kind alone: its words may be a patient's
            LOG.error("a request to %s failed: %s", route[:40], type(error).__name__)
            await answer.refuse(failed(), scope)
        finally:
            self.metrics.answered(route, answer.status, time.monotonic() - started)

    async def admit(self, route: str, scope: Scope, receive: Receive, answer: Answer) -> None:
        """Raises Refusal."""
        headers = Headers(scope)
        if route in OPEN:
            return await self.app(scope, receive, answer)
        self.check_caller(scope, headers)
        if scope["method"] not in ("GET", "HEAD", "POST"):
            raise Refusal(
                405, "method_not_allowed", f"{scope['method'][:16]} is not supported here"
            )
        if scope["method"] != "POST":
            return await self.app(scope, receive, answer)
        check_content(headers, self.config.limits.body_bytes)
        if self.at_work >= self.config.limits.concurrent:
            message = f"{self.at_work} requests are at work already; wait, and send it again"
            raise Refusal(429, "overloaded", message, retry_after=RETRY_AFTER)
        self.at_work += 1
        self.metrics.at_work(self.at_work)
        try:
            await self.work(scope, receive, answer)
        finally:
            self.at_work -= 1
            self.metrics.at_work(self.at_work)

    async def work(self, scope: Scope, receive: Receive, answer: Answer) -> None:
        """Takes in the body and has it answered, each within its time. Raises Refusal."""
        limits = self.config.limits
        try:
            async with asyncio.timeout(limits.body_seconds):
                body = await read_body(receive, limits.body_bytes)
        except TimeoutError:
            message = f"the body was not there within {limits.body_seconds:g} s"
            raise Refusal(408, "body_timeout", message) from None
        if body is None:  # the client has gone
            return
        try:
            async with asyncio.timeout(limits.request_seconds):
                await self.app(scope, replaying(body, receive), answer)
        except TimeoutError:
            message = f"no complete reply within {limits.request_seconds:g} s; ask for fewer tokens or samples"
            raise Refusal(504, "request_timeout", message) from None

    def check_caller(self, scope: Scope, headers: Headers) -> None:
        """Raises Refusal unless the key is right; or, without a key, unless the caller is on this
        machine and a browser was not led here under another name (DNS rebinding)."""
        if self.key is not None:
            if not self.key.matches(headers.get(b"authorization")):
                raise Refusal(
                    401, "invalid_api_key", "send the API key as 'Authorization: Bearer KEY'"
                )
            return
        if self.config.open_without_key:
            return
        client = scope.get("client")
        name = urlsplit("//" + (headers.get(b"host") or b"").decode("latin-1")).hostname or ""
        if not client or not is_loopback(str(client[0])) or not is_loopback(name):
            message = (
                "without an API key, requests are answered on this machine's own address alone"
            )
            raise Refusal(403, "local_only", message)


class Answer:
    """`send`, remembering what was sent, so that a reply that fails half-way ends in the way that
    is left."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0
        self.streaming = False

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            fixed = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]
            kept = [
                (name, value)
                for name, value in message.get("headers", [])
                if name != b"cache-control"
            ]
            self.streaming = any(
                b"event-stream" in value for name, value in kept if name == b"content-type"
            )
            message = {**message, "headers": [*kept, *fixed]}
        await self._send(message)

    async def refuse(self, refusal: Refusal, scope: Scope) -> None:
        if not self.status:

            async def nothing() -> MutableMapping[str, Any]:
                return {"type": "http.disconnect"}

            await refusal.response()(scope, nothing, self)
        elif self.streaming:
            await self._send(
                {"type": "http.response.body", "body": as_event(refusal), "more_body": False}
            )


def failed() -> Refusal:
    return Refusal(
        500, "internal_error", "the server failed to answer; the request may be sent again"
    )


def as_event(refusal: Refusal) -> bytes:
    """The error as the last event of a stream; the official client raises it."""
    return b"data: " + bytes(refusal.response().body) + b"\n\n"


class Headers:
    """The first of each name."""

    def __init__(self, scope: Scope) -> None:
        self._values: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            self._values.setdefault(bytes(name).lower(), bytes(value))

    def get(self, name: bytes) -> bytes | None:
        return self._values.get(name)


def check_content(headers: Headers, most: int) -> None:
    """Raises Refusal for a body that need not be read to be refused."""
    content_type = (headers.get(b"content-type") or b"").split(b";")[0].strip().lower()
    if content_type != b"application/json":
        raise Refusal(
            415,
            "unsupported_media_type",
            "send JSON, with the header 'Content-Type: application/json'",
        )
    if headers.get(b"content-encoding") not in (None, b"identity"):
        raise Refusal(415, "unsupported_encoding", "compressed bodies are not accepted")
    length = headers.get(b"content-length")
    if length is not None and not length.isdigit():
        raise Refusal(400, "invalid_length", "Content-Length is not a number")
    if length is not None and (len(length) > 15 or int(length) > most):
        raise too_large(most)


def too_large(most: int) -> Refusal:
    return Refusal(413, "request_too_large", f"a request may have {most:,} bytes")


async def read_body(receive: Receive, most: int) -> bytes | None:
    """None when the client leaves before it is complete. Raises Refusal for more than `most`
    bytes."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            raise too_large(most)
        if not message.get("more_body", False):
            return b"".join(parts)


def replaying(body: bytes, receive: Receive) -> Receive:
    """The body in one piece, then whatever comes."""
    given = False

    async def replay() -> MutableMapping[str, Any]:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
