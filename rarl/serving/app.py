"""The inference application: the routes behind the guard, the ingress that answers them, and the
engines that only it can reach.

    rarl serve serve_config.yaml
    curl localhost:8000/v1/models

`build_inference` is what `import_path` names, with the keys of `ServiceConfig` as arguments. Its
route prefix is /v1.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from ray import serve
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from rarl.config import IMPORT_PATH
from rarl.errors import UserError
from rarl.serving.asking import Engines, answer
from rarl.serving.guard import Guard, Metrics, read_cluster_metrics
from rarl.serving.images import png, read_images
from rarl.serving.requests import (
    AnswerRequest,
    ChatRequest,
    NamedImage,
    PreviewRequest,
    Refusal,
    parse,
)
from rarl.serving.settings import DRAIN_SECONDS, ApiKey, ServiceConfig, needed_key, read_settings
from rarl.system.models import resolve_model

READY_SECONDS = 3.0
PREVIEW_SIDE = 1024  # pixels
DEPLOYMENT: dict[str, Any] = {
    "num_replicas": 1,
    # Far above `limits.concurrent`: it is our guard that says 429, in time, and not Serve's queue.
    "max_ongoing_requests": 2000,
    # Requests in flight are answered before a replica goes.
    "graceful_shutdown_timeout_s": DRAIN_SECONDS,
    "health_check_period_s": 5.0,
    "ray_actor_options": {"num_cpus": 0.1},
}
ROUTE_ERRORS = {404: "unknown_route", 405: "wrong_method"}
routes = APIRouter()


async def engines_of(request: Request) -> Engines:
    return request.app.state.engines


Service = Annotated[Engines, Depends(engines_of)]


@routes.post("/chat/completions")
async def chat(request: Request, engines: Service) -> Response:
    """OpenAI's chat completions."""
    items = engines.chat(parse(ChatRequest, await request.body()))
    first = await anext(items)
    if isinstance(first, dict):
        return JSONResponse(first)
    return event_stream("".join(first), ("".join(item) async for item in items))


@routes.post("/answer")
async def answer_question(request: Request, engines: Service) -> Response:
    """Without `stream` the result alone."""
    asked = parse(AnswerRequest, await request.body())
    told = answer(engines, asked)
    if not asked.stream:
        last = [event async for event in told][-1]
        return JSONResponse({key: value for key, value in last.items() if key != "type"})
    events = (f"data: {json.dumps(event)}\n\n" async for event in told)
    return event_stream(await anext(events), events, "data: [DONE]\n\n")


@routes.post("/preview")
async def preview(request: Request, engines: Service) -> Response:
    """The image as a PNG that a browser can show."""
    asked = NamedImage("image", parse(PreviewRequest, await request.body()).image)
    limits = engines.config.limits

    def shown() -> bytes:
        (image,) = read_images([asked], limits, bare=True)
        image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
        return png(image)

    async with engines.decoding:
        return Response(await asyncio.to_thread(shown), media_type="image/png")


# FastAPI adds no HEAD to a GET, and load balancers ask with it.
READ = ["GET", "HEAD"]


@routes.api_route("/models", methods=READ)
async def models(engines: Service) -> Response:
    names = [engines.config.name, *await asyncio.to_thread(engines.adapters.names)]
    return JSONResponse({"object": "list", "data": [card(engines, name) for name in names]})


@routes.api_route("/models/{name}", methods=READ)
async def one_model(name: str, engines: Service) -> Response:
    model = await asyncio.to_thread(engines.model, name)
    return JSONResponse({**card(engines, model.name), "version": model.version})


def card(engines: Engines, name: str) -> dict[str, Any]:
    base = engines.config.name
    card = {"id": name, "object": "model", "created": engines.started, "owned_by": "rarl"}
    return {**card, "parent": None if name == base else base}


@routes.api_route("/about", methods=READ)
async def about(engines: Service) -> Response:
    """What the page needs to know."""
    config, adapters = engines.config, await asyncio.to_thread(engines.adapters.names)
    shown = {
        "base": config.name,
        "adapters": adapters,
        "default": config.default or config.name,
        "samples": config.samples,
        "judge": config.judge is not None,
        "limits": config.limits.model_dump(),
    }
    return JSONResponse(shown)


