"""The routes behind the guard."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from rarl.serving.answer import answer
from rarl.serving.asking import Engines
from rarl.serving.guard import App, Guard, as_event, failed
from rarl.serving.images import decode, png, read_bytes
from rarl.serving.key import ApiKey
from rarl.serving.metrics import Metrics, read_cluster_metrics
from rarl.serving.refusals import Refusal
from rarl.serving.requests import AnswerRequest, ChatRequest, PreviewRequest, parse

READY_SECONDS = 3.0
PREVIEW_SIDE = 1024  # pixels
Events = AsyncIterator[bytes]


def build_api(engines: Engines, key: ApiKey | None, metrics: Metrics) -> App:
    """The whole ASGI application."""
    routes = Routes(engines)
    application = Starlette(
        routes=[
            Route("/chat/completions", routes.chat, methods=["POST"]),
            Route("/answer", routes.answer, methods=["POST"]),
            Route("/preview", routes.preview, methods=["POST"]),
            Route("/models", routes.models),
            Route("/models/{name}", routes.one_model),
            Route("/about", routes.about),
            Route("/metrics", routes.metrics),
            Route("/health", routes.health),
            Route("/ready", routes.ready),
        ],
        exception_handlers={Refusal: refuse, HTTPException: refuse_route, Exception: refuse_failed},
    )
    return Guard(application, engines.config, key, metrics)


class Routes:
    def __init__(self, engines: Engines) -> None:
        self.engines, self.config, self.started = engines, engines.config, int(time.time())

    async def chat(self, request: Request) -> Response:
        """OpenAI's chat completions."""
        asked = parse(ChatRequest, await request.body())
        items = self.engines.chat(asked)
        first = await anext(items)
        if isinstance(first, dict):
            return JSONResponse(first)

        async def lines() -> Events:
            yield "".join(first).encode()
            async for item in items:
                yield "".join(item).encode()

        return event_stream(lines())

    async def answer(self, request: Request) -> Response:
        """Without `stream` the result alone."""
        asked = parse(AnswerRequest, await request.body())
        events = answer(self.engines, asked)
        if not asked.stream:
            last = {}
            async for event in events:
                last = event
            return JSONResponse({key: value for key, value in last.items() if key != "type"})
        first = await anext(events)

        async def lines() -> Events:
            yield encode(first)
            async for event in events:
                yield encode(event)
            yield b"data: [DONE]\n\n"

        return event_stream(lines())

    async def preview(self, request: Request) -> Response:
        """The image as a PNG that a browser can show."""
        text, limits = parse(PreviewRequest, await request.body()).image, self.config.limits

        def shown() -> bytes:
            image = decode(*read_bytes(text, limits, "image", bare=True), limits, "image")
            image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
            return png(image)

        async with self.engines.decoding:
            return Response(await asyncio.to_thread(shown), media_type="image/png")

    async def models(self, request: Request) -> Response:
        names = await asyncio.to_thread(self.engines.adapters.names)
        return JSONResponse(
            {"object": "list", "data": [self.card(name) for name in (self.config.name, *names)]}
        )

    async def one_model(self, request: Request) -> Response:
        model = await asyncio.to_thread(self.engines.model, request.path_params["name"])
        return JSONResponse({**self.card(model.name), "version": model.version})

    def card(self, name: str) -> dict[str, Any]:
        is_base = name == self.config.name
        parent = None if is_base else self.config.name
        return {
            "id": name,
            "object": "model",
            "created": self.started,
            "owned_by": "rarl",
            "parent": parent,
        }

    async def about(self, request: Request) -> Response:
        """What the page needs to know."""
        names = await asyncio.to_thread(self.engines.adapters.names)
        config = self.config
        return JSONResponse(
            {
                "base": config.name,
                "adapters": names,
                "default": config.default or config.name,
                "samples": config.samples,
                "judge": config.judge is not None,
                "limits": config.limits.model_dump(),
            }
        )

    async def metrics(self, request: Request) -> Response:
        return PlainTextResponse(
            await read_cluster_metrics(), media_type="text/plain; version=0.0.4"
        )

    async def health(self, request: Request) -> Response:
        """This process answers."""
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """An engine answers too."""
        try:
            await asyncio.wait_for(self.engines.handle.ready.remote(), READY_SECONDS)
        except Exception:  # whatever the reason is: there is no engine that could answer now
            raise Refusal(
                503, "not_ready", "no engine answers; it may be starting", retry_after=5
            ) from None
        return JSONResponse({"status": "ready"})


def encode(event: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(event).encode() + b"\n\n"


def event_stream(events: Events) -> Response:
    """A failure on the way becomes the last event, since the status has been sent."""

    async def safe() -> Events:
        try:
            async for event in events:
                yield event
        except Refusal as refusal:
            yield as_event(refusal)

    return StreamingResponse(safe(), media_type="text/event-stream")


async def refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return error.response()


async def refuse_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "unknown_route", 405: "method_not_allowed"}.get(
        error.status_code, "invalid_request"
    )
    message = {404: "there is no such route", 405: "this route takes another method"}.get(
        error.status_code, ""
    )
    return Refusal(error.status_code, code, message or "the request is wrong").response()


async def refuse_failed(request: Request, error: Exception) -> Response:
    """Starlette raises the error again behind this reply, and the guard logs its kind."""
    return failed().response()