@routes.api_route("/metrics", methods=READ)
async def metrics() -> Response:
    return PlainTextResponse(await read_cluster_metrics(), media_type="text/plain; version=0.0.4")


@routes.api_route("/health", methods=READ)
async def health() -> Response:
    """This process answers."""
    return JSONResponse({"status": "ok"})


@routes.api_route("/ready", methods=READ)
async def ready(engines: Service) -> Response:
    """An engine answers too."""
    try:
        await asyncio.wait_for(engines.handle.check_health.remote(), READY_SECONDS)
    except Exception:  # whatever the reason is: there is no engine that could answer now
        return Refusal("not_ready").response()
    return JSONResponse({"status": "ready"})


def event_stream(first: str, rest: AsyncIterator[str], last: str = "") -> Response:
    """The first event is there already, so that what is wrong before it has a status of its own. A
    failure later becomes the last event."""

    async def events() -> AsyncIterator[str | bytes]:
        yield first
        try:
            async for event in rest:
                yield event
            if last:
                yield last
        except Refusal as refusal:
            yield refusal.event()

    return StreamingResponse(events(), media_type="text/event-stream")


async def refuse(request: Request, error: Exception) -> Response:
    """Every error in the form of a Refusal. Starlette raises an unexpected one again behind this
    reply, and the guard logs its kind."""
    if isinstance(error, HTTPException):
        refusal = Refusal(ROUTE_ERRORS.get(error.status_code, "invalid_request"))
        refusal.status = error.status_code
        return refusal.response()
    return (error if isinstance(error, Refusal) else Refusal("internal_error")).response()


def build_api(engines: Engines, key: ApiKey | None, metrics: Metrics) -> ASGIApp:
    """Returns the whole ASGI application, without FastAPI's own routes that describe it."""
    api = FastAPI(openapi_url=None)
    api.state.engines = engines
    api.include_router(routes)
    for kind in (Refusal, HTTPException, Exception):
        api.add_exception_handler(kind, refuse)
    return Guard(api, engines.config, key, metrics)


@serve.deployment(name="Ingress")
@serve.ingress()
class Ingress:
    """One process of HTTP; several may run, each with limits of its own."""

    def __init__(self, config: ServiceConfig, model_path: str, max_rank: int, engine: Any) -> None:
        logging.getLogger("httpx").setLevel(logging.WARNING)
        # Again: the key may be in the builder's environment and not in ours.
        self.key = needed_key(config)
        self.metrics = Metrics()
        self.engines = Engines(config, model_path, max_rank, engine, self.metrics)
        self.engines.banned  # noqa: B018  # loads the processor now, not with the first request

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return build_api(self.engines, self.key, self.metrics)


def build_inference(args: dict[str, Any]) -> serve.Application:
    """Raises UserError for wrong settings, and for an address that others reach without a key."""
    from rarl.serving.engine import build_engine, max_lora_rank  # imports vLLM, which takes seconds

    config = read_settings(args)
    needed_key(config)
    model_path = find_model(config.model)
    paths = {name: getattr(config, name) for name in ("adapters", "templates")}
    here = {name: str(Path(path).expanduser().resolve()) for name, path in paths.items() if path}
    config = config.model_copy(update=here)
    try:
        config.family  # noqa: B018  # a family that there is not is an error now
    except UserError as error:
        raise UserError(f"inference application: {error}") from None
    engine = build_engine(config, model_path)
    # The decorators make a Deployment of it, which their types do not say.
    ingress: Any = Ingress
    options = {**DEPLOYMENT, **config.deployment}
    return ingress.options(**options).bind(config, model_path, max_lora_rank(config), engine)


def find_model(model: str) -> str:
    """Returns a folder; a Hub id is left for each node to look up. Raises UserError."""
    is_path = model.startswith((".", "/", "~")) or Path(model).exists()
    is_hub_id = model.count("/") == 1 and not is_path and not IMPORT_PATH.match(model)
    return model if is_hub_id else resolve_model(model)
